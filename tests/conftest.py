"""The environment of the tests, set before anything imports Numba, Keras or matplotlib."""

import importlib.util
import os
import zlib

import kernel_cache
import pytest
from environments import (  # noqa: F401
    backend_of_this_process,
    is_child,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_protocol,
)
from keras_process import fast, keras, on_backend  # noqa: F401

os.environ["KERAS_BACKEND"] = backend_of_this_process()
os.environ["MPLBACKEND"] = "Agg"
# Two threads whatever the machine has: the parallel path runs everywhere, and workers do not crowd each other out.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
# OpenMP threads that spin in one worker hold up the other's by milliseconds per launch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Tests neither use nor fill the user's cache. Workers and children inherit the folder, and so share what they compile.
if "PYTEST_XDIST_WORKER" not in os.environ and not is_child():
    os.environ["FASTOPT_CACHE_DIR"] = kernel_cache.folder()


@pytest.fixture(autouse=True, scope="session")
def all_threads():
    """Launches use threads however busy the machine is: it is them that most tests of launches are about."""
    from fastopt.kernels.cpu import launch

    launch._state["yields"] = False


@pytest.fixture
def launches(monkeypatch):
    """The launches so far of optimizers that were made in the test."""
    from fastopt.kernels.cpu import launch

    found, call = [], launch.call
    monkeypatch.setattr(launch, "call", lambda *arguments: found.append(arguments) or call(*arguments))
    return found


READS_IN_PYTHON = os.environ.get("FASTOPT_TESTS_READING") == "python"
ABOUT_COMPILED_READING = {"test_repeated_steps.py", "test_torch_reading.py"}


@pytest.fixture(autouse=True)
def leave_out_what_is_about_compiled_reading(request):
    """Where compiled code is told not to read."""
    if READS_IN_PYTHON and request.path.name in ABOUT_COMPILED_READING:
        pytest.skip("it is about compiled reading, which FASTOPT_TESTS_READING=python switches off")


@pytest.fixture(scope="session", autouse=True)
def reading_in_python():
    """With ``FASTOPT_TESTS_READING=python`` arrays and tensors are read one by one, as where compiled code cannot."""
    if not READS_IN_PYTHON:
        yield
        return
    from fastopt.kernels.cpu import exchange

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "obstacle", lambda: "FASTOPT_TESTS_READING is set")
        yield


@pytest.fixture
def way():
    """How compiled kernels are run: see `ptx.kernel.Kernel.launch`."""
    return {"order": 2, "resident": 4}


@pytest.fixture
def gpus(request, monkeypatch, way):
    """Two GPUs that a `RunningDriver` makes up, which runs compiled kernels on the CPU as soon as it may."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda has no package for this platform")
    from running_driver import RunningDriver, install, remove

    seed = zlib.crc32(request.node.nodeid.encode())
    driver = RunningDriver(eagerness=(1.0, 1.0), seed=seed, way={"seed": seed, **way})
    for handle in (5, 6, 7, 9, 70, 80, 90, 91, 12345):  # of stand-ins for libraries
        driver.foreign_stream(handle)
    install(monkeypatch, driver)
    yield driver
    remove(driver)
