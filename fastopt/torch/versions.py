"""Whether tensors have been written to, by the versions that torch counts."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch

from .._torch import versions_of
from .snapshot import are_same


def note_writing(tensors: list[Any]) -> None:
    """Tell autograd that tensors were written to, which it must know that has saved some for a backward pass.

    If torch does not let that be told, the step has been done all the same: a warning says what is not noticed now.
    """
    try:
        torch.autograd.graph.increment_version(tensors)
    except Exception as error:
        warnings.warn(
            f"torch {torch.__version__} was not told that parameters were updated ({error}): a backward pass through "
            "values from before the step is not refused, and gives wrong gradients",
            RuntimeWarning,
            stacklevel=2,
        )


class Zeroed:
    """Gradients that a step has left at zero, to be recognised as long as nobody writes to them."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Any]] = []
        self._versions: list[int] | None = None

    def note(self, grads: list[Any]) -> None:
        """Remember gradients that are at zero now."""
        if not are_same(grads, self._alive()):
            self._references = list(map(weakref.ref, grads))
        self._versions = versions_of(grads)

    def are(self, grads: list[Any]) -> bool:
        """Whether these are the same, all at zero still."""
        return self._versions is not None and are_same(grads, self._alive()) and versions_of(grads) == self._versions

    def _alive(self) -> list[Any]:
        return [reference() for reference in self._references]
