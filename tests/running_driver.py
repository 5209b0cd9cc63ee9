"""A CUDA driver that runs what is given to it, late: kernels on Numba's simulator, in the order of streams and events.

What is enqueued waits until something needs it, or until a random moment; a copy reads and writes when it is carried
out. So what is used too early, or without a wait between streams, shows as wrong numbers. Memory that nobody wrote,
or that was freed, is all ones: NaN.
"""

import contextlib
import gc
import random
import re
import threading
from collections import deque

from cuda.bindings import driver as real
from fake_driver import CODE, CONTEXT, PRIMARY, UNSAFE_IN_CAPTURE, FakeDriver, numbers_at
from fastopt.kernels.cuda._cuda_jit import simulated
from fastopt.kernels.cuda.simulated_threads import launch

MODE = real.CUstreamCaptureMode
WARP = 32  # a launch has one block of so many threads, however many are asked for
STATUS = real.CUstreamCaptureStatus
LOADING = re.compile("cu(LibraryLoadData|KernelGetFunction)$")


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
    """

    def __init__(self, eagerness=(0.0, 0.0), seed=0):
        self._lock, self._local = threading.RLock(), threading.local()
        super().__init__()
        self.eagerness, self._random = eagerness, random.Random(seed)
        self.streams, self.events = {}, {}
        self.blocks, self.graveyard = {}, []  # address → (memory, bytes, GPU), or (memory, bytes) of what was freed
        self.programs, self._images, self._functions, self._graphs = {}, {}, {}, {}

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
        if not UNSAFE_IN_CAPTURE.match(name) and not LOADING.match(name):
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
        while not operation.done:
            first = operation.stream.queue[0]
            if first.ready:
                self._run_next(first.stream)
            else:
                self._complete(first.after)

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

    def _allocated(self, nbytes):
        address = super()._allocated(nbytes)
        self.blocks[address] = self.memory[address], nbytes, self.contexts[-1] - CONTEXT - PRIMARY
        return address

    def _cuMemFree(self, address):
        if int(address) not in self.blocks:
            return CODE.CUDA_ERROR_INVALID_VALUE, None
        self.finish_all()
        memory, nbytes, _ = self.blocks.pop(int(address))
        memory[:] = 0xFF
        self.graveyard.append((memory, nbytes))
        super()._cuMemFree(address)

    _cuMemFreeHost = _cuMemFree

    def _cuPointerGetAttribute(self, attribute, address):
        for start, (_, nbytes, ordinal) in self.blocks.items():
            if start <= int(address) < start + nbytes:
                return ordinal
        return CODE.CUDA_ERROR_INVALID_VALUE, None

    def _later(self, name, *arguments):
        """Do in a stream, the last argument, what a `FakeDriver` does at once."""
        does = getattr(super(), f"_{name}")
        self.enqueue(arguments[-1], lambda: does(*arguments))

    def _cuMemcpyHtoDAsync(self, *arguments):
        self._later("cuMemcpyHtoDAsync", *arguments)

    def _cuMemcpyDtoHAsync(self, *arguments):
        self._later("cuMemcpyDtoHAsync", *arguments)

    def _cuMemcpyDtoDAsync(self, *arguments):
        self._later("cuMemcpyDtoDAsync", *arguments)

    def _cuMemsetD8Async(self, *arguments):
        self._later("cuMemsetD8Async", *arguments)

    def _cuMemsetD2D32Async(self, *arguments):
        self._later("cuMemsetD2D32Async", *arguments)

    # -- kernels and graphs --------------------------------------------------------------------------------------------

    def image_of(self, program):
        """The same `Program`, with an image by which this driver knows its function."""
        image = f"{len(self.programs)}".encode()
        self.programs[image] = program
        return program._replace(image=image)

    def _cuLibraryLoadData(self, code, *options):
        handle = super()._cuLibraryLoadData(code, *options)
        self._images[int(handle)] = code
        return handle

    def _cuLibraryGetKernel(self, library, name):
        program = self.programs[self._images[int(library)]]
        if name != program.name.encode():
            return CODE.CUDA_ERROR_NOT_FOUND, None
        handle = super()._cuLibraryGetKernel(library, name)
        self._functions[int(handle)] = program.function
        return handle

    def _cuKernelGetFunction(self, kernel):
        handle = super()._cuKernelGetFunction(kernel)
        self._functions[int(handle)] = self._functions[int(kernel)], self.contexts[-1]
        return handle

    def _cuLaunchKernel(self, handle, blocks, y, z, threads, threads_y, threads_z, shared, stream, packed, extra):
        assert (y, z, threads_y, threads_z, shared, extra) == (1, 1, 1, 1, 0, 0)
        function, context = self._functions[int(handle)]
        assert context == self.contexts[-1], "a kernel of another GPU"
        runs, numbers = simulated(function), numbers_at(packed, function.__code__.co_argcount)
        self.enqueue(stream, lambda: launch(runs, 1, WARP, *numbers))

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
        handle = super()._cuGraphInstantiate(graph, flags)
        self._graphs[int(handle)] = list(self._graphs[int(graph)])
        return handle

    def _cuGraphDestroy(self, graph):
        if self._graphs.pop(int(graph), None) is None:
            return CODE.CUDA_ERROR_INVALID_VALUE, None

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGraphLaunch(self, graph, stream):
        for run in self._graphs[int(graph)]:
            self.enqueue(stream, run)
