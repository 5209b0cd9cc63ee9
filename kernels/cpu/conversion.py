"""Whole arrays from numbers to a storage format and back: when an optimizer is built, and when state is exchanged."""

import functools
from typing import Any

import numpy as np

from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, table_at
from ..formats import BLOCK, FORMATS
from ..formats.kept import PARTS
from . import launch
from .rowwise import bins_of
from .streams import addresses_of, stream_of

# Replaced in each specialisation.
DTYPE = np.float32
OPEN: Any = None
LOAD: Any = None
STORE: Any = None
CLOSE: Any = None

FIELDS = PARTS + 2
"""Numbers of a `_Work`: addresses of two parts, of the scales, of the numbers; and how many these are."""


def decode_all(first, last, handle, options):
    """Decode the blocks ``first`` to ``last``."""
    own, staged = array_at(handle, 0, FIELDS, np.int64), np.empty((1, BLOCK), np.float32)
    parts = table_at(handle, PARTS, 1, np.int64)
    for offset in range(first * BLOCK, min(last * BLOCK, own[PARTS + 1]), BLOCK):
        size = min(BLOCK, own[PARTS + 1] - offset)
        arrays, numbers = OPEN(parts, 0, offset, size, staged), array_at(own[PARTS], offset, size, DTYPE)
        for i in range(size):
            numbers[i] = LOAD(arrays, i)


def encode_all(first, last, handle, options):
    """Encode them, without noise."""
    own, staged = array_at(handle, 0, FIELDS, np.int64), np.empty((1, BLOCK), np.float32)
    parts = table_at(handle, PARTS, 1, np.int64)
    for offset in range(first * BLOCK, min(last * BLOCK, own[PARTS + 1]), BLOCK):
        size = min(BLOCK, own[PARTS + 1] - offset)
        arrays, numbers = OPEN(parts, 0, offset, size, staged), array_at(own[PARTS], offset, size, DTYPE)
        for i in range(size):
            STORE(arrays, i, numbers[i], np.uint32(0))
        CLOSE(arrays)


class _Work:
    """The tables of one conversion; see `launch.Work`."""

    def __init__(self, kind, parts, numbers):
        self._own = np.array([*addresses_of(FORMATS[kind], parts), numbers.ctypes.data, numbers.size], np.int64)
        self.handle, self.elements, self.count = self._own.ctypes.data, numbers.size, -(-numbers.size // BLOCK)

    def bins(self, threads):
        """Boundaries that split the blocks into ``threads`` ranges."""
        return bins_of(self.count, threads)


def decoded(kind, parts, size, dtype):
    """Numbers that are kept in a format, by name, in the order in which they lie in memory.

    Parameters
    ----------
    kind : str
    parts : list of arrays without gaps
        The format's, then the scales if it has such.
    size : int
    dtype : numpy.dtype
        float32 or float64.
    """
    numbers = np.empty(size, dtype)
    if size:
        launch.launch(_compiled(decode_all, kind, numbers.dtype), _Work(kind, parts, numbers), 0)
    return numbers


def encode(kind, parts, numbers):
    """Keep numbers, an array [size] of float32 or float64, in a format: the nearest that it has."""
    kind = kind.removesuffix(" at random")
    if numbers.size:
        launch.launch(_compiled(encode_all, kind, numbers.dtype), _Work(kind, parts, numbers), 0)


def encoding(kind, parts, numbers):
    """Return a C function that keeps what ``numbers`` hold then, as `encode` does, on one thread; and what it needs."""
    work, kernel = _Work(kind, parts, numbers), _compiled(encode_all, kind, numbers.dtype)
    return functools.partial(kernel.run, 0, work.count, work.handle, 0), (work, parts, numbers)


@functools.cache
def _compiled(function, kind, dtype):
    format = FORMATS[kind]
    stream = stream_of(format, 0, dtype.type)
    bindings = {"DTYPE": dtype.type, **{name.upper(): each for name, each in stream._asdict().items()}}
    name = f"{kind.replace(' ', '-')}_{dtype.name}"
    digest = fingerprint(format.decode, format.encode)
    return launch.compiled(function, bindings, name, digest and f"{digest} {name}")
