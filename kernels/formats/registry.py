"""Which formats there are, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import inlined_callee

BLOCK = 256
"""Elements that share a scale, in formats that have scales: side by side in memory, from a segment's first on."""


class Format(NamedTuple):
    """How numbers are kept in memory.

    ``decode(stored, scale)`` gives a float32, ``encode(number, scale, noise)`` what is stored: a tuple of a number for
    each part. ``scale`` is the largest size in the block: a float32 that is normal or 0, or NaN if a number in
    the block is; 1 for formats without scales. ``noise`` is a whole number in [0, 2**16), evenly distributed, that
    formats which are not noisy must not use.
    """

    name: str
    parts: tuple[np.dtype[Any], ...]  # one or two arrays, an element for each number
    decode: Callable[..., Any]
    encode: Callable[..., Any]
    scaled: bool = False  # whether blocks have scales
    noisy: bool = False  # whether numbers are rounded at random


FORMATS: dict[str, Format] = {}
"""Name → format."""

OWN: list[str] = []
"""Names of formats that users have registered, for slots."""


def add(name, parts, decode, encode, **what):
    """Register a format, whose functions are `callee`; ``what`` are further fields."""
    FORMATS[name] = Format(name, tuple(np.dtype(part) for part in parts), decode, encode, **what)
    return FORMATS[name]


def _decode_float32(stored, scale):
    return stored[0]


def _encode_float32(number, scale, noise):
    return (number,)


add("float32", ["f4"], inlined_callee(_decode_float32), inlined_callee(_encode_float32))
