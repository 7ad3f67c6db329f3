"""What all tests share: backends that may be missing, settings that are put back, Hypothesis profiles."""

import os

import pytest
from helpers import BACKENDS, COMPILED, DTYPES, SCRIPT, TWO_THREADS, present, python
from hypothesis import HealthCheck, settings

from cpunorm import backends
from cpunorm import settings as cpunorm_settings

COMMON = {"deadline": None, "max_examples": 100, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("ci", derandomize=True, database=None, **COMMON)
settings.register_profile("search", **{**COMMON, "max_examples": 2000})
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def loaded(name):
    try:
        backends.load(name)
    except ImportError as problem:
        pytest.skip(str(problem))
    return name


@pytest.fixture(params=BACKENDS)
def backend(request):
    return loaded(request.param)


@pytest.fixture(params=COMPILED)
def compiled(request):
    """A backend that has kernels and threads."""
    return loaded(request.param)


@pytest.fixture(params=[("numba", "default"), ("numba", "threadsafe"), ("c", "default")], ids=["numba", "numba on its own threads", "c"])
def pool(request):
    """A backend that has kernels, and the environment in which Numba's run on the C part's threads (where it is built) or on Numba's."""
    backend, layer = request.param
    return loaded(backend), {"NUMBA_THREADING_LAYER": layer}


@pytest.fixture
def present_backends():
    """The backends with kernels that can be loaded here."""
    found = []
    for name in COMPILED:
        try:
            backends.load(name)
        except ImportError:
            continue
        found.append(name)
    return found or pytest.skip("no backend has kernels here")


@pytest.fixture
def run(tmp_path):
    """Run a script that starts with `SCRIPT`, from a file (spawned children read it again), and give what it prints."""

    def run(code, timeout=100, **environment):
        file = tmp_path / "script.py"
        file.write_text(SCRIPT + code)
        return python(file, timeout=timeout, **TWO_THREADS | environment)

    return run


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=DTYPES)
def any_dtype(request):
    return present(request.param)


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def training(request):
    return request.param


@pytest.fixture
def native():
    """The C backend's module."""
    return backends.load(loaded("c"))


@pytest.fixture(autouse=True)
def _settings_put_back():
    before = cpunorm_settings._process
    yield
    cpunorm_settings._process = before


@pytest.fixture
def one_torch_thread():
    """PyTorch on one thread, its random numbers from a seed."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dask_in_this_thread():
    """Dask's tasks one by one, where a test asks for nothing else."""
    with pytest.importorskip("dask").config.set(scheduler="synchronous"):
        yield
