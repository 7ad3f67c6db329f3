"""Backend and threads: per call, context, process and environment; what machine this is; what `show_config` prints."""

import asyncio
import contextvars
import os
import threading

import numpy as np
import pytest
from helpers import python

import cpunorm as cn
from cpunorm import backends, machine, report, settings


def current():
    return tuple(settings.current())


def test_set_backend(backend):
    cn.set_backend(backend)
    assert settings.resolve_backend(None) == backends.choose(None) == backend
    assert settings.resolve_backend("numpy") == "numpy"  # a call has the last word
    cn.set_backend(None)
    assert current() == (None, None)


def test_set_num_threads():
    cn.set_num_threads(3)
    assert settings.resolve_threads(None) == 3
    assert settings.resolve_threads(1) == 1
    cn.set_num_threads(np.int64(2))
    assert settings.resolve_threads(None) == 2
    cn.set_num_threads(None)
    assert settings.resolve_threads(None) == settings.default_threads()


def test_config_nests_and_ends():
    cn.set_num_threads(5)
    with cn.config(backend="numpy"):
        assert current() == ("numpy", 5)
        with cn.config(threads=2):
            assert current() == ("numpy", 2)
            with cn.config():
                assert current() == ("numpy", 2)
        assert current() == ("numpy", 5)
    assert current() == (None, 5)
    with pytest.raises(KeyError), cn.config(threads=1):
        raise KeyError
    assert current() == (None, 5)


def test_config_is_of_its_thread_and_context():
    seen = {}

    def look(name):
        seen[name] = current()

    async def task(threads):
        with cn.config(threads=threads):
            await asyncio.sleep(0)
            return settings.current().threads

    async def tasks():
        return await asyncio.gather(*map(task, (1, 2, 3)))

    outside = contextvars.copy_context()
    with cn.config(backend="numpy", threads=7):
        thread = threading.Thread(target=look, args=["thread"])
        thread.start()
        thread.join()
        outside.run(look, "context")
        look("here")
    assert seen == {"thread": (None, None), "context": (None, None), "here": ("numpy", 7)}
    assert asyncio.run(tasks()) == [1, 2, 3]


def test_process_settings_are_seen_by_other_threads():
    cn.set_num_threads(4)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(current()))
    thread.start()
    thread.join()
    assert seen == [(None, 4)]


@pytest.mark.parametrize(
    ("call", "error", "fragments"),
    [
        (lambda: cn.set_backend("cuda"), ValueError, ["set_backend: ", "'numba', 'c', 'numpy'", "'cuda'"]),
        (lambda: cn.set_backend(1), ValueError, ["set_backend: ", "1"]),
        (lambda: cn.set_num_threads(0), ValueError, ["set_num_threads: ", "at least 1", "0"]),
        (lambda: cn.set_num_threads(1.5), TypeError, ["set_num_threads: ", "whole number", "1.5"]),
        (lambda: cn.set_num_threads(True), TypeError, ["set_num_threads: ", "whole number", "True"]),
        (lambda: cn.config(backend="cuda").__enter__(), ValueError, ["config: ", "'cuda'"]),
        (lambda: cn.config(threads=-1).__enter__(), ValueError, ["config: ", "at least 1", "-1"]),
        (lambda: cn.config(threads="2").__enter__(), TypeError, ["config: ", "whole number", "'2'"]),
    ],
)
def test_bad_settings_are_refused(call, error, fragments):
    before = current()
    with pytest.raises(error) as caught:
        call()
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert current() == before


def test_a_backend_that_cannot_be_loaded(monkeypatch):
    """set_backend says so at once and changes nothing; the default goes on to the next, with one warning that names the reason."""

    def load(name):
        if name == "numpy":
            return backends.reference
        raise ImportError(f"no {name} here")

    monkeypatch.setattr(backends, "reference", object(), raising=False)
    monkeypatch.setattr(backends, "load", load)
    with pytest.raises(ImportError, match="no c here"):
        cn.set_backend("c")
    assert current() == (None, None)
    with pytest.warns(RuntimeWarning, match=r"numpy backend.*no numba here.*no c here") as caught:
        assert backends.default.__wrapped__() == "numpy"
    assert len(caught) == 1


RESOLVED = "from cpunorm import settings as s; print(s.resolve_backend(None), s.default_threads() == min({threads}, s.machine.affinity()))"


