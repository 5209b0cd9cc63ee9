"""Memory, copies, streams and launches on GPUs, upon a driver that runs what is given to it."""

import contextlib
import gc
import importlib.util
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import numpy as np
import pytest
from fastopt.kernels.cuda import driver, gpu
from fastopt.kernels.cuda._cuda_jit import Program
from fastopt.kernels.cuda.errors import CudaError, CudaUnavailable
from fastopt.kernels.cuda.staging import Staging
from test_ptx_operations import ptx_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package for this platform"
)
STREAM, OTHER = 7, 3


@pytest.fixture
def fake(monkeypatch):
    """The driver that `gpu` finds. All is done at once, unless a test says otherwise."""
    from running_driver import RunningDriver

    fake = RunningDriver(eagerness=(1.0, 1.0), way={"order": 0})
    for stream in (STREAM, OTHER):
        fake.foreign_stream(stream, ordinal=1)
    monkeypatch.setattr("cuda.bindings.driver", fake)
    driver.bindings.cache_clear()
    yield fake
    gc.collect()
    fake.finish_all()
    driver.bindings.cache_clear()


@pytest.fixture
def device(fake):
    """The second of its GPUs."""
    return gpu.Device(1)


@contextlib.contextmanager
def captured(fake, device, stream):
    """Context in which somebody else captures a stream, as torch does."""
    with device.current():
        fake.cuStreamBeginCapture(stream, fake.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
    yield
    with device.current():
        fake.cuStreamEndCapture(stream)


def downloaded(device, address, count, dtype=np.float32):
    """So many elements at an address."""
    array = np.empty(count, dtype)
    device.download(array, address, STREAM)
    return array


# -- memory and copies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 1000, 700_000])
def test_what_is_uploaded_is_downloaded(device, count):
    numbers = np.random.default_rng(1).normal(size=count)
    memory = device.allocate(numbers.nbytes)
    assert (memory.nbytes, memory.address % 256) == (numbers.nbytes, 0)
    kept = numbers.copy()
    device.upload(memory.address, numbers, STREAM)
    numbers[:] = 0
    device.synchronise(STREAM)
    np.testing.assert_array_equal(downloaded(device, memory.address, count, np.float64), kept)


@pytest.mark.parametrize(
    "array",
    [np.arange(10)[::3], np.arange(6.0).reshape(2, 3).T, np.float32(3), np.array([True, False])],
    ids=["strided", "transposed", "scalar", "bool"],
)
def test_any_array_is_uploaded_in_order(device, array):
    array = np.asarray(array)
    memory = device.allocate(array.nbytes)
    device.upload(memory.address, array, STREAM)
    np.testing.assert_array_equal(downloaded(device, memory.address, array.size, array.dtype), array.ravel())


def test_memory_is_zeroed_on_request_only(device):
    memory = device.allocate(400, zeroed=True)
    assert not downloaded(device, memory.address, 100).any()


def test_copy_and_clear(device):
    numbers = np.arange(100, dtype=np.float32)
    source, target = device.allocate(400), device.allocate(400, zeroed=True)
    device.upload(source.address, numbers, STREAM)
    device.copy(target.address + 40, source.address, 200, STREAM)
    device.copy(target.address, source.address, 0, STREAM)
    np.testing.assert_array_equal(downloaded(device, target.address, 60), [0] * 10 + list(range(50)))
    device.clear(source.address + 4, 392, STREAM)
    device.clear(source.address, 0, STREAM)
    assert downloaded(device, source.address, 100)[[0, 1, 98, 99]].tolist() == [0, 0, 0, 99]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [0.0, -1.0, 1e-6, np.nan])
def test_fill(device, number, dtype):
    memory = device.allocate(10 * dtype().itemsize)
    device.fill(memory.address, 5.0, 10, dtype, STREAM)
    device.fill(memory.address, number, 9, dtype, STREAM)
    device.fill(memory.address, 7.0, 0, dtype, STREAM)
    np.testing.assert_array_equal(downloaded(device, memory.address, 10, dtype), [dtype(number)] * 9 + [dtype(5)])


def test_pinned_memory_is_zeroed_and_lives_as_long_as_a_view(device):
    memory = device.pinned(64)
    assert (memory.dtype, memory.shape, memory.any()) == (np.uint8, (64,), False)
    view = memory[8:16].view(np.int64)
    del memory
    gc.collect()
    view[:] = 12345
    assert view[0] == 12345


