"""Whether Python's own dicts and lists are as they were: hundreds of them in one compiled call.

A list is compared item by item. A dict has, up to Python 3.12, a number that every change of it renews and no other
dict ever has (PEP 509).
"""

import ctypes
import functools
from typing import NamedTuple

import numpy as np
from numba import types

from ._jit import callee, entry_point, specialise
from .intrinsics import array_at, table_at
from .reader import ITEMS, SIZE, layout_is_known

WORDS = 8
"""Of 8 bytes, at the start of a dict, that may be its tag."""


class Watched(NamedTuple):
    """Tables of what is watched. Whoever has one keeps the objects alive."""

    dicts: np.ndarray  # int64 [dicts, 2]: address, tag
    lists: np.ndarray  # int64 [lists, 2]: address, number of items
    items: np.ndarray  # int64: addresses of all items, list by list


def are_unchanged(handle):
    """Whether all dicts and lists of a `Watched` are as they were; the GIL is held."""
    tag, dicts, lists, items = _unpack(handle)
    for i in range(dicts.shape[0]):
        if word_at(dicts[i, 0] + tag) != dicts[i, 1]:
            return False
    first = 0
    for i in range(lists.shape[0]):
        address, size = lists[i, 0], lists[i, 1]
        if word_at(address + SIZE) != size:
            return False
        found = array_at(word_at(address + ITEMS), 0, size, np.int64)
        for k in range(size):
            if found[k] != items[first + k]:
                return False
        first += size
    return True


def note(handle):
    """Have the dicts of a `Watched` be as they are now; the GIL is held."""
    tag, dicts, _, _ = _unpack(handle)
    for i in range(dicts.shape[0]):
        dicts[i, 1] = word_at(dicts[i, 0] + tag)


@callee
def word_at(address):
    """The 8 bytes at an address."""
    return array_at(address, 0, 1, np.int64)[0]


@callee
def _unpack(handle):
    dicts, lists = table_at(handle[1], handle[2], 2, np.int64), table_at(handle[3], handle[4], 2, np.int64)
    return handle[0], dicts, lists, array_at(handle[5], 0, handle[6], np.int64)


def handle_of(tag, watched):
    """What `are_unchanged` needs to know, in one array; it does not keep the tables alive.

    Parameters
    ----------
    tag : int
        Offset of a dict's tag.
    watched : Watched
    """
    dicts, lists, items = watched
    tables = (dicts.ctypes.data, len(dicts), lists.ctypes.data, len(lists), items.ctypes.data, len(items))
    return np.array([tag, *tables], np.int64)


@functools.cache
def compiled():
    """`are_unchanged` and `note`, compiled."""
    handle = types.Array(types.int64, 1, "C")
    signatures = {are_unchanged: types.boolean(handle), note: types.void(handle)}
    return [
        entry_point(specialise(function, "objects", signature, {}, nogil=False, key="objects"))
        for function, signature in signatures.items()
    ]


def _word(found, offset):
    return ctypes.c_int64.from_address(id(found) + offset).value


@functools.cache
def offset_of_tag():
    """Offset of the 8 bytes in a dict that every change renews, and nothing else; None where there are none."""
    if not layout_is_known():
        return None
    first = object.__basicsize__
    offsets = range(first, min(dict.__basicsize__, 8 * WORDS), 8)
    found = [offset for offset in offsets if _renews(offset) and _is_renewed_by_attributes(offset)]
    return found[0] if len(found) == 1 else None


_CHANGES = [
    lambda d: d.__setitem__("a", 3),
    lambda d: d.__setitem__("new", 3),
    lambda d: d.__delitem__("a"),
    lambda d: d.update(a=4),
    lambda d: d.update({"b": 5}),
    lambda d: d.__ior__({"b": 6}),
    lambda d: d.setdefault("new", 7),
    lambda d: d.pop("b"),
    lambda d: d.popitem(),
    lambda d: d.clear(),
]
_READINGS = [
    lambda d: d["a"],
    lambda d: d.get("none"),
    lambda d: dict(d),
    lambda d: list(d.items()),
    lambda d: d.setdefault("a", 9),
    lambda d: {**d},
]


def _renews(offset):
    """Whether each change of a dict gives the word at an offset a value that it never had, and no reading does."""
    seen = []
    for change in _CHANGES:
        example = {"a": 1, "b": 2}
        seen.append(_word(example, offset))
        for read in _READINGS:
            read(example)
        if _word(example, offset) != seen[-1]:
            return False
        change(example)
        seen.append(_word(example, offset))
    return len(set(seen)) == len(seen)


class _Example:
    """Its instances have an attribute."""

    value: float


def _is_renewed_by_attributes(offset):
    """Whether the dict of an object shows that one of its attributes has been set, often too."""
    example, seen = _Example(), []
    own = example.__dict__
    for k in range(_OFTEN):
        example.value = float(k)
        seen.append(_word(own, offset))
    return len(set(seen)) == len(seen)


_OFTEN = 100
"""More than it takes until the interpreter replaces an instruction by a faster one."""
