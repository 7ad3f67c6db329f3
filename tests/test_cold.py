"""Cold and locked-down places: the kernel cache where nothing can be written or others can write, on a full disk, at starts at once.

Each run is a process of its own that needs one kernel (the stage store_plain): a fork of one that has imported Numba, which is what a start
waits for; where imports, users and rights matter too, a new interpreter.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import python

import cpunorm

pytest.importorskip("numba")

# Prints whether store_plain is right, how often the cache had it and had not, and what went wrong.
COPY = """
import ctypes, json
import numpy as np
from cpunorm.jit import backend, cache
x, y = np.array([-1, 2, np.nan], np.float32), np.zeros(3, np.float32)
store_plain = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)(backend.address("store_plain", "float32"))
store_plain(y.ctypes.data, x.ctypes.data, 3)
print(json.dumps([np.array_equal(y, x, equal_nan=True), cache.hits, cache.misses, cache.problems]))
"""
# What `cpunorm doctor` says about the cache.
DOCTOR = "\nfrom cpunorm import report\nprint('\\n'.join(report.cache_lines()))"
# root may write anywhere: give that up (it stays the owner of its files). The bounding set counts from the next exec on.
DROP_OVERRIDE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def results(printed):
    """(right, hits, misses, problems, what the doctor says)"""
    first, *doctor = printed.splitlines()
    return (*json.loads(first), "\n".join(doctor))


# Runs what a line of JSON says, [code, NUMBA_CACHE_DIR], in a fork, and then prints its exit code.
FORKS = """
import json, os, sys, traceback, warnings
import cpunorm.jit.backend, cpunorm.report
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside threads: none was started here
for line in sys.stdin:
    code, os.environ["NUMBA_CACHE_DIR"] = json.loads(line)
    child = os.fork()
    if not child:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def in_fork(tmp_path_factory):
    """What a fork prints that runs `code` with the cache in `folder`."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    errors = tmp_path_factory.mktemp("forks") / "errors"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as server,
    ):

        def run(code, folder):
            server.stdin.write(json.dumps([code, str(folder)]) + "\n")
            server.stdin.flush()
            lines = list(_until_ended(server.stdout))
            assert lines.pop() == "ended 0", errors.read_text()
            return "\n".join(lines)

        yield run
        server.stdin.close()


def _until_ended(stream):
    """Lines up to the one that says how a fork ended, or to the end of everything."""
    for line in stream:
        yield line.rstrip("\n")
        if line.startswith("ended "):
            return
    yield "ended before"


@pytest.fixture(scope="module")
def store_plain(in_fork):
    return lambda folder, before="": results(in_fork(before + COPY + DOCTOR, folder))


def locked_down(code, **environment):
    """As `python`, by a process that file modes bind even if it is root's."""
    start = ["-c", DROP_OVERRIDE] if os.geteuid() == 0 else []
    command = [sys.executable, *start, "-W", "error", "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A container image: the package in a site-packages of its own, its one kernel baked, then nothing writable."""
    image = tmp_path_factory.mktemp("image")
    shutil.copytree(
        Path(cpunorm.__file__).parent, image / "site-packages" / "cpunorm", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    (image / "home").mkdir()
    os.umask(before := os.umask(0))
    os.umask(0o002)  # of many desktops: what we make is not for the group to write all the same
    try:
        assert in_image(image, python)[:4] == (True, 0, 1, [])
    finally:
        os.umask(before)
    for path in [image, *image.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield image
    for path in [image, *image.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def in_image(image, start=locked_down, **environment):
    place = {"PYTHONPATH": str(image / "site-packages"), "HOME": str(image / "home"), "NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": ""}
    return results(start(COPY + DOCTOR, **{**place, "PYTHONDONTWRITEBYTECODE": "1", **environment}))


def test_a_read_only_baked_cache_is_used(image):
    right, hits, misses, problems, doctor = in_image(image)
    assert (right, hits, misses, problems) == (True, 1, 0, [])
    assert "read, not written (Permission denied), 1 kernels for this machine" in doctor
    assert "no folder can be written" in doctor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, "1 for another CPU ("),
        ({"NUMBA_CPU_FEATURES": ""}, "1 for other versions or instruction sets"),
    ],
    ids=["model", "features"],
)
def test_a_baked_cache_of_another_cpu_is_a_miss(environment, said, image):
    right, hits, misses, problems, doctor = in_image(image, **environment)
    assert (right, hits, misses, problems) == (True, 0, 1, [])
    assert f"0 kernels for this machine, {said}" in doctor


def test_a_read_only_image_with_a_writable_home(image, tmp_path):
    """What the image lacks is kept at home: here, the kernel for another CPU."""
    environment = {"HOME": str(tmp_path), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert in_image(image, **environment)[:4] == (True, 0, 1, [])
    right, hits, misses, problems, doctor = in_image(image, **environment)
    assert (right, hits, misses, problems) == (True, 1, 0, [])
    assert f"{tmp_path}/.cache/cpunorm: written and read, 1 kernels for this machine" in doctor


def test_nothing_can_be_written(tmp_path):
    tmp_path.chmod(0o555)
    right, hits, misses, problems, doctor = results(locked_down(COPY + DOCTOR, NUMBA_CACHE_DIR=str(tmp_path)))
    assert (right, hits, misses, problems) == (True, 0, 1, [])
    assert "not used (Permission denied), 0 kernels" in doctor
    assert "compiled in each process: no folder can be written" in doctor
    tmp_path.chmod(0o755)


def test_another_user(tmp_path, store_plain):
    """Nobody, without a home, reads what root has baked, and refuses what another one has."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    interpreter = f"/usr/bin/python3.{sys.version_info.minor}"  # ours may be at root's home
    site = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PATH": "/usr/bin", "HOME": "/nonexistent", "PYTHONPATH": ":".join([str(Path(cpunorm.__file__).parents[1]), *site])}

    def nobody(code, **more):
        command, place = [interpreter, "-c", code], tempfile_for_all(tmp_path)
        done = subprocess.run(
            command,
            env={**environment, **more},
            cwd=place,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip(), done.stderr

    status, _, why = nobody("import numpy") if os.path.exists(interpreter) else (1, "", f"no {interpreter}")
    if status:
        pytest.skip(f"another user has no interpreter here: {why[-200:]}")
    folder = tempfile_for_all(tmp_path) / "cpunorm"
    baked = store_plain(folder.parent)  # by root
    assert baked[:4] == (True, 0, 1, [])
    status, printed, why = nobody(COPY + DOCTOR, NUMBA_CACHE_DIR=str(folder.parent))
    assert status == 0, why
    right, hits, misses, problems, doctor = results(printed)
    assert (right, hits, misses, problems) == (True, 1, 0, [])
    assert "read, not written (Permission denied)" in doctor
    for path in [folder, *folder.iterdir()]:
        os.chown(path, 4242, 4242)
    _, printed, _ = nobody(COPY + DOCTOR, NUMBA_CACHE_DIR=str(folder.parent))
    right, hits, misses, problems, doctor = results(printed)
    assert (right, hits, misses) == (True, 0, 1)
    assert "belongs to another user (uid 4242)" in problems[0]
    assert "refused (belongs to another user (uid 4242))" in doctor


def tempfile_for_all(tmp_path):
    """A folder in `tmp_path` that everybody can reach."""
    place = Path("/tmp") / f"cpunorm-{os.getpid()}-{tmp_path.name}"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path):
    yield
    shutil.rmtree(Path("/tmp") / f"cpunorm-{os.getpid()}-{tmp_path.name}", ignore_errors=True)


def test_what_others_can_write_is_refused(tmp_path, store_plain, in_fork):
    """A folder, and a file in a folder that is ours: not run, not written over, and said. A file under another's name neither."""
    folder = tmp_path / "cpunorm"
    assert store_plain(tmp_path)[:4] == (True, 0, 1, [])
    assert folder.stat().st_mode & 0o777 == 0o755
    (file,) = folder.iterdir()
    folder.chmod(0o777)
    right, hits, misses, problems, doctor = store_plain(tmp_path)
    assert (right, hits, misses) == (True, 0, 1)
    assert "others may write to it" in problems[0]
    assert "refused (others may write to it)" in doctor
    folder.chmod(0o755)
    file.chmod(0o664)
    right, hits, misses, problems, doctor = store_plain(tmp_path)
    assert (right, hits, misses) == (True, 0, 1)
    assert "others may write to it" in problems[0]
    assert file.stat().st_mode & 0o777 == 0o644  # a new one took its place
    assert store_plain(tmp_path)[:4] == (True, 1, 0, [])
    named = folder / file.name.replace("store_plain", "store_stream")
    file.rename(named)
    code = COPY.replace('"store_plain"', '"store_stream"') + DOCTOR
    right, hits, misses, problems, doctor = results(in_fork(code, tmp_path))
    assert (right, hits, misses) == (True, 0, 1)
    assert "damaged" in problems[0]


def test_damaged_files(tmp_path, store_plain, in_fork):
    """The doctor finds them; a file that was half written aside is never read."""
    store_plain(tmp_path)
    (file,) = (tmp_path / "cpunorm").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert "1 kernels for this machine (1 of them damaged or refused" in in_fork(DOCTOR, tmp_path)
    (tmp_path / "cpunorm" / f"{file.stem}x.tmp").write_bytes(content[:99])
    right, hits, misses, problems, doctor = store_plain(tmp_path)
    assert (right, hits, misses, len(problems)) == (True, 0, 1, 1)
    assert "1 kernels for this machine" in doctor
    assert "damaged or" not in doctor
    assert file.read_bytes() != content[:-9]


def test_a_process_that_ends_while_it_writes(tmp_path, in_fork):
    """Leaves nothing that could be read."""
    in_fork("import os\nos.fdopen = lambda *_: os._exit(0)\n" + COPY, tmp_path)
    assert [path.suffix for path in (tmp_path / "cpunorm").iterdir()] == [".tmp"]


def test_addresses_of_a_process_are_not_kept(tmp_path, in_fork):
    code = """
from types import SimpleNamespace
from cpunorm.jit import cache
library = SimpleNamespace(has_dynamic_globals=True)
cache.KernelCache("kernel").save_overload("signature", SimpleNamespace(library=library, _reduce=tuple))
print(cache.problems)
"""
    assert "addresses of this process" in in_fork(code, tmp_path)
    assert list((tmp_path / "cpunorm").iterdir()) == []


def test_what_other_versions_left_is_deleted(tmp_path, store_plain, in_fork):
    """When a kernel is kept where nothing has read it for 30 days. What fits this machine stays, however old, and what is not ours."""
    folder, month = tmp_path / "cpunorm", 30 * 24 * 3600
    store_plain(tmp_path)
    (mine,) = folder.iterdir()
    kernel, cpu, _, signature = mine.stem.split("-")
    others = {f"{kernel}-{cpu}-{letter * 16}-{signature}.nbc": age for letter, age in (("a", month + 60), ("b", month - 60), ("c", 0))}
    ages = {
        **others,
        mine.name: 2 * month,
        "short-name.nbc": 2 * month,
        "half.tmp": 2 * month,
        "half of now.tmp": 0,
        "notes.txt": 2 * month,
    }

    def age(names):
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (time.time() - ages[name],) * 2)

    age(ages)
    (folder / "a-folder-a-0.nbc").mkdir()  # what cannot be deleted is left
    os.utime(folder / "a-folder-a-0.nbc", (0, 0))
    ages["a-folder-a-0.nbc"] = 0
    assert store_plain(tmp_path)[:4] == (True, 1, 0, [])
    assert time.time() - mine.stat().st_mtime < 60  # that it was read is noted
    assert {path.name for path in folder.iterdir()} == set(ages)  # reading deletes nothing
    age([mine.name])
    assert results(in_fork(COPY.replace('"store_plain"', '"store_stream"'), tmp_path))[3] == []
    left = {path.name for path in folder.iterdir()} - {mine.name.replace("store_plain", "store_stream")}
    assert left == {name for name in ages if ages[name] < month} | {mine.name, "notes.txt"}


def test_the_name_of_a_file_has_all_that_decides_its_content(monkeypatch, tmp_path):
    """Another signature, version, source: another name. (Another CPU: above.)"""
    from cpunorm.jit import cache

    kernel = cache.KernelCache("kernel")
    names = [kernel._file("(float32*)"), kernel._file("(float64*)"), cache.KernelCache("other")._file("(float32*)")]
    for module in (cache.numba, cache.llvmlite):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "0.0")
            names.append(kernel._file("(float32*)"))
    package = tmp_path / "cpunorm"
    shutil.copytree(Path(cpunorm.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    monkeypatch.setattr(cache, "__file__", str(package / "jit" / "cache.py"))
    monkeypatch.setattr(cache, "_sources", cache._sources.__wrapped__)
    assert kernel._file("(float32*)") == names[0]  # the same sources elsewhere
    for file in ("jit/stages.py", "program.py"):
        with (package / file).open("a") as source:
            source.write("\n")
        names.append(kernel._file("(float32*)"))
    assert len(set(names)) == len(names) == 7


def test_without_a_home(monkeypatch):
    """A user whom the system does not know, in a container: what is beside the package is left."""
    from cpunorm import machine

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    known = machine.cache_folders.__wrapped__()
    assert known[1:] == (Path.home() / ".cache" / "cpunorm",)
    monkeypatch.setattr(Path, "home", no_home)
    assert machine.cache_folders.__wrapped__() == known[:1]
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert machine.cache_folders.__wrapped__() == (known[0], Path("/somewhere/cpunorm"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
@pytest.mark.parametrize(
    ("uid", "mode", "why"),
    [
        (1, 0o755, None),
        (0, 0o755, None),
        (2, 0o755, None),
        (3, 0o755, "another user (uid 3)"),
        (1, 0o775, "others may write"),
        (1, 0o757, "others may write"),
    ],
    ids=["ours", "root's", "the package's owner's", "another's", "of a group", "of all"],
)
def test_whose_kernels_are_run(uid, mode, why, monkeypatch):
    from cpunorm import machine

    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setattr(machine, "Path", lambda _: SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=2)))
    said = machine.why_not_trusted(SimpleNamespace(st_uid=uid, st_mode=mode))
    assert said is None if why is None else why in said


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:-100], lambda content: content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]],
    ids=["empty", "truncated", "a bit changed"],
)
def test_a_damaged_file_is_compiled_anew_recorded_and_mended(damage, tmp_path, store_plain):
    store_plain(tmp_path)
    (file,) = (tmp_path / "cpunorm").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    right, hits, misses, problems, _ = store_plain(tmp_path)
    assert (right, hits, misses) == (True, 0, 1)
    assert ["store_plain: not loaded, compiled instead" in problem for problem in problems] == [True]
    assert store_plain(tmp_path)[:4] == (True, 1, 0, [])


