"""Dicts and lists that are watched: whether one has been changed is seen without looking into any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..kernels import object_reader


class Watch:
    """Recognises dicts and lists as those that they were when it was made, with what was in them then.

    Of what they hold only the identity counts: a list or tensor among it may have changed.

    Parameters
    ----------
    dicts, lists : iterable
    """

    def __init__(self, dicts: Iterable[dict[Any, Any]], lists: Iterable[list[Any]] = ()) -> None:
        self._kept = list(dicts), [(each, list(each)) for each in lists]
        tag = object_reader.offset_of_tag()
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
