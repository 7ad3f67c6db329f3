"""The command line: exit codes, what the files hold, and that the check before the timing can fail."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from cpunorm import backends, cli, ops, warmup

MODULES = ("rich", "matplotlib", "PIL")
TINY = "2,3,8,8"  # three channels: pictures


def cpunorm(*arguments, without=()):
    """The command in its own process, where the modules `without` cannot be imported."""
    code = (
        "import sys\n"
        f"for name in {tuple(without)!r}: sys.modules[name] = None\n"
        "from cpunorm.cli import main\n"
        f"sys.exit(main({list(arguments)!r}))\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def one_line(text):
    assert text.count("\n") == 1, text
    return text


@pytest.fixture
def files(tmp_path):
    return ["--json", str(tmp_path / "result.json"), "--picture", str(tmp_path / "result.png")]


@pytest.fixture
def brief(monkeypatch):
    """In this process, and in a few rounds without pauses."""
    from cpunorm.compare import measure

    monkeypatch.setitem(measure.QUICK, "seconds", 0.1)
    monkeypatch.setitem(measure.QUICK, "passes", 2)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "TURN", 1e-9)


@pytest.fixture
def plain(brief, monkeypatch):
    """And without other libraries, whose import takes longer than all the rest."""
    from cpunorm.compare import peers

    monkeypatch.setattr(peers, "installed", lambda: ("numpy",))


def has_c():
    return cli.common.available("c") is None


def refused(arguments, capsys):
    """The line that refuses."""
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == cli.REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    return one_line(captured.err)


# ---------------------------------------------------------------- doctor and warmup


def test_doctor_works_without_the_extra():
    done = cpunorm("doctor", without=MODULES)
    assert done.returncode == (cli.DONE if has_c() else cli.INCOMPLETE), done.stderr
    for name in ("backend", "threads", "numba", "kernel cache", "extra cli", "matplotlib", "rich", "peers", "torch", "scikit-learn"):
        assert name in done.stdout


def test_doctor_names_the_repair_where_c_is_missing():
    done = cpunorm("doctor", without=["cpunorm._native"])
    assert done.returncode == cli.INCOMPLETE
    assert "pip install" in done.stdout
    assert "not available here: c" in one_line(done.stderr)


def test_doctor_refuses_a_bad_environment(monkeypatch):
    monkeypatch.setenv("CPUNORM_BACKEND", "fortran")
    done = cpunorm("doctor")
    assert done.returncode == cli.REFUSED
    assert "fortran" in one_line(done.stderr)


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cpunorm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cli.metadata.version("cpunorm")


def test_warmup_compiles_every_kernel():
    from cpunorm.jit import backend, cache, kernels

    labels = []
    warmup.warmup(labels.append)
    assert len(labels) == len(warmup.jobs())
    assert {*kernels.KERNELS, *kernels.STAGES} == {kernel for kernel, _ in backend._compiled}
    assert not [problem for problem in cache.problems if "addresses" in problem]  # all can be kept on disk
    missing = {kernel for kernel, dtype in backend._compiled if dtype == "float32"} ^ {*kernels.KERNELS, *kernels.STAGES}
    assert missing == set(warmup.FLOAT64_ONLY)


@pytest.mark.parametrize("module", MODULES)
def test_compare_names_the_extra(module, tmp_path):
    done = cpunorm("compare", "--quick", without=[module])
    assert done.returncode == cli.REFUSED
    assert cli.EXTRA in one_line(done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("command", [["warmup"], ["stats", "."], ["preprocess", ".", "-o", "batch.npy"]])
def test_the_others_name_the_extra(command):
    done = cpunorm(*command, without=["rich"])
    assert done.returncode == cli.REFUSED
    assert cli.EXTRA in one_line(done.stderr)


# ---------------------------------------------------------------- compare


@pytest.mark.parametrize("markdown", [False, True])
def test_compare(markdown, files, plain, capsys):
    code = cli.main(["compare", "--quick", "--shape", TINY, "--shape", "2,5,4,6", *files, *(["--markdown"] if markdown else [])])
    captured = capsys.readouterr()
    assert code == (cli.DONE if has_c() else cli.INCOMPLETE), captured.err
    assert "compare 1/" in captured.err  # progress
    for text in (
        "Fastest here",
        "batch_norm inference",
        "batch_norm training",
        "2x5x4x6",
        "NHWC",
        "cpunorm numba",
        "NumPy",
        "The limit is",
    ):
        assert text in captured.out
    assert captured.out.count("|") > 20 or not markdown
    with open(files[3], "rb") as file:
        assert file.read(4) == b"\x89PNG"

    with open(files[1]) as file:
        content = json.load(file)
    assert {"machine", "versions", "threads", "limit", "rows", "problems", "headline"} <= set(content)
    rows = content["rows"]
    ours = {"numba", "c"} if has_c() else {"numba"}
    assert {row["contestant"] for row in rows} == {*ours, "NumPy"}
    assert {row["layout"] for row in rows} == {"NCHW", "NHWC"}
    assert {row["threads"] for row in rows} == set(content["threads"])
    for row in rows:
        assert 0 < row["minimum_seconds"] <= row["median_seconds"]
        of_each = {"batch_norm inference": 4 + 4, "batch_norm training": 4 + 4 + 4, "preprocess": 1 + 4}[row["operation"]]
        assert row["bytes"] == of_each * np.prod(row["shape"])
        assert row["gb_per_second"] == pytest.approx(row["bytes"] / row["minimum_seconds"] / 1e9)
        assert row["speedup_over_numpy"] > 0
        if has_c():
            assert row["percent_of_limit"] == pytest.approx(100 * row["limit_seconds"] / row["minimum_seconds"])
        else:
            assert row["percent_of_limit"] is None


@pytest.mark.parametrize("corrupt", [False, True])
def test_compare_preprocess(corrupt, files, plain, monkeypatch, capsys):
    """By name, of pictures alone; nobody is timed whose result is wrong."""
    from cpunorm.compare import preprocessing

    if corrupt:
        reference = preprocessing.reference
        monkeypatch.setattr(preprocessing, "reference", lambda x, layout: reference(x, layout) + 1e-5)
    arguments = ["compare", "--quick", "--op", "preprocess", "--shape", TINY, "--shape", "2,5,4,6", "--backends", "numba", *files]
    assert cli.main(arguments) == (cli.INCOMPLETE if corrupt or not has_c() else cli.DONE)
    errors = capsys.readouterr().err
    with open(files[1]) as file:
        rows = json.load(file)["rows"]
    if corrupt:
        assert not rows
        assert all(f"not timed: {name}, preprocess" in errors for name in ("numba", "NumPy"))
    else:
        assert {(row["contestant"], row["layout"]) for row in rows} == {
            (name, layout) for name in ("numba", "NumPy") for layout in ("NCHW", "NHWC")
        }
        assert all(row["shape"] == [2, 3, 8, 8] and row["bytes"] == 5 * 2 * 3 * 8 * 8 for row in rows)
        assert all((row["limit_seconds"] or 0) > 0 for row in rows) == has_c()


@pytest.mark.peer
def test_compare_preprocess_with_peers(files, brief, capsys):
    """OpenCV and PyTorch pass the check that ours pass."""
    pytest.importorskip("torch")
    pytest.importorskip("cv2")
    code = cli.main(["compare", "--quick", "--op", "preprocess", "--shape", TINY, *files])
    assert code == (cli.DONE if has_c() else cli.INCOMPLETE), capsys.readouterr().err
    with open(files[1]) as file:
        assert {"PyTorch", "OpenCV"} <= {row["contestant"] for row in json.load(file)["rows"]}


@pytest.mark.peer
def test_compare_with_pytorch(files, brief, capsys):
    pytest.importorskip("torch")
    arguments = ["compare", "--quick", "--op", "", "--dtype", "float64", "--threads", "1", "--shape", TINY, "--peers", "numpy,torch"]
    assert cli.main([*arguments, *files]) == (cli.DONE if has_c() else cli.INCOMPLETE), capsys.readouterr().err
    with open(files[1]) as file:
        rows = json.load(file)["rows"]
    assert {row["operation"] for row in rows if row["contestant"] == "PyTorch"} == set(ops.OPERATIONS)


def test_a_wrong_result_is_named_and_not_timed(files, plain, monkeypatch, capsys):
    """The reference is corrupted in one value, which is the same to the check."""
    name = "batch_norm inference"
    row = ops.OPERATIONS[name]

    def corrupted(inputs):
        y, *rest = row.reference(inputs)
        y = y.copy()
        y.flat[-1] += 1e-3
        return (y, *rest)

    monkeypatch.setitem(ops.OPERATIONS, name, dataclasses.replace(row, reference=corrupted))
    arguments = ["compare", "--quick", "--shape", "2,5,4,6", "--backends", "numba", "--threads", "1", "--layouts", "NHWC", *files]
    assert cli.main(arguments) == cli.INCOMPLETE
    assert f"not timed: numba, {name}" in capsys.readouterr().err
    with open(files[1]) as file:
        content = json.load(file)
    assert any("not timed: numba" in problem for problem in content["problems"])
    assert not [row for row in content["rows"] if row["contestant"] == "numba" and row["operation"] == name]
    assert [row for row in content["rows"] if row["contestant"] == "numba"]  # the other operation


def test_nothing_left_to_time(files, plain, monkeypatch, capsys):
    row = ops.OPERATIONS["mean_var"]
    wrong = dataclasses.replace(row, reference=lambda inputs: tuple(value + 1 for value in row.reference(inputs)))
    monkeypatch.setitem(ops.OPERATIONS, "mean_var", wrong)
    assert cli.main(["compare", "--op", "mean_var", "--shape", TINY, "--quick", "--threads", "1", *files]) == cli.INCOMPLETE
    assert "nothing was measured" in capsys.readouterr().err


def test_without_c_the_limit_is_missing_and_named(files):
    done = cpunorm(
        "compare",
        "--quick",
        "--shape",
        TINY,
        "--threads",
        "1",
        "--op",
        "inference",
        "--peers",
        "numpy",
        *files,
        without=["cpunorm._native"],
    )
    assert done.returncode == cli.INCOMPLETE, done.stderr
    assert "skipped: backend c" in done.stderr
    assert "n/a (no C part)" in done.stdout


def test_pictures_of_the_user(tmp_path, files, plain):
    from PIL import Image

    from cpunorm.compare import pictures

    colours = [(255, 0, 0), (0, 255, 0)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (7, 5), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    made = pictures.batch(pictures.load(tmp_path), (3, 3, 8, 8))
    for index in range(3):
        expected = np.array(colours[index % 2]) / 255
        assert (made[index] == expected.astype(np.float32)[:, None, None]).all()


def test_the_pictures_of_a_batch_differ():
    from cpunorm.compare import pictures

    made = pictures.batch(pictures.load(None), (4, 3, 32, 32))
    assert made.min() >= 0
    assert made.max() <= 1
    assert len({one.tobytes() for one in made}) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backends", "fortran"], "fortran"),
        (["--shape", "2,3,4"], "N,C,H,W"),
        (["--shape", "0,3,4,4"], "N,C,H,W"),
        (["--shape", "AlexNet"], "ResNet-50"),
        (["--op", "pooling"], "batch_norm"),
        (["--op", "preprocess", "--shape", "1,4,8,8"], "3 channels"),
        (["--op", "preprocess", "--dtype", "float16"], "float32"),
        (["--layouts", "NCHX,HWC"], "HWC"),
        (["--threads", "0"], "from 1 to"),
        (["--threads", "100000"], "from 1 to"),
        (["--threads", "two"], "two"),
        (["--dtype", "int8"], "float64"),
        (["--pictures", "/nowhere"], "/nowhere"),
        (["--json", "/nowhere/result.json"], "/nowhere"),
        (["--unknown"], "--unknown"),
    ],
)
def test_refused(arguments, expected, capsys):
    assert expected in refused(["compare", "--quick", *arguments], capsys)


def test_an_empty_folder_of_pictures_is_refused(tmp_path, capsys):
    assert "no picture" in refused(["compare", "--pictures", str(tmp_path)], capsys)


def test_a_missing_backend_that_was_asked_for_is_refused(capsys, monkeypatch):
    def load(name):
        raise ImportError(f"{name} is not\ninstalled; pip install it")

    monkeypatch.setattr(backends, "load", load)
    assert "pip install it" in refused(["compare", "--backends", "c"], capsys)


def test_no_command_is_refused(capsys):
    assert "COMMAND" in refused([], capsys)


@pytest.mark.parametrize("command", [[], ["compare"], ["preprocess"], ["stats"], ["doctor"], ["warmup"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == cli.DONE
    assert "usage: cpunorm" in capsys.readouterr().out