@pytest.mark.parametrize(
    ("environment", "threads", "backend"),
    [
        ({"CPUNORM_BACKEND": "numpy"}, 99999, "numpy"),
        ({"CPUNORM_BACKEND": ""}, 99999, "None"),
        ({"CPUNORM_NUM_THREADS": "1"}, 1, "None"),
        ({"CPUNORM_NUM_THREADS": " 2 "}, 2, "None"),
        ({"CPUNORM_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 1, "None"),
        ({"OMP_NUM_THREADS": "1,4"}, 1, "None"),
        ({"OMP_NUM_THREADS": "many"}, 99999, "None"),
    ],
)
def test_environment(environment, threads, backend):
    clean = {"CPUNORM_BACKEND": "", "CPUNORM_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    printed = python(RESOLVED.format(threads=f"{threads}, s.machine.quota() or 99999"), **{**clean, **environment})
    assert printed == f"{backend} True"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CPUNORM_BACKEND", "cuda"), *(("CPUNORM_NUM_THREADS", value) for value in ("0", "-1", "1.5", "two", "²"))],
)
def test_bad_environment_is_refused(variable, value):
    """At the first call, by the variable's name."""
    code = (
        "import numpy as np, cpunorm as cn\n"
        "try:\n"
        "    cn.batch_norm(np.ones((2, 3)), np.zeros(3), np.ones(3), backend=None)\n"
        "except (ValueError, TypeError) as problem:\n"
        "    print(ascii(str(problem)))"
    )
    printed = python(code, **{"CPUNORM_BACKEND": "numba" if variable != "CPUNORM_BACKEND" else value, variable: value})
    assert variable in printed
    assert ascii(value).strip("'") in printed


def test_environment_is_below_the_other_settings():
    code = (
        "import cpunorm as cn; from cpunorm import settings as s\n"
        "print(s.resolve_backend(None), s.resolve_threads(None))\n"
        "cn.set_num_threads(3)\n"
        "with cn.config(backend='numba'): print(s.resolve_backend(None), s.resolve_threads(None), s.resolve_threads(2))"
    )
    assert python(code, CPUNORM_BACKEND="numpy", CPUNORM_NUM_THREADS="1").split("\n") == ["numpy 1", "numba 3 2"]


V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": ""}, None),
        ({"cpu.max": "nonsense 0"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({V1[0]: "-1", V1[1]: "100000"}, None),
        ({V1[0]: "350000\n", V1[1]: "100000\n"}, 4),
        ({V1[0]: "350000"}, None),
        ({V1[0]: "x", V1[1]: "y"}, None),
        ({"cpu.max": "100000 100000", V1[0]: "800000", V1[1]: "100000"}, 1),
    ],
)
def test_quota(files, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.quota(tmp_path) == cpus


@pytest.mark.parametrize(("affinity", "quota", "threads"), [(8, None, 8), (8, 3, 3), (2, 5, 2), (1, None, 1)])
def test_default_threads(affinity, quota, threads, monkeypatch):
    monkeypatch.setattr(machine, "affinity", lambda: affinity)
    monkeypatch.setattr(machine, "quota", lambda: quota)
    monkeypatch.setattr(settings, "environment_threads", lambda: [("A", None)])
    assert settings.default_threads.__wrapped__() == threads
    monkeypatch.setattr(settings, "environment_threads", lambda: [("A", None), ("B", 1)])
    assert settings.default_threads.__wrapped__() == 1


def test_affinity():
    assert machine.affinity() >= 1
    if hasattr(os, "sched_getaffinity"):
        one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from cpunorm import machine; print(machine.affinity())"
        assert python(one) == "1"


def test_caches(tmp_path, monkeypatch):
    for number, (kind, level, size) in enumerate(
        [("Data", 1, "32K"), ("Unified", 2, "512K"), ("Unified", 3, "32M"), ("Instruction", 2, "9M")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in {"type": kind, "level": str(level), "size": size}.items():
            (folder / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_SYSTEM_CACHES", tmp_path)
    assert machine.caches.__wrapped__() == (512 << 10, 32 << 20)
    monkeypatch.setattr(machine, "_SYSTEM_CACHES", tmp_path / "none")
    assert machine.caches.__wrapped__() == (512 << 10, 8 << 20)
    assert machine.caches().l3 >= machine.caches().l2 > 0


def test_show_config(capsys):
    cn.show_config()
    printed = capsys.readouterr().out
    for name in ("cpunorm", "backend", "threads", "numba", "kernel cache", "numpy"):
        assert any(line.startswith(name) for line in printed.splitlines()), name
    assert cn.__version__ in printed
    with cn.config(backend="numpy", threads=3):
        facts = dict(report.facts())
    assert facts["backend"] == "numpy (settings)"
    assert facts["threads"] == "3 (settings)"


NUMBAS_OWN = """
import numba, numpy as np, cpunorm as cn
x = np.ones((8, 1 << 20), np.float32)
cn.mean_var(x, 1, backend="numba", threads=2)
assert numba.threading_layer() in ("tbb", "omp")  # the layer that we choose is launched
numba.set_num_threads(1)
with numba.parallel_chunksize(7):
    cn.mean_var(x, 1, backend="numba", threads=2)
    print(numba.get_num_threads(), numba.get_parallel_chunksize())
"""


def test_numbas_own_settings_stay():
    """Its number of threads and size of chunks are of whoever else uses it in this Python thread."""
    pytest.importorskip("numba")
    assert python(NUMBAS_OWN, NUMBA_THREADING_LAYER="threadsafe", NUMBA_NUM_THREADS="2") == "1 7"