@pytest.mark.parametrize("array", [np.zeros(10)[::2], np.broadcast_to(np.zeros(1), 5)], ids=["strided", "read-only"])
def test_download_needs_an_array_to_fill(device, array):
    memory = device.allocate(80)
    with pytest.raises(ValueError, match="contiguous, writeable"):
        device.download(array, memory.address, STREAM)


# -- contexts and errors -----------------------------------------------------------------------------------------------


def test_properties(device):
    assert (device.ordinal, device.name, device.capability, device.multiprocessors) == (1, "Fake GPU", (9, 0), 2)


@pytest.mark.parametrize("ordinal", [-1, 2])
def test_no_such_gpu(fake, ordinal):
    with pytest.raises(CudaUnavailable, match=f"no GPU {ordinal}: CUDA sees 2"):
        gpu.Device(ordinal)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("CUDA_ERROR_NO_DEVICE", "no GPU that CUDA can see"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", r"does not start: text of CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(803\)"),
        ("CUDA_ERROR_UNKNOWN", r"does not start: unknown error \(999\)"),
    ],
)
def test_driver_that_does_not_start(fake, error, message):
    fake.errors["cuInit"] = getattr(fake.CUresult, error)
    with pytest.raises(CudaUnavailable, match=message):
        gpu.Device(0)


def test_a_context_is_pushed_once_and_popped(fake, device):
    with device.current():
        assert fake.contexts == [fake.context_of(1)]
        pushed = fake.count("cuCtxPushCurrent")
        with device.current():
            device.allocate(8)
        assert fake.count("cuCtxPushCurrent") == pushed
        with gpu.Device(0).current():
            assert fake.contexts == [fake.context_of(1), fake.context_of(0)]
            gpu.Device(0).synchronise(0)
        assert fake.contexts == [fake.context_of(1)]
    assert fake.contexts == []


def test_an_error_names_the_call_and_leaves_the_context(fake, device):
    fake.errors["cuMemAlloc"] = fake.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(CudaError, match=r"^cuMemAlloc failed: text of CUDA_ERROR_OUT_OF_MEMORY \(2\)$") as caught:
        device.allocate(1 << 40)
    assert caught.value.code == 2
    assert (fake.contexts, int(fake.mode)) == ([], 0)


def test_memory_is_freed_with_its_last_reference(fake, device):
    before = len(fake.memory)
    memory, pinned = device.allocate(100), device.pinned(100)
    assert len(fake.memory) == before + 2
    fake.errors["cuMemFreeHost"] = fake.CUresult.CUDA_ERROR_LAUNCH_FAILED  # as after a fault in any kernel: no matter
    del memory, pinned
    gc.collect()
    assert (len(fake.memory), fake.count("cuMemFree"), fake.count("cuMemFreeHost")) == (before + 1, 1, 1)


def test_memory_and_events_are_managed_while_a_stream_is_captured(fake, device):
    with captured(fake, device, OTHER):
        memory = device.allocate(400, zeroed=True)
        device.pinned(10)
        for _ in range(2):
            device.upload(memory.address, np.ones(100, np.float32), STREAM)
        del memory
        gc.collect()
        assert int(fake.mode) == 0


def test_copies_between_host_and_gpu_are_refused_in_a_capture(fake, device):
    memory = device.allocate(400)
    array = np.ones(100, np.float32)
    with captured(fake, device, STREAM):
        assert device.is_capturing(STREAM)
        with pytest.raises(RuntimeError, match="cannot upload while the stream is being captured"):
            device.upload(memory.address, array, STREAM)
        with pytest.raises(RuntimeError, match="cannot download while the stream is being captured"):
            device.download(array, memory.address, STREAM)
    assert (fake.count("cuMemcpyHtoDAsync"), fake.count("cuMemcpyDtoHAsync"), array.all()) == (0, 0, True)


def test_uploads_use_their_pinned_memory_again(fake, device):
    memory, array = device.allocate(400), np.ones(100, np.float32)
    for _ in range(100):
        device.upload(memory.address, array, STREAM)
    assert (fake.count("cuMemHostAlloc"), fake.count("cuEventSynchronize")) == (1, 0)
    assert fake.count("cuEventRecord") == 100


def test_uploads_wait_for_old_ones_only(fake, device):
    memory, array = device.allocate(400), np.ones(100, np.float32)
    fake.eagerness = 0, 0
    for _ in range(Staging.length(Staging.SMALLEST)):
        device.upload(memory.address, array, STREAM)
    assert (fake.count("cuMemHostAlloc"), fake.count("cuEventSynchronize")) == (Staging.length(Staging.SMALLEST), 0)
    device.upload(memory.address, array, STREAM)
    assert (fake.count("cuMemHostAlloc"), fake.count("cuEventSynchronize")) == (Staging.length(Staging.SMALLEST), 1)


