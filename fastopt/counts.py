"""What steps count, and say of the last one: in memory that compiled code knows."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from .kernels.clipping import NORM, Clipping

Call = Callable[[], Any]
"""Part of a step: a C function with its arguments, see `launch.one_call`."""


class Counts:
    """Counters of an optimizer, and what is told of its last step.

    Attributes
    ----------
    numbers : array.array of two int64
        Updates so far, and steps of any kind.
    told : float64 array
        A `Clipping`, in which the norm of the last step's gradients is found.
    has_norm : bool
        Whether that was needed.
    skipped : bool
        Whether the last step was left out: a gradient was not finite.
    """

    def __init__(self) -> None:
        self.numbers = array("q", [0, 0])
        self.told = np.zeros(len(Clipping._fields))
        self.has_norm = self.skipped = False

    def copy(self) -> Counts:
        """The same counts, in memory of their own."""
        other = Counts()
        other.__dict__.update(self.__dict__, numbers=array("q", self.numbers), told=self.told.copy())
        return other

    @property
    def updates(self) -> int:
        """Updates of the parameters so far."""
        return self.numbers[0]

    @property
    def calls(self) -> int:
        """Steps so far, those that only accumulate included."""
        return self.numbers[1]

    def counting(self, updates: int, calls: int) -> Call:
        """Return the C function that sets both counters."""
        return partial(setitem, self.numbers, slice(2), array("q", [updates, calls]))

    @property
    def norm(self) -> float | None:
        """Norm of the last step's gradients before clipping; None if it was not needed."""
        return float(self.told[NORM]) if self.has_norm else None

    def noting(self, norm: float) -> list[Call]:
        """Return the C functions that note the norm of a step's gradients."""
        return [partial(setitem, self.told, NORM, norm), partial(vars(self).update, has_norm=True)]

    def take_over(self, norm: float | None, skipped: bool) -> None:
        """Say of the last step what was found."""
        self.has_norm, self.skipped = norm is not None, skipped
        if norm is not None:
            self.told[NORM] = norm
