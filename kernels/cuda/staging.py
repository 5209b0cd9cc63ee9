"""The host's side of copies: arrays as bytes, and page-locked memory that is used again once it was copied."""

import threading
from collections import defaultdict, deque
from contextlib import contextmanager

import numpy as np


def bytes_of(array):
    """The elements of an array of the host, one after the other, as uint8."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def require_fillable(array):
    """`ValueError` unless bytes can be written to an array one after the other."""
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError("memory of a GPU can be downloaded to a contiguous, writeable array only")


class Staging:
    """Page-locked memory that uploads go through: a ring of buffers for each power of two bytes up to `LARGEST`.

    The oldest buffer of a ring is taken if it is free; while the ring is short, a new one is made otherwise, and only a
    ring of full `length` waits, for what was enqueued so many uploads ago.

    ``make(nbytes)`` makes a buffer: it has the uint8 array ``memory``, ``is_free()`` and ``wait()``.
    """

    SMALLEST = 1 << 12
    LARGEST = 1 << 20
    RING = 1 << 22  # bytes of a ring that is full

    def __init__(self, make):
        self._make = make
        self._rings = defaultdict(deque)
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, content):
        """A buffer that begins with the bytes of ``content``. Inside, enqueue the copy, then record its event."""
        size = max(self.SMALLEST, 1 << (content.nbytes - 1).bit_length())
        with self._lock:
            ring = self._rings[size]
            buffer = self._taken(ring, size)
            buffer.memory[: content.nbytes] = content
            yield buffer
            ring.append(buffer)

    @classmethod
    def length(cls, size):
        """Buffers of a full ring."""
        return max(4, cls.RING // size)

    def _taken(self, ring, size):
        if ring and ring[0].is_free():
            return ring.popleft()
        if len(ring) < self.length(size):
            return self._make(size)
        ring[0].wait()
        return ring.popleft()
