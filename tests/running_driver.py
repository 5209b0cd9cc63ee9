"""A CUDA driver that runs what is given to it, late: compiled kernels on the CPU, in the order of streams and events.

What is enqueued waits until something needs it, or until a random moment; a copy reads and writes when it is carried
out. So what is used too early, or without a wait between streams, shows as wrong numbers. Memory that nobody wrote,
or that was freed, is all ones: NaN. Kernels may touch nothing else than what was allocated, or is known by `adopt`.
"""

import contextlib
import functools
import gc
import math
import random
import re
import threading
import weakref
from collections import defaultdict, deque

import numpy as np
from cuda.bindings import driver as real
from fake_driver import CODE, GPUS, FakeDriver, numbers_at
from fastopt.kernels.compile.intrinsics import table_at
from fastopt.kernels.cpu.muon import HostProducts
from fastopt.kernels.cuda import _cuda_jit, gpu, muon
from fastopt.kernels.cuda import driver as calls
from ptx.kernel import Kernel
from ptx.memory import Memory

from fastopt.device import Gpu
from fastopt.device.strides import byte_range

MODE = real.CUstreamCaptureMode
MULTIPROCESSORS = 2
STATUS = real.CUstreamCaptureStatus
UNSAFE_IN_CAPTURE = re.compile(
    "cu(Mem(Alloc|Free|HostAlloc|FreeHost)|Event(Create|Query|Synchronize)|LibraryLoadData|KernelGetFunction)$"
)


class Stream:
    """Operations that are to be carried out one after the other; or a capture that they go to."""

    def __init__(self, context, default=False):
        self.context, self.default = context, default
        self.queue, self.capture = deque(), None


class Operation:
    """Something enqueued: ``run`` it, after another operation that may be in another stream."""

    def __init__(self, stream, run, after=None):
        self.stream, self.run, self.after, self.done = stream, run, after, False

    @property
    def ready(self):
        """Whether nothing but what is before it in its stream holds it up."""
        return self.after is None or self.after.done


class Capture:
    """What becomes a graph."""

    def __init__(self, mode):
        self.mode, self.thread, self.nodes, self.valid = mode, threading.get_ident(), [], True

    def forbids(self, mode):
        """Whether a thread of that mode may not manage memory and events meanwhile."""
        if mode == MODE.CU_STREAM_CAPTURE_MODE_RELAXED or self.mode == MODE.CU_STREAM_CAPTURE_MODE_RELAXED:
            return False
        everywhere = mode == self.mode == MODE.CU_STREAM_CAPTURE_MODE_GLOBAL
        return everywhere or self.thread == threading.get_ident()


