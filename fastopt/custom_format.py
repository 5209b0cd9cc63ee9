"""A user's own storage format for slots."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .kernels.compile._jit import callee
from .kernels.formats import FORMATS, OWN
from .kernels.formats.registry import add
from .parameters import SLOT_DTYPES, check_flag

_PARTS = "int8", "uint8", "int16", "uint16", "int32", "uint32", "float32"


def register_format(
    name: str,
    decode: Callable[..., Any],
    encode: Callable[..., Any],
    parts: Sequence[Any],
    *,
    scaled: bool = False,
    noisy: bool = False,
) -> str:
    """Make a storage format for slots of your own: ``slot_dtype=name`` chooses it.

    Parameters
    ----------
    name : str
        An identifier.
    decode : function
        ``(stored, scale) -> number``: from a tuple of what is stored, a number for each of ``parts``, and a float32.
        Zeros must give zero, whatever the scale: slots start so.
    encode : function
        ``(number, scale, noise) -> stored``: the other way, from a float32. Both are plain functions in the language
        that Numba compiles.
    parts : sequence of dtypes
        One or two: int8, uint8, int16, uint16, int32, uint32 or float32.
    scaled : bool
        Whether ``scale`` is the largest size among 256 numbers that follow each other, and kept with them; NaN if one
        of these is NaN. Otherwise it is 1. Only with one part, and parameters of at least 4096 elements.
    noisy : bool
        Whether ``noise`` is a random whole number in [0, 65536), as of `fastopt.formats`. Otherwise it is not to be
        used.

    Returns
    -------
    str
        The name.

    Raises
    ------
    TypeError, ValueError
        If the pieces do not fit together; the functions are tried on a few numbers first.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.register_format(
    ...     "linear8",
    ...     lambda stored, scale: stored[0] * scale / np.float32(127),
    ...     lambda number, scale, noise: (np.int8(round(number / scale * 127)) if scale > 0 else np.int8(0),),
    ...     ["int8"],
    ...     scaled=True,
    ... )
    'linear8'
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"the name of a format must be an identifier, got {name!r}")
    if name in FORMATS or name in SLOT_DTYPES:
        raise ValueError(f"there is a format {name!r} already: choose another name")
    for key, function in (("decode", decode), ("encode", encode)):
        if not inspect.isfunction(function):
            raise TypeError(f"{name}: {key} must be a plain function, got {type(function).__name__}")
    check_flag(f"{name}: scaled", scaled)
    check_flag(f"{name}: noisy", noisy)
    dtypes = [np.dtype(part) for part in parts]
    if not 1 <= len(dtypes) <= (1 if scaled else 2) or any(dtype.name not in _PARTS for dtype in dtypes):
        raise ValueError(
            f"{name}: parts must be one dtype, or two of a format without scales, of {', '.join(_PARTS)}; got {parts!r}"
        )
    for number in (0.0, 1.0, -0.75):
        _try(name, decode, encode, dtypes, np.float32(number))
    add(name, dtypes, callee(decode), callee(encode), scaled=scaled, noisy=noisy)
    OWN.append(name)
    return name


def _try(name: str, decode: Any, encode: Any, dtypes: list[np.dtype[Any]], number: np.float32) -> None:
    try:
        with np.errstate(all="ignore"):
            stored = encode(number, np.float32(1), np.uint32(0))
            kept = tuple(dtype.type(part) for dtype, part in zip(dtypes, stored, strict=True))
            float(decode(kept, np.float32(1)))
            zero = float(decode(tuple(dtype.type(0) for dtype in dtypes), np.float32(0)))
    except Exception as error:
        raise TypeError(f"{name}: encoding and decoding {number} fails: {error!r}") from error
    if not isinstance(stored, tuple):
        raise TypeError(f"{name}: encode must return a tuple, got a {type(stored).__name__}")
    if zero != 0.0:
        raise ValueError(f"{name}: what is stored as zero must be decoded to zero, and is {zero}: slots start so")
