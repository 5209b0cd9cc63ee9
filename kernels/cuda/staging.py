"""Page-locked memory of the host that uploads go through, used again once the copy out of it is done."""

import ctypes
import threading
from collections import defaultdict, deque
from contextlib import contextmanager


class Staging:
    """A ring of buffers for each power of two bytes up to `LARGEST`.

    The oldest buffer of a ring is taken if it is free; while the ring is short, a new one is made otherwise, and only a
    ring of full length waits, for what was enqueued `LENGTH` uploads ago.

    ``make(nbytes)`` makes a buffer: it has an ``address`` and ``event``, ``is_free()`` and ``wait()``.
    """

    SMALLEST = 1 << 12
    LARGEST = 1 << 20
    LENGTH = 32

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
            ctypes.memmove(buffer.address, content.ctypes.data, content.nbytes)
            yield buffer
            ring.append(buffer)

    def _taken(self, ring, size):
        if ring and ring[0].is_free():
            return ring.popleft()
        if len(ring) < self.LENGTH:
            return self._make(size)
        ring[0].wait()
        return ring.popleft()
