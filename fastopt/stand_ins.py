"""Arrays that stand in for a user's, where a rule cannot step that.

A rule that looks at more than an element may need its parameter in C order, or in float32 where the user's is of 16
bits. What stands in is copied from the user's array before each step, and back after it, in one call with the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .device import Place
from .formats import flat_view
from .kernels.cpu.conversion import decoded, encoding
from .parameters import Parameter


class StandIn:
    """The array of a parameter, and the user's that it stands in for.

    Parameters
    ----------
    parameter : Parameter
        Whose ``origin`` is the user's.
    """

    def __init__(self, parameter: Parameter) -> None:
        self._place: Place = parameter.place
        self._array, self._origin, self._kind = parameter.array, parameter.origin, ""
        if parameter.array.dtype != parameter.in_place.dtype:
            self._kind = parameter.kept_as
            self._encoding, self._needed = encoding(self._kind, [self._origin], flat_view(self._array))

    def read(self) -> None:
        """Copy the user's array."""
        if self._kind:
            flat_view(self._array)[...] = decoded(self._kind, [self._origin], self._array.size, self._array.dtype)
        else:
            self._place.copy(self._array, self._origin)

    def writing(self) -> Callable[[], Any]:
        """What writes the user's array: a C function without arguments, to be called once."""
        return self._encoding if self._kind else self._place.copying(self._origin, self._array)