class RunningDriver(FakeDriver):
    """A `FakeDriver` of two GPUs that do something.

    Parameters
    ----------
    eagerness : (float, float)
        Chance of an operation that is ready to be carried out at a call of the driver: in a default stream, and in
        others. 0 leaves all to who waits.
    seed : int
    way : dict, optional
        How kernels are launched: see `ptx.kernel.Kernel.launch`.
    """

    def __init__(self, eagerness=(0.0, 0.0), seed=0, way=None):
        self._lock, self._local = threading.RLock(), threading.local()
        super().__init__()
        self.eagerness, self._random = eagerness, random.Random(seed)
        self.streams, self.events = {}, {}
        self.way = {"order": 2, "seed": seed, "resident": 4} if way is None else way
        self.waits = 0  # how often somebody waited for what was not done
        self.launches = []  # blocks, threads, stream and numbers of each
        self.known = defaultdict(Memory)  # of each GPU
        self.kept = []  # whose memory is adopted for good
        self.blocks = {}  # address → memory, bytes, {GPU: number that it is known by}
        self.graveyard = []  # memory and bytes of what was freed
        self._images, self._functions, self._graphs = {}, {}, {}

    def foreign_stream(self, handle, ordinal=0):
        """A stream that somebody else has made."""
        self.streams[handle] = Stream(self.context_of(ordinal))

    # -- every call ----------------------------------------------------------------------------------------------------

    @property
    def contexts(self):
        """Those of this thread, the current one last."""
        if not hasattr(self._local, "contexts"):
            self._local.contexts = []
        return self._local.contexts

    @contexts.setter
    def contexts(self, contexts):
        self._local.contexts = contexts

    @property
    def mode(self):
        """This thread's."""
        return getattr(self._local, "mode", MODE.CU_STREAM_CAPTURE_MODE_GLOBAL)

    @mode.setter
    def mode(self, mode):
        self._local.mode = mode

    def _call(self, name, *arguments):
        with self.alone():
            self._run_some()
            return super()._call(name, *arguments)

    @contextlib.contextmanager
    def alone(self):
        """No other thread, and no collection of garbage that would call the driver, comes between."""
        with self._lock:
            collecting = gc.isenabled()
            gc.disable()
            try:
                yield
            finally:
                if collecting:
                    gc.enable()

    def _refusal(self, name):
        if not UNSAFE_IN_CAPTURE.match(name):
            return super()._refusal(name)
        broken = [stream.capture for stream in self._capturing() if stream.capture.forbids(self.mode)]
        for capture in broken:
            capture.valid = False
        return CODE.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED if broken else super()._refusal(name)

    def _capturing(self):
        return [stream for stream in self.streams.values() if stream.capture]

    # -- what is under way ---------------------------------------------------------------------------------------------

    def stream_at(self, handle):
        """The `Stream` of a handle, for the current context alone."""
        context = self.contexts[-1]
        if int(handle) == 0:
            return self.streams.setdefault((context, 0), Stream(context, default=True))
        stream = self.streams[int(handle)]
        assert stream.context == context, "a stream of another GPU"
        return stream

    def enqueue(self, handle, run):
        """Have something done in a stream of the current context."""
        stream = self.stream_at(handle)
        if stream.capture:
            stream.capture.nodes.append(run)
        else:
            stream.queue.append(Operation(stream, run))

    def _run_some(self):
        while ready := [stream for stream in self.streams.values() if stream.queue and stream.queue[0].ready]:
            chosen = [stream for stream in ready if self._random.random() < self.eagerness[not stream.default]]
            if not chosen:
                return
            self._run_next(self._random.choice(chosen))

    def _run_next(self, stream):
        operation = stream.queue.popleft()
        operation.run()
        operation.done = True

    def _complete(self, operation):
        """Carry out an operation and, of all others, those that it waits for."""
        self.waits += not operation.done
        while not operation.done:
            first = operation.stream.queue[0]
            if first.ready:
                self._run_next(first.stream)
            else:
                self._complete(first.after)

    @property
    def pending(self):
        """How much is enqueued."""
        return sum(len(stream.queue) for stream in self.streams.values())

    def run(self, most):
        """Carry out so much of what is enqueued."""
        with self.alone():
            for _ in range(min(most, self.pending)):
                self._run_next(next(s for s in self.streams.values() if s.queue and s.queue[0].ready))

    def finish(self, *streams):
        """Carry out all that is in these streams."""
        with self.alone():
            for stream in streams:
                if stream.queue:
                    self._complete(stream.queue[-1])

    def finish_all(self):
        """Carry out everything, on all GPUs."""
        self.finish(*self.streams.values())

    # -- streams and events --------------------------------------------------------------------------------------------

    def _cuStreamCreate(self, flags):
        assert flags == real.CUstream_flags.CU_STREAM_NON_BLOCKING
        handle = super()._cuStreamCreate(flags)
        self.streams[int(handle)] = Stream(self.contexts[-1])
        return handle

    def destroy(self, handle):
        """As ``cuStreamDestroy``: what is enqueued still happens."""
        self.finish(self.streams[handle])
        del self.streams[handle]

    def _cuStreamIsCapturing(self, stream):
        capture = self.stream_at(stream).capture
        if capture is None:
            return STATUS.CU_STREAM_CAPTURE_STATUS_NONE
        active, broken = STATUS.CU_STREAM_CAPTURE_STATUS_ACTIVE, STATUS.CU_STREAM_CAPTURE_STATUS_INVALIDATED
        return active if capture.valid else broken

    def _cuStreamSynchronize(self, stream):
        stream = self.stream_at(stream)
        if stream.capture:
            return self._broken(stream.capture, CODE.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        self.finish(stream)

    def _broken(self, capture, error):
        capture.valid = False
        return error, None

    def _cuEventRecord(self, event, stream):
        stream = self.stream_at(stream)
        if stream.capture:
            self.events[int(event)] = stream.capture
            return
        stream.queue.append(Operation(stream, lambda: None))
        self.events[int(event)] = stream.queue[-1]

    def _cuStreamWaitEvent(self, stream, event, flags):
        stream, recorded = self.stream_at(stream), self.events.get(int(event))
        if isinstance(recorded, Capture):
            stream.capture = stream.capture or recorded
        elif stream.capture:
            return self._broken(stream.capture, CODE.CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
        elif recorded:
            stream.queue.append(Operation(stream, lambda: None, after=recorded))

    def _cuEventQuery(self, event):
        recorded = self.events.get(int(event))
        if isinstance(recorded, Capture):
            return self._broken(recorded, CODE.CUDA_ERROR_CAPTURED_EVENT)
        return (CODE.CUDA_ERROR_NOT_READY if recorded and not recorded.done else CODE.CUDA_SUCCESS), None

    def _cuEventSynchronize(self, event):
        if recorded := self.events.get(int(event)):
            self._complete(recorded)

    def _cuEventDestroy(self, event):
        self.events.pop(int(event), None)

    def _cuCtxSynchronize(self):
        broken = self._capturing()
        for stream in broken:
            stream.capture.valid = False
        if broken:
            return CODE.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        self.finish(*(stream for stream in self.streams.values() if stream.context == self.contexts[-1]))

    # -- memory --------------------------------------------------------------------------------------------------------

    @property
    def ordinal(self):
        """Number of the GPU whose context is current."""
        return self.contexts[-1] - self.context_of(0)

    def adopt(self, address, nbytes, owner, ordinal=0):
        """Let kernels touch memory of the host as if it were a GPU's, as long as its owner lives."""
        known = self.known[ordinal]
        weakref.finalize(owner, known.remove, known.add(address, nbytes)).atexit = False

    def note_writing(self, address, nbytes, undone=False):
        """Somebody wrote to memory without the driver; or what was there is not to be read any more."""
        for known in self.known.values():
            known.write(address, nbytes, undone)

    def _allocated(self, nbytes):
        address = super()._allocated(nbytes)
        self.blocks[address] = self.memory[address], nbytes, {}
        return address

    def _cuMemAlloc(self, nbytes):
        address = super()._cuMemAlloc(nbytes)
        self._know(address, nbytes, [self.ordinal], written=False)
        return address

    def _cuMemHostAlloc(self, nbytes, flags):
        address = super()._cuMemHostAlloc(nbytes, flags)
        self._know(address, nbytes, range(GPUS), written=True)
        return address

    def _know(self, address, nbytes, ordinals, written):
        for ordinal in ordinals:
            self.blocks[int(address)][2][ordinal] = self.known[ordinal].add(int(address), nbytes, written)

    def _cuMemFree(self, address):
        if int(address) not in self.blocks:
            return CODE.CUDA_ERROR_INVALID_VALUE, None
        self.finish_all()
        memory, nbytes, places = self.blocks.pop(int(address))
        for ordinal, number in places.items():
            self.known[ordinal].remove(number)
        memory[:] = 0xFF
        self.graveyard.append((memory, nbytes))
        super()._cuMemFree(address)

    _cuMemFreeHost = _cuMemFree

    def _cuPointerGetAttribute(self, attribute, address):
        for ordinal in range(GPUS):
            if self.known[ordinal].holds(int(address)):
                return ordinal
        return CODE.CUDA_ERROR_INVALID_VALUE, None

    def _later(self, name, *arguments, before, after=lambda known: None):
        """Do in a stream, the last argument, what a `FakeDriver` does at once, between looks at a GPU's memory."""
        does, known = getattr(super(), f"_{name}"), self.known[self.ordinal]

        def run():
            before(known)
            does(*arguments)
            after(known)

        self.enqueue(arguments[-1], run)

    def _write_later(self, name, *arguments, place):
        self._later(
            name, *arguments, before=lambda known: known.require(*place), after=lambda known: known.write(*place)
        )

    def _cuMemcpyHtoDAsync(self, target, source, nbytes, stream):
        self._write_later("cuMemcpyHtoDAsync", target, source, nbytes, stream, place=(int(target), nbytes))

    def _cuMemcpyDtoHAsync(self, target, source, nbytes, stream):
        def before(known):
            known.require_written(int(source), nbytes)

        self._later("cuMemcpyDtoHAsync", target, source, nbytes, stream, before=before)

    def _cuMemcpyDtoDAsync(self, target, source, nbytes, stream):
        def before(known):
            known.require(int(target), nbytes)
            known.require(int(source), nbytes)

        def after(known):
            known.copy(int(target), int(source), nbytes)

        self._later("cuMemcpyDtoDAsync", target, source, nbytes, stream, before=before, after=after)

    def _cuMemsetD8Async(self, address, value, count, stream):
        self._write_later("cuMemsetD8Async", address, value, count, stream, place=(int(address), count))

    def _cuMemsetD2D32Async(self, address, pitch, value, width, height, stream):
        place = int(address), pitch * (height - 1) + 4 * width
        self._write_later("cuMemsetD2D32Async", address, pitch, value, width, height, stream, place=place)

    # -- kernels and graphs --------------------------------------------------------------------------------------------

    def _cuDeviceGetAttribute(self, attribute, device):
        if attribute == real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
            return MULTIPROCESSORS
        return super()._cuDeviceGetAttribute(attribute, device)

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function, threads, shared):
        return 2

    def _cuLibraryLoadData(self, code, *options):
        handle = super()._cuLibraryLoadData(code, *options)
        self._images[int(handle)] = kernel_of(code)
        return handle

    def _cuLibraryGetKernel(self, library, name):
        kernel = self._images[int(library)]
        if name != kernel.text.name.encode():
            return CODE.CUDA_ERROR_NOT_FOUND, None
        handle = super()._cuLibraryGetKernel(library, name)
        self._functions[int(handle)] = kernel
        return handle

    def _cuKernelGetFunction(self, kernel):
        handle = super()._cuKernelGetFunction(kernel)
        self._functions[int(handle)] = self._functions[int(kernel)], self.contexts[-1]
        return handle

    def _cuLaunchKernel(self, handle, blocks, y, z, threads, threads_y, threads_z, shared, stream, packed, extra):
        assert (y, z, threads_y, threads_z, shared, extra) == (1, 1, 1, 1, 0, 0)
        kernel, context = self._functions[int(handle)]
        assert context == self.contexts[-1], "a kernel of another GPU"
        numbers, known = numbers_at(packed, len(kernel.text.parameters)), self.known[self.ordinal]
        self.launches.append((blocks, threads, int(stream), numbers))
        self.enqueue(stream, lambda: kernel.launch(blocks, threads, numbers, known, **self.way))

    def _cuStreamBeginCapture(self, stream, mode):
        stream = self.stream_at(stream)
        assert stream.capture is None
        stream.capture = Capture(mode)

    def _cuStreamEndCapture(self, stream):
        capture = self.stream_at(stream).capture
        if capture.thread != threading.get_ident():
            return CODE.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, None
        for each in self._capturing():
            if each.capture is capture:
                each.capture = None
        if not capture.valid:
            return CODE.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        graph = self._new_handle(real.CUgraph)
        self._graphs[int(graph)] = capture.nodes
        return graph

    def _cuGraphInstantiate(self, graph, flags):
        handle = self._new_handle(real.CUgraphExec)
        self._graphs[int(handle)] = list(self._graphs[int(graph)])
        return handle

    def _cuGraphDestroy(self, graph):
        if self._graphs.pop(int(graph), None) is None:
            return CODE.CUDA_ERROR_INVALID_VALUE, None

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGraphLaunch(self, graph, stream):
        for run in self._graphs[int(graph)]:
            self.enqueue(stream, run)


@functools.cache
def kernel_of(image):
    """The `Kernel` of a program's image, which is its PTX."""
    return Kernel(image.decode())


class Products:
    """Matrix products of Muon in the place of a library's: NumPy's, in the order of the stream."""

    def __init__(self, driver, device):
        self._driver, self._device, self._used = driver, device, []

    def products(self, matrices, empty):
        """What makes these matrices orthogonal."""
        return HostProducts(matrices, matrices[0].dtype)

    def view(self, address, shape, dtype):
        """An array over memory of the GPU."""
        array = table_at(address, 1, math.prod(shape), dtype.type).reshape(shape)
        self._used.append((address, array.nbytes))
        return array

    def enqueue(self, stream, multiply):
        """Have it done later, and note that all its arrays were then written."""

        def run():
            multiply()
            for address, nbytes in self._used:
                self._driver.note_writing(address, nbytes)

        with self._device.current():
            self._driver.enqueue(stream, run)


_installed: list["RunningDriver"] = []


def adopt(array):
    """Let the kernels of whatever driver there is touch a NumPy array."""
    for driver in _installed:
        low, high = np.lib.array_utils.byte_bounds(array)
        if array.size and not driver.known[0].holds(low, high - low):
            driver.adopt(low, high - low, array)


def adopt_storage(tensor):
    """The same for the memory of a tensor of torch, which lives as long as the driver: nobody knows what shares it."""
    storage = tensor.untyped_storage()
    for driver in _installed:
        if storage.nbytes() and not driver.known[0].holds(storage.data_ptr(), storage.nbytes()):
            driver.kept.append(storage)
            driver.adopt(storage.data_ptr(), storage.nbytes(), driver)


def finish_all():
    """Let all that was enqueued happen, before a test looks at the memory of arrays itself."""
    for driver in _installed:
        driver.finish_all()


def keep_ptx(patch):
    """Have the image of a program be its PTX, and be kept on disk as such."""
    toolkit = _cuda_jit.toolkit
    patch.setattr(_cuda_jit, "_linked", lambda ptx, capability: (ptx.encode(), ""))
    patch.setattr(_cuda_jit, "toolkit", lambda capability: (*toolkit(capability), "as PTX"))


def install(patch, driver):
    """Have fastopt find GPUs that a `RunningDriver` makes up. What it takes in of arrays there is adopted.

    Parameters
    ----------
    patch : pytest.MonkeyPatch
    driver : RunningDriver
    """
    view = Gpu.view

    def adopted(place, name, array):
        found = view(place, name, array)
        low, high = byte_range(found.address, found)
        if found.size and not driver.known[place.ordinal].holds(low, high - low):
            driver.kept.append(array)
            driver.adopt(low, high - low, driver, place.ordinal)
        return found

    _installed.append(driver)
    patch.setattr("cuda.bindings.driver", driver)
    patch.setattr(gpu, "_devices", {})
    keep_ptx(patch)
    patch.setattr(muon, "_library_of", lambda plan: Products(driver, plan.work.device))
    patch.setattr(Gpu, "view", adopted)
    calls.bindings.cache_clear()


def remove(driver):
    """Let all happen that is still to happen, then look whether anything wrote to memory that was freed."""
    try:
        driver.finish_all()
        assert all((memory == 0xFF).all() for memory, _ in driver.graveyard), "something wrote to memory that was freed"
    finally:
        _installed.remove(driver)
        calls.bindings.cache_clear()
