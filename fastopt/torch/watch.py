"""Dicts and lists that are watched: whether one has been changed is seen without looking into any."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..kernels import object_reader, reader

_WORDS = 8
"""Of 8 bytes, at the start of a dict."""


class Watch:
    """Recognises dicts and lists as those that they were when it was made, with what was in them then.

    Of what they hold only the identity counts: a list or tensor among it may have changed.

    Parameters
    ----------
    dicts, lists : iterable
    """

    def __init__(self, dicts: Iterable[dict[Any, Any]], lists: Iterable[list[Any]] = ()) -> None:
        self._kept = list(dicts), [(each, list(each)) for each in lists]
        tag = offset_of_tag()
        self._are_unchanged = None
        if tag is not None and _are_what_they_should_be(*self._kept):
            self._tables = _tables(*self._kept)
            self._handle = object_reader.handle_of(tag, self._tables)
            self._are_unchanged, self._note = object_reader.compiled()
            self._note(self._handle)

    def sees_no_change(self) -> bool:
        """Whether all are as they were; False also where that cannot be told at a glance, or one is something else."""
        return self._are_unchanged is not None and self._are_unchanged(self._handle)

    def accept(self) -> None:
        """Watch for changes of the dicts from now on."""
        if self._are_unchanged is not None:
            self._note(self._handle)


def _are_what_they_should_be(dicts: list[Any], lists: list[tuple[Any, list[Any]]]) -> bool:
    return all(isinstance(each, dict) for each in dicts) and all(isinstance(each, list) for each, _ in lists)


def _tables(dicts: list[Any], lists: list[tuple[list[Any], list[Any]]]) -> object_reader.Watched:
    return object_reader.Watched(
        np.array([(id(each), 0) for each in dicts], np.int64).reshape(-1, 2),
        np.array([(id(each), len(items)) for each, items in lists], np.int64).reshape(-1, 2),
        np.array([id(item) for _, items in lists for item in items], np.int64),
    )


def _word(found: Any, offset: int) -> int:
    return ctypes.c_int64.from_address(id(found) + offset).value


@functools.cache
def offset_of_tag() -> int | None:
    """Offset of the 8 bytes in a dict that every change renews, and nothing else; None where there are none."""
    if reader.compiled() is None or not _lists_are_known():
        return None
    first = object.__basicsize__
    offsets = range(first, min(dict.__basicsize__, 8 * _WORDS), 8)
    found = [offset for offset in offsets if _renews(offset)]
    return found[0] if len(found) == 1 else None


_CHANGES: list[Callable[[dict[Any, Any]], Any]] = [
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
_READINGS: list[Callable[[dict[Any, Any]], Any]] = [
    lambda d: d["a"],
    lambda d: d.get("none"),
    lambda d: dict(d),
    lambda d: list(d.items()),
    lambda d: d.setdefault("a", 9),
    lambda d: {**d},
]


def _renews(offset: int) -> bool:
    """Whether each change of a dict gives the word at an offset a value that it never had, and no reading does."""
    seen: list[int] = []
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


def _lists_are_known() -> bool:
    example = [object(), object()]
    items = ctypes.c_int64.from_address(id(example) + reader.ITEMS).value
    return _word(example, reader.SIZE) == 2 and ctypes.c_int64.from_address(items).value == id(example[0])
