"""The examples run as they stand there, in a few small calls each."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
CASES = {
    "onnx_inference.py": (["--batch", "2", "--calls", "2"], ["onnx", "onnxruntime"], ["preprocessing 2 pictures", "largest difference"]),
    "dataset_statistics.py": (["--count", "12"], ["PIL"], ["12 pictures", "mean = [0.", "std = [0."]),
    "dask_zarr.py": (
        ["--pictures", "130"],
        ["dask", "distributed", "zarr"],
        ["130 pictures in 3 chunks", "mean = [", "of what was written"],
    ),
    "pytorch_models.py": (
        ["--batch", "2", "--side", "8", "--steps", "3"],
        ["torch"],
        ["ResNetBlock", "TransformerBlock", "DiffusionBlock", "difference"],
    ),
    "digits.py": (
        ["--epochs", "3", "--seeds", "1", "--picture", "digits"],
        ["sklearn", "matplotlib"],
        ["| He | 0.1 | ", "| small | 1 | ", "never above 90% | "],
    ),
    "before_after.py": (["--batch", "2", "--side", "64", "--calls", "1"], [], ["preprocessing", "batch norm", "times"]),
}
PEERS = ("dask", "digits", "onnx", "pytorch")  # need other libraries


def test_all_are_listed():
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.peer) if name.startswith(PEERS) else name for name in CASES])
def test_example(name, tmp_path):
    arguments, modules, expected = CASES[name]
    for module in modules:
        pytest.importorskip(module, reason=f"{name} needs {module}")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
