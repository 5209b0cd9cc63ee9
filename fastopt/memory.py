"""How much memory an optimizer's parameters and state take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .formats import formats_of, parts_of
from .parameters import Parameter, collect


class Memory(NamedTuple):
    """What `Optimizer.memory` found.

    Attributes
    ----------
    elements : int
        Of all parameters.
    bytes : dict of str to int
        "parameters", each slot by its name, what is kept beside it or the parameters, and "gradients", if they are of
        the parameters' dtype.
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
    if params is None:
        optimizer._require_built("memory() without parameters")
        if overrides is not None:
            raise ValueError("memory: overrides belong to params, and there are none")
        parameters, kept_as = optimizer._parameters, optimizer._kept_as
    else:
        parameters = collect(_arrays(params), overrides)
        kept_as = [formats_of(optimizer, p, optimizer._branch(p)) if p.trainable else () for p in parameters]
    found = {"parameters": sum(parameter.array.nbytes for parameter in parameters)}
    found["gradients"] = found["parameters"]
    for parameter, formats in zip(parameters, kept_as, strict=True):
        if parameter.trainable:
            for name, size in _state_of(optimizer, parameter, dict(formats)).items():
                found[name] = found.get(name, 0) + size
    return Memory(sum(parameter.array.size for parameter in parameters), found)


def _arrays(params: Any) -> Any:
    """Parameters as they are; shapes as arrays of float32 that nobody fills."""
    if isinstance(params, (list, tuple)) and params and all(_is_shape(each) for each in params):
        return [np.empty(shape, np.float32) for shape in params]
    return params


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(extent, (int, np.integer)) for extent in value)


def _state_of(optimizer: Any, parameter: Parameter, formats: dict[str, str]) -> dict[str, int]:
    """Bytes of each array of a parameter's state."""
    branch = optimizer._branch(parameter)
    slots = {**optimizer._slots_of(type(optimizer._scalars(branch, 1.0, 1))), **optimizer._extra_slots()}
    return {
        name: math.prod(parameter.shape_of(slot)) * np.dtype(slot.dtype or parameter.dtype).itemsize
        for name, slot in parts_of(formats, slots).items()
        if parameter.array.ndim in slot.axes
    }
