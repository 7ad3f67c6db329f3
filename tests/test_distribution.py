"""What is shipped, and what must not be in it. What needs downloads (every Python, the oldest NumPy) is in .ci/wheels."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cpunorm

PACKAGE = Path(cpunorm.__file__).parent
PROJECT = Path(__file__).parents[1]

# What runs code that it is given, and the one place that may: what the kernel cache reads is machine code anyway, and from files that
# nobody else can have written (SECURITY.md, tests/test_cold.py).
RUNS_CODE = {"eval", "exec", "compile", "__import__", "system", "popen", "literal_eval"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "subprocess", "code", "runpy"}
ALLOWED = {
    ("jit/cache.py", "pickle"),  # of files that belong to us: SECURITY.md
    ("torch/fuse.py", "compile"),  # and exec, of the code that torch.fx writes of a model, as torch.fx does
    ("torch/fuse.py", "exec"),
}


def suspicious(source):
    """Names in a source that run what they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "builtins"):
                name = node.func.attr
            found += [name] if name in RUNS_CODE else []
            found += [str(word.arg) for word in node.keywords if word.arg in ("shell", "allow_pickle")]
    return found


def test_nothing_runs_what_users_give():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    found = {(str(file.relative_to(PACKAGE)), name) for file in files for name in suspicious(file.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_the_search_finds(source):
    assert suspicious(source)


def test_the_extension_is_for_all_pythons_and_links_the_systems_openmp(native):
    library = Path(sys.modules["cpunorm._native"].__file__)
    assert library.name == "_native.abi3.so"
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf here")
    printed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in printed.splitlines() if "(NEEDED)" in line]
    assert "libgomp.so.1" in needed  # under its own name, so that a process has one pool: a copy of our own fights with PyTorch's
    assert not [name for name in needed if name.startswith("libpython")]
    assert "$ORIGIN" not in printed  # nor beside itself
    assert ".libs" not in printed


@pytest.mark.skipif(not (PROJECT / "csrc").is_dir(), reason="not a checkout")
def test_the_sdist_has_what_the_build_reads():
    named = (PROJECT / "MANIFEST.in").read_text().split()
    suffixes = {word.removeprefix("csrc/*") for word in named if word.startswith("csrc/*")}
    sources = {path.suffix for path in (PROJECT / "csrc").iterdir() if path.is_file() and path.name != "_native.c"}
    assert sources <= suffixes
    assert os.access(PROJECT / ".ci" / "wheels", os.X_OK)
