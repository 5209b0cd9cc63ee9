"""Huge pages for large state: the processor then looks up fewer addresses, which is some percent of a step."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

LARGE = 4 << 20
"""Bytes of memory that is worth it: NumPy asks for huge pages from here on, too."""

ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux's


def prefer_huge_pages(address: int, nbytes: int) -> None:
    """Ask the system for huge pages, where it gives them to those who ask (``madvise``); best before memory is written.

    It is a wish: small memory is left alone, and so is everything on systems that know no such advice.

    Parameters
    ----------
    address, nbytes : int
        Of memory that this process may write to.
    """
    if ADVICE is None or nbytes < LARGE:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = (address + nbytes - first) // mmap.PAGESIZE
    _madvise()(first, pages * mmap.PAGESIZE, ADVICE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