def test_a_file_stands_where_the_folder_should_be(tmp_path, store_plain):
    """(root may write to any folder)"""
    (tmp_path / "file").write_text("")
    assert store_plain(tmp_path / "file")[:4] == (True, 0, 1, [])
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_that_is_full_when_a_kernel_is_kept(tmp_path, store_plain):
    """Where no disk can be mounted too."""
    full = "import os\ndef replace(*args): raise OSError(28, 'No space left on device')\nos.replace = replace\n"
    right, hits, misses, problems, _ = store_plain(tmp_path, full)
    assert (right, hits, misses) == (True, 0, 1)
    assert ["not kept" in problem and "No space left" in problem for problem in problems] == [True]
    assert list((tmp_path / "cpunorm").iterdir()) == []


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of `size` bytes at `folder`."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount here")
def test_full_disk(tmp_path, store_plain):
    with small_disk(tmp_path, 1 << 18):
        filler = tmp_path / "filler"
        filler.write_bytes(bytes(1 << 17))
        # room for what is tried first, then none: it fills up in between
        fill = "from cpunorm import machine\nassert machine.cache_folder()\n"
        fill += f"open({str(tmp_path / 'more')!r}, 'wb').write(bytes(124 << 10))\n"
        right, hits, misses, problems, doctor = store_plain(tmp_path, fill)
        assert (right, hits, misses) == (True, 0, 1)
        assert ["not kept ([Errno 28] No space left on device)" in problem for problem in problems] == [True]
        assert list((tmp_path / "cpunorm").iterdir()) == []  # no half of a file
        right, hits, misses, problems, doctor = store_plain(tmp_path)  # full from the start
        assert (right, hits, misses, problems) == (True, 0, 1, [])
        assert "read, not written (No space left on device)" in doctor
        filler.unlink()
        assert store_plain(tmp_path)[:4] == (True, 0, 1, [])
        assert store_plain(tmp_path)[:4] == (True, 1, 0, [])


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_cold_starts_at_once(count, tmp_path, store_plain):
    """All delete what another version left, too."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    (tmp_path / "cpunorm").mkdir(mode=0o755)
    for number in range(50):
        old = tmp_path / "cpunorm" / f"store_plain-cpu-{'a' * 16}-{number}.nbc"
        old.touch()
        os.utime(old, (0, 0))
    started = [subprocess.Popen([sys.executable, "-c", COPY], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    printed = [json.loads(process.communicate(timeout=100)[0]) for process in started]
    assert all(right and hits + misses == 1 and not problems for right, hits, misses, problems in printed)
    assert len(list((tmp_path / "cpunorm").iterdir())) == 1
    assert store_plain(tmp_path)[:4] == (True, 1, 0, [])


def test_warmup_says_that_nothing_is_kept(monkeypatch, capsys, tmp_path):
    pytest.importorskip("rich")
    from cpunorm import cli, machine, warmup

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(warmup, "jobs", lambda: [("nothing", np.ones)])
    monkeypatch.setattr(warmup, "warmup", lambda advance: None)
    monkeypatch.setattr(machine, "cache_folders", lambda: (tmp_path / "file" / "cpunorm",))
    monkeypatch.setattr(machine, "cache_folder", machine.cache_folder.__wrapped__)
    assert cli.main(["warmup"]) == 1
    assert "nothing is kept" in capsys.readouterr().err
