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
from .kernels.cpu.engines import takes_formats
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


class StandIns:
    """The part of an optimizer that knows which arrays stand in for others, and copies them."""

    _branch: Callable[[Parameter], str]
    _needs_c_order: Callable[[Parameter], bool]
    _scalars: Callable[[str, float, int], tuple[float, ...]]
    _stand_ins: list[StandIn]

    def _stood_in_for(self, parameter: Parameter) -> Parameter:
        """A parameter as its rule can step it: as it is, or with an array that stands in for its own."""
        if self._is_stepped_in_float32(parameter):
            parameter = parameter.in_float32()
        if not self._needs_c_order(parameter):
            return parameter
        if parameter.origin is not None:
            raise TypeError(
                f"parameter {parameter.path}: this rule steps arrays of {parameter.kept_as} in C order only: pass such"
            )
        return parameter.in_c_order()

    def _is_stepped_in_float32(self, parameter: Parameter) -> bool:
        """Whether it is of 16 bits, which its rule cannot take: float32 numbers stand in for it."""
        takes = not parameter.kept_as or takes_formats(type(self._scalars(self._branch(parameter), 1.0, 1)))
        return not (takes or parameter.place.on_gpu)

    def _read_stand_ins(self) -> None:
        """Copy those of the user's arrays that something stands in for; in order."""
        for stand_in in self._stand_ins:
            stand_in.read()

    def _write_back(self) -> None:
        """Copy what stands in for some of the user's arrays into them."""
        for stand_in in self._stand_ins:
            stand_in.writing()()
