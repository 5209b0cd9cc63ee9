"""Threads and shared arrays for Numba's CUDA simulator, in the place of its own while a kernel runs.

The simulator asks its threads in turn whether they have come to a barrier, which takes most of its time, and two
threads that come to ``cuda.shared.array`` at once may be given an array each. Here they sleep, and share.
"""

import sys
import threading
from typing import Any

import numpy as np

from ._numba_cuda import instead_of_the_simulators, simulated_thread

_launching = threading.Lock()  # the simulator runs one kernel at a time


class Barrier:
    """Where so many threads wait for each other; those that have ended are not waited for."""

    def __init__(self, threads):
        self._threads, self._waiting, self._round, self._broken = threads, 0, 0, False
        self._changed = threading.Condition()

    def wait(self):
        """Wait for all that have not ended."""
        with self._changed:
            own = self._round
            self._waiting += 1
            self._open_if_all_wait()
            self._changed.wait_for(lambda: self._round != own or self._broken)
            if self._broken:
                raise threading.BrokenBarrierError

    def leave(self):
        """Call at the end of a thread."""
        with self._changed:
            self._threads -= 1
            self._open_if_all_wait()

    def abort(self):
        """Have all that wait raise."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()

    def _open_if_all_wait(self):
        if self._waiting == self._threads:
            self._waiting = 0
            self._round += 1
            self._changed.notify_all()


class Block:
    """What runs the threads of one block, in the place of ``BlockManager``."""

    def __init__(self, function, grid, block, debug):
        self._function, self._grid_dim, self._block_dim = function, grid, block

    def run(self, position, *arguments):
        """Run all threads to their end; what one of them raises comes out."""
        members = list(np.ndindex(*self._block_dim))
        barrier, errors = Barrier(len(members)), []

        def run():
            try:
                with np.errstate(all="ignore"):  # a GPU warns of nothing; NumPy's setting is one per thread
                    self._function(*arguments)
            except BaseException as error:
                thread: Any = threading.current_thread()  # a `simulated_thread`
                error.add_note(f"in thread {thread.thread_id} of block {position}")
                errors.append(error)
                barrier.abort()
            finally:
                barrier.leave()

        threads = [simulated_thread(run, self, position, member) for member in members]
        for thread in threads:
            thread.syncthreads = barrier.wait
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class Shared:
    """``cuda.shared`` of a block's threads, which know an array by the line that asks for it."""

    def __init__(self, nbytes):
        self._arrays, self._lock = {}, threading.Lock()

    def array(self, shape, dtype):
        """The array of the line that calls."""
        caller = sys._getframe(1)
        with self._lock:
            place = caller.f_code, caller.f_lineno
            if place not in self._arrays:
                self._arrays[place] = np.empty(shape, dtype)
            return self._arrays[place]


def launch(kernel, blocks, threads, *numbers):
    """Run what `fastopt.kernels.cuda._cuda_jit.simulated` returns; an error that a thread raises comes out."""
    with _launching, instead_of_the_simulators(Block, Shared):
        kernel[blocks, threads](*numbers)
