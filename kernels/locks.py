"""Locks that ``with`` gives back whatever a signal's handler raises, on every Python.

Python 3.14 also looks for signals between the call of a lock's ``__enter__``, which is in C, and the block; what a
handler raises there skips ``__exit__``, and the lock stays held (https://github.com/python/cpython/issues/148874). It
does not look as a function in Python returns.
"""

import sys
import threading
from typing import Any

_RLock: Any = type(threading.RLock())


class _Returned(_RLock):
    """A lock whose ``__enter__`` is in Python: until that has returned, it gives back what it has taken."""

    def __enter__(self):
        before = self._recursion_count()
        try:
            return self.acquire()
        except BaseException:
            if self._recursion_count() > before:
                self.release()
            raise


if sys.version_info[:2] == (3, 14):
    Lock = _Returned  # whoever must not take it twice asks `locked` first
    RLock = _Returned
else:
    Lock = threading.Lock
    RLock = threading.RLock
