"""What a training loop keeps of its own, as JSON and arrays, and back: with the types it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .header import CODES

TAG = "$"
"""A dict with this key stands for what JSON lacks."""

Array = np.ndarray[Any, Any]


def encoded(value: Any) -> tuple[Any, list[Array]]:
    """A value as what JSON can hold, and the arrays in it.

    Raises
    ------
    TypeError, ValueError
        If it holds something else than None, bools, numbers, texts, bytes, lists, tuples, dicts of such keys, NumPy's
        arrays and numbers; or itself.
    """
    arrays: list[Array] = []
    try:
        return _encoded(value, "extra", arrays), arrays
    except RecursionError:
        raise ValueError("extra is nested too deeply, or holds itself") from None


def _encoded(value: Any, where: str, arrays: list[Array]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_encoded(each, f"{where}[{k}]", arrays) for k, each in enumerate(value)]
    if kind is tuple:
        return {TAG: "tuple", "of": _encoded(list(value), where, arrays)}
    if kind is bytes:
        return {TAG: "bytes", "of": value.hex()}
    if isinstance(value, Mapping):
        if TAG not in value and all(type(key) is str for key in value):
            return {key: _encoded(each, f"{where}[{key!r}]", arrays) for key, each in value.items()}
        pairs = [[_encoded(key, f"a key of {where}", arrays), each] for key, each in value.items()]
        return {TAG: "dict", "of": [[key, _encoded(each, f"{where}[...]", arrays)] for key, each in pairs]}
    if isinstance(value, (np.ndarray, np.generic)) and _code(value):
        arrays.append(np.asarray(value))
        return {TAG: "array" if isinstance(value, np.ndarray) else "number", "of": len(arrays) - 1}
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}: a checkpoint holds None, bools, numbers, str, bytes, "
        "lists, tuples, dicts and NumPy arrays of numbers; make one of these of it"
    )


def _code(value: Any) -> str:
    """The array's dtype as the file calls it; "" if it has none there."""
    return "BF16" if value.dtype.name == "bfloat16" else CODES.get(value.dtype.newbyteorder("="), "")


def code_of(array: Array) -> str:
    """The dtype, as the file calls it, of an array that `encoded` gave."""
    return _code(array)


def decoded(value: Any, arrays: list[Any]) -> Any:
    """What was `encoded`; ``arrays`` are those that came of it, each used once.

    Raises
    ------
    ValueError
        If it is not what `encoded` makes.
    """
    used: list[int] = []
    try:
        found = _decoded(value, arrays, used)
    except (RecursionError, TypeError, ValueError, KeyError):
        raise ValueError("its extra cannot be read") from None
    if used != list(range(len(arrays))):
        raise ValueError("its extra does not have the arrays that it names")
    return found


def _decoded(value: Any, arrays: list[Any], used: list[int]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, arrays, used) for each in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decoded(each, arrays, used) for key, each in value.items()}
    kind, content = value[TAG], value["of"]
    if kind == "tuple":
        return tuple(_decoded(content, arrays, used))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {_decoded(key, arrays, used): _decoded(each, arrays, used) for key, each in content}
    if kind not in ("array", "number") or content != len(used) or content >= len(arrays):
        raise ValueError(kind)
    used.append(content)
    array = as_given(arrays[content])
    return array if kind == "array" else array[()]


def as_given(stored: Any) -> Array:
    """A stored array in memory, one of bfloat16 as such."""
    array = np.asarray(stored)
    if stored.code != "BF16":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    from ml_dtypes import bfloat16

    return array.view(bfloat16)
