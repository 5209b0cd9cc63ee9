"""How much memory an optimizer's parameters and state take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .formats import formats_of, parts_of
from .parameters import Parameter, collect, parameter_of, settings_of


class Memory(NamedTuple):
    """What `Optimizer.memory` found.

    Attributes
    ----------
    elements : int
        Of all parameters.
    bytes : dict of str to int
        "parameters", each slot by its name, what is kept beside it or the parameters, "gradients", if they are of the
        parameters' dtype, and "in float32" what stands in for parameters of 16 bits.
    """

    elements: int
    bytes: dict[str, int]

    @property
    def state(self) -> int:
        """Bytes of all that the optimizer adds: neither parameters nor gradients."""
        return sum(size for name, size in self.bytes.items() if name not in ("parameters", "gradients"))

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.bytes.values())

    @property
    def per_element(self) -> dict[str, float]:
        """The same as `bytes`, for each element of the parameters."""
        return {name: size / max(self.elements, 1) for name, size in self.bytes.items()}


def memory_of(optimizer: Any, params: Any, overrides: Mapping[str, Mapping[str, Any]] | None) -> Memory:
    """See `Optimizer.memory`."""
    if params is not None:
        are_shapes = isinstance(params, (list, tuple)) and params and all(map(_is_shape, params))
        return count(optimizer, (parameters_of if are_shapes else collect)(params, overrides))
    optimizer._require_built("memory() without parameters")
    if overrides is not None:
        raise ValueError("memory: overrides belong to params, and there are none")
    return _counted(optimizer, optimizer._parameters, optimizer._kept_as)


def count(optimizer: Any, parameters: list[Parameter]) -> Memory:
    """Count what an optimizer would take that were built with these parameters."""
    parameters = [_in_float32(p) if p.trainable and optimizer._is_stepped_in_float32(p) else p for p in parameters]
    kept_as = [formats_of(optimizer, p, optimizer._branch(p)) if p.trainable else () for p in parameters]
    return _counted(optimizer, parameters, kept_as)


def parameters_of(
    shapes: Iterable[tuple[int, ...]],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> list[Parameter]:
    """Make parameters of shapes, to be counted and not to be stepped: their arrays are one element, seen many times.

    Parameters
    ----------
    shapes : iterable of tuple of int
    overrides : dict, optional
        As of `Optimizer.build`; the paths are numbers. A ``dtype`` of 16 bits is that of the parameters it is for.
    dtype : dtype
        Of the others: float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If an extent is negative, an array of the shape would have 2**63 bytes, or an override makes no sense.
    """
    shapes = list(shapes)
    paths = [str(number) for number in range(len(shapes))]
    return [
        parameter_of(path, _unfilled(path, shape, np.dtype(np.uint16 if "dtype" in own else dtype)), own)
        for path, shape, own in zip(paths, shapes, settings_of(paths, overrides), strict=True)
    ]


def _unfilled(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    extents = tuple(map(int, shape))
    if min(extents, default=0) < 0 or math.prod(extents) * dtype.itemsize >= 2**63:
        raise ValueError(
            f"parameter {path}: there is no array of the shape {extents}: expected extents of at least 0, and fewer "
            "than 2**63 bytes"
        )
    return np.broadcast_to(np.zeros((), dtype), extents)


def _in_float32(parameter: Parameter) -> Parameter:
    """`Parameter.in_float32` without memory."""
    return parameter._replace(array=np.broadcast_to(np.float32(0), parameter.array.shape), origin=parameter.array)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(extent, (int, np.integer)) for extent in value)


def _counted(optimizer: Any, parameters: list[Parameter], kept_as: Sequence[tuple[tuple[str, str], ...]]) -> Memory:
    found = {"parameters": sum(parameter.in_place.nbytes for parameter in parameters)}
    found["gradients"] = found["parameters"]
    if standing_in := sum(p.array.nbytes for p in parameters if p.kept_as and p.origin is not None):
        found["in float32"] = standing_in
    for parameter, formats in zip(parameters, kept_as, strict=True):
        if parameter.trainable:
            for name, size in _state_of(optimizer, parameter, dict(formats)).items():
                found[name] = found.get(name, 0) + size
    return Memory(sum(parameter.array.size for parameter in parameters), found)


def _state_of(optimizer: Any, parameter: Parameter, formats: dict[str, str]) -> dict[str, int]:
    """Bytes of each array of a parameter's state."""
    branch = optimizer._branch(parameter)
    slots = {**optimizer._slots_of(type(optimizer._scalars(branch, 1.0, 1))), **optimizer._extra_slots()}
    return {
        name: math.prod(parameter.shape_of(slot)) * np.dtype(slot.dtype or parameter.dtype).itemsize
        for name, slot in parts_of(formats, slots).items()
        if parameter.array.ndim in slot.axes
    }