def test_a_failed_copy_is_reported_by_the_next_upload(fake, device):
    memory, array = device.allocate(400), np.ones(100, np.float32)
    device.upload(memory.address, array, STREAM)
    fake.errors["cuEventQuery"] = fake.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(CudaError, match="cuEventQuery failed: text of CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.upload(memory.address, array, STREAM)


def test_waiting_for_a_stream_takes_no_event_of_its_own(fake, device):
    before = fake.count("cuEventCreate")
    for other in (0, OTHER, STREAM):
        device.wait(STREAM, other)
    names = [name for name in fake.calls if name.startswith("cu") and name.endswith(("EventRecord", "WaitEvent"))]
    assert names == ["cuEventRecord", "cuStreamWaitEvent"] * 2
    assert fake.count("cuEventCreate") == before


def test_whose_memory(fake, device, monkeypatch):
    memory = device.allocate(8)
    assert driver.ordinal_of(memory.address) == 1
    with pytest.raises(ValueError, match="no GPU owns the memory at address 0x10"):
        driver.ordinal_of(0x10)


def test_whose_memory_is_told_in_a_thread_without_a_context(fake, device, monkeypatch):
    memory = device.allocate(8)
    without = fake._cuPointerGetAttribute
    invalid = fake.CUresult.CUDA_ERROR_INVALID_CONTEXT, None
    monkeypatch.setattr(fake, "_cuPointerGetAttribute", lambda *a: without(*a) if fake.contexts else invalid)
    assert driver.ordinal_of(memory.address) == 1
    fake.errors["cuPointerGetAttribute"] = fake.CUresult.CUDA_ERROR_DEINITIALIZED
    with pytest.raises(CudaError, match="DEINITIALIZED"):
        driver.ordinal_of(memory.address)


def test_a_device_is_made_once(fake, monkeypatch):
    monkeypatch.setattr(gpu, "_devices", {})
    with ThreadPoolExecutor(4) as pool:
        devices = set(pool.map(gpu.device, [0, 1] * 8))
    assert {device.ordinal for device in devices} == {0, 1}
    assert len(devices) == 2


# -- kernels upon it ---------------------------------------------------------------------------------------------------

PTX = ptx_of("\tret;", ["x", "y"]).encode()
PROGRAM = Program("test", PTX, 2)


def test_a_program_is_loaded_once(fake, device):
    assert device.load(PROGRAM) is device.load(Program("test", bytes(PTX), 2))
    assert device.load(PROGRAM) is not device.load(PROGRAM._replace(image=PTX + b"// another"))
    assert fake.count("cuLibraryLoadData") == 2


def test_launch(fake, device):
    kernel = device.load(PROGRAM)
    with device.current():
        kernel.launch(3, 256, STREAM, 1 << 40, -5)
    assert fake.launches == [(3, 256, STREAM, (1 << 40, -5))]
    with pytest.raises(CudaError, match="cuLaunchKernel failed: text of CUDA_ERROR_INVALID_CONTEXT"):
        kernel.launch(264, 256, STREAM, 1, 2)
    with pytest.raises(ValueError, match="same size"):
        kernel.launch(264, 256, STREAM, 1)
    assert len(fake.launches) == 1


def test_threads_that_launch_one_kernel_do_not_mix_their_numbers(fake, device, monkeypatch):
    kernel, launched = device.load(PROGRAM), fake._cuLaunchKernel
    start = threading.Barrier(4)

    def slow(*arguments):
        time.sleep(0.001)  # another thread may now pack its own numbers, if nothing keeps it from that
        launched(*arguments)

    monkeypatch.setattr(fake, "_cuLaunchKernel", slow)

    def launch(k):
        with device.current():
            start.wait()
            kernel.launch(k, 32, STREAM, k, -k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(launch, range(1, 5)))
    assert sorted(fake.launches) == [(k, 32, STREAM, (k, -k)) for k in range(1, 5)]


def test_a_driver_too_old_for_the_toolkit(fake, device):
    fake.errors["cuLibraryLoadData"] = fake.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    with pytest.raises(CudaUnavailable, match=r"made for CUDA 12\.8, does not load .* install fastopt\[cuda12\]"):
        device.load(PROGRAM)


def test_blocks_of_a_launch_are_no_more_than_run_at_a_time(fake, device):
    kernel = device.load(PROGRAM)
    with device.current():
        assert [kernel.blocks(tasks, 128) for tasks in (0, 3, 10**6)] == [1, 3, 2 * device.multiprocessors]
        assert kernel.blocks(10**6, 1024) == 2 * device.multiprocessors
    assert fake.count("cuOccupancyMaxActiveBlocksPerMultiprocessor") == 2


def test_a_graph_is_launched_as_often_as_wanted(fake, device):
    stream = device.new_stream()
    device.begin_capture(stream)
    assert device.is_capturing(stream)
    graph = device.end_capture(stream)
    graph.launch(STREAM)
    graph.launch(0)
    assert fake.count("cuGraphLaunch") == 2
    del graph
    gc.collect()
    assert (fake.count("cuGraphDestroy"), fake.count("cuGraphExecDestroy")) == (1, 1)


def test_memory_is_written_at_once_even_in_a_capture(fake, device):
    memory = device.allocate(8)
    with captured(fake, device, STREAM):
        device.write(memory.address, np.array([7.5]))
    found = np.zeros(1)
    device.download(found, memory.address, STREAM)
    assert found[0] == 7.5


def test_every_call_was_made_as_the_bindings_want_it(fake, device):
    """`FakeDriver._call` compares each with the real function: here they are counted, so that none goes unseen."""
    memory, other = device.allocate(800, zeroed=True), device.pinned(8)
    device.upload(memory.address, np.ones(100), STREAM)
    device.upload(memory.address, np.ones(1), STREAM)
    device.download(np.ones(1), memory.address, STREAM)
    device.copy(memory.address + 8, memory.address, 8, STREAM)
    device.fill(memory.address, 1.0, 3, np.float32, STREAM)
    device.fill(memory.address, 0.1, 3, np.float64, STREAM)
    device.wait(STREAM, 0)
    device.synchronise_all()
    fake.eagerness = 0, 0
    for _ in range(Staging.length(Staging.SMALLEST) + 1):
        device.upload(memory.address, np.ones(100), STREAM)
    driver.ordinal_of(memory.address)
    with device.current():
        kernel = device.load(PROGRAM)
        kernel.launch(kernel.blocks(1, 32), 32, STREAM, 1, 2)
    mark = device.mark()
    mark.record(STREAM)
    assert not mark.is_done()
    mark.hold(0)
    mark.wait()
    device.begin_capture(stream := device.new_stream())
    device.end_capture(stream).launch(STREAM)
    with pytest.raises(CudaUnavailable):
        device.load(PROGRAM._replace(name="absent"))
    del memory, other, mark
    gc.collect()
    named = re.findall(r"\bcu[A-Z]\w+", Path(gpu.__file__).read_text() + Path(driver.__file__).read_text())
    assert set(named) == set(fake.calls)


# -- where there is none -----------------------------------------------------------------------------------------------


def test_importing_fastopt_reaches_no_cuda():
    result = children.run("""
        import sys, children
        import fastopt, fastopt.kernels.cpu.launch, fastopt.kernels.cuda._cuda_jit, fastopt.kernels.cuda.driver
        unwanted = ("cuda.", "numba.cuda.", "numba_cuda.")
        children.report(names=[name for name in sys.modules if f"{name}.".startswith(unwanted)])
    """)
    assert result["names"] == []


ABSENT = """
    import sys, children
    {before}
    from fastopt.kernels.cuda import gpu
    from fastopt.kernels.cuda.errors import CudaUnavailable
    try:
        gpu.device(0)
    except CudaUnavailable as error:
        children.report(message=str(error))
"""
NO_DRIVER = """
    from cuda import pathfinder
    def absent(name): raise pathfinder.DynamicLibNotFoundError(f"no {name}")
    pathfinder.load_nvidia_dynamic_lib = absent
"""


@pytest.mark.parametrize(
    ("before", "environment", "message"),
    [
        (NO_DRIVER, {}, "CUDA needs NVIDIA's driver, which cannot be loaded here: no cuda"),
        ("", {"NUMBA_DISABLE_CUDA": "1"}, "CUDA is switched off: NUMBA_DISABLE_CUDA is set"),
        (
            "sys.modules['numba_cuda'] = None",
            {},
            "CUDA needs the package numba-cuda, which is not installed: pip install",
        ),
        ("sys.modules['cuda'] = None", {}, "CUDA needs the package cuda-bindings, which is not installed: pip install"),
    ],
    ids=["driver", "switched off", "numba-cuda", "cuda-bindings"],
)
def test_what_is_missing_is_said(before, environment, message):
    result = children.run(ABSENT.replace("{before}", before.strip()), **environment)
    assert result["message"].startswith(message)
    assert "\n" not in result["message"]
