"""Uploads that cost one call of the driver: for what a step tells the GPU."""

import weakref
from contextlib import suppress

import numpy as np

from .staging import bytes_of


class Outbox:
    """Page-locked rows that uploads go through. No event is needed to tell when one may be written again.

    The copy for a call comes before that call's launches in their stream: once the GPU has counted the call, the row
    that it was made from is free. Until then, `Device.upload` is used.

    Parameters
    ----------
    device : Device
    rows, nbytes : int
        How many rows, and how long each of them is.
    progress : int64 array
        Its number is that of the calls that the GPU has counted.
    starts : int64 array
        Its number changes when calls are counted anew, which must be while no step is under way.
    """

    LARGEST = 1 << 22
    """Bytes of all rows at most; beyond that everything goes through `Device.upload`."""

    def __init__(self, device, rows, nbytes, progress, starts):
        self._device, self._progress, self._starts = device, progress, starts
        self._shape = rows if rows * nbytes <= self.LARGEST else 0, nbytes
        self._memory, self._started = None, int(starts[0])
        self._calls = np.full(self._shape[0], -1)  # whose copy was last made from a row

    def send(self, call, content, address, stream):
        """Copy an array to the GPU, for a call and on a stream that is not being captured; it may change at once."""
        rows, nbytes = self._shape
        if self._started != self._starts[0]:
            self._started = int(self._starts[0])
            self._calls[:] = -1
        row = call % rows if rows else 0
        if not rows or self._calls[row] >= self._progress[0]:
            self._device.upload(address, content, stream)
            return
        if self._memory is None:
            self._memory = self._page_locked(rows * nbytes).reshape(rows, nbytes)
            self._address = self._memory.ctypes.data
        self._memory[row] = bytes_of(content)
        self._calls[row] = call
        self._device.send(address, self._address + row * nbytes, nbytes, stream)

    def _page_locked(self, nbytes):
        """Memory that goes to whoever needs some next when this is gone: giving it back would not wait for copies."""
        spare = self._device.spare
        memory = _taken(spare, nbytes)
        if memory is None:
            memory = self._device.pinned(nbytes)
        weakref.finalize(self, spare.append, (memory, self._calls, self._progress)).atexit = False
        return memory


def _taken(spare, nbytes):
    """So many bytes that no copy reads any more, or None. Other threads may take and give meanwhile."""
    for _ in range(len(spare)):
        with suppress(IndexError):
            memory, calls, progress = spare.popleft()
            if memory.nbytes == nbytes and calls.max() < progress[0]:
                return memory
            spare.append((memory, calls, progress))
    return None
