"""Gradients that are NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from ..device import Array, is_array
from ..flat import FlatBuffer, flatten
from ..kernels import reader
from ..kernels.layout import ADDRESS, DIRECT, LAYOUT, STAGED, ZERO
from ..kernels.repeated_step import RepeatedStep
from ..parameters import Parameter
from .base import ABSENT, BaseGradients, check_gradient

_FLAGS, _WRITEABLE_FLAGS = reader.required_flags(False), reader.required_flags(True)
_ALL = "gradient of all parameters"


class Gradients(BaseGradients):
    """Reads NumPy arrays: ordinary ones all in one compiled call."""

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[Array]) -> None:
        super().__init__(parameters, buffer, state)
        descrs = np.array([id(parameter.array.dtype) for parameter in parameters], np.int64)
        self._given = [parameter.given for parameter in parameters]
        self._known = self._table_of_parameters()
        self._tables = (descrs, self._expectations(), self._starts, self._occupied, self.table, self._known)
        self._handle = reader.handle_of(*self._tables)
        self._read_addresses: Any
        self._first_changed: Any
        self._read_addresses, self._first_changed = reader.compiled() or (None, None)
        self._sizes = np.array([parameter.array.nbytes for parameter in parameters], np.int64)

    def _expectations(self) -> Array:
        expected = np.zeros_like(self.layouts)
        for start, parameter in zip(self._starts, self.parameters, strict=True):
            array = parameter.array
            record = [array.ndim, array.nbytes, *array.shape, *array.strides]
            expected[start : start + len(record)] = record
        return expected

    def _table_of_parameters(self) -> Array:
        """See `reader.OBJECT`."""
        rows = [
            (id(given), self._place.address(p.in_place), reader.WRITEABLE * p.trainable)
            for given, p in zip(self._given, self.parameters, strict=True)
        ]
        return np.array(rows, np.int64).reshape(-1, 3).T.copy()

    def check_parameters(self) -> None:
        """See `BaseGradients.check_parameters`; here also if a parameter cannot be written to any more.

        Raises
        ------
        RuntimeError
            If it has been exchanged for another.
        ValueError
            If it has been made read-only.
        """
        if self._first_changed is None:
            for k in range(self._count):
                self._check_parameter(k)
        elif (k := self._first_changed(self._handle)) < self._count:
            self._check_parameter(k)

    def _check_parameter(self, k: int) -> None:
        array = self._place.view(f"parameter {self._paths[k]}", self._given[k])
        if self._known[reader.NEEDED, k] and not array.flags.writeable:
            raise ValueError(
                f"parameter {self._paths[k]}: has been made read-only since build(): make it writeable, or build with "
                'overrides that say {"trainable": False}'
            )
        if self._place.address(array) != self._known[reader.DATA, k]:
            raise RuntimeError(f"parameter {self._paths[k]} has moved in memory since build()")

    def read(self, grads: Any, zero: bool) -> int:
        """See `BaseGradients.read`."""
        self._staged.clear()
        ordered = tuple(grads) if type(grads) is list else self._in_order(grads)
        # The table holds addresses only: their arrays must live until `release`, whoever empties a list meanwhile.
        self._held = ordered
        if type(ordered) is tuple and self._read_list(ordered, 0, zero) == self._count:
            if zero and (self._frozen or not self._are_apart(self._sizes)):
                return self._zero_options(ordered)
            return ZERO if zero else 0
        grads = _in_numpy(_ALL, grads)
        if isinstance(grads, np.ndarray):
            grads = self._held = self._place.view(_ALL, grads)
            self.check_parameters()
            if self._read_flat(grads, zero):
                return ZERO if zero else 0
        leaves = self._held = self._match(grads)
        self._check_missing([k for k, leaf in enumerate(leaves) if leaf is None], leaves)
        position = 0
        while (position := self._read_list(leaves, position, zero)) < self._count:
            self._read_one(position, leaves, zero)
            position += 1
        staged = STAGED if np.any(self.table[LAYOUT] != DIRECT) else 0
        return staged | (self._zero_options(leaves) if zero else 0)

    def repeated_step(
        self, counters: Any, engine: Any, settings: type | None, running: Any, watch: bool
    ) -> RepeatedStep | None:
        """See `BaseGradients.repeated_step`."""
        if self._read_addresses is None:
            return None
        return RepeatedStep(counters, self._handle, engine.alone, engine.work, settings, running, watch)

    def zero_all(self, grads: Any) -> None:
        """See `BaseGradients.zero_all`."""
        for leaf in flatten(_in_numpy(_ALL, grads))[1]:
            array = _in_numpy("gradient", leaf)
            if isinstance(array, np.ndarray):
                self._place.fill(self._place.view("gradient", array), 0)

    def _zero_options(self, leaves: Sequence[Any]) -> int:
        """Gradients that share memory are zeroed last: no kernel may erase what another has yet to read."""
        arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray) and leaf.size]
        ranges = sorted(byte_bounds(array) for array in arrays)
        if any(end > start for (_, end), (start, _) in pairwise(ranges)):
            self._staged = arrays
            return 0
        if self._frozen:  # no kernel comes by these
            self._staged += [leaves[k] for k in self._frozen if isinstance(leaves[k], np.ndarray)]
        return ZERO

    def _read_list(self, leaves: list[Any] | tuple[Any, ...], start: int, zero: bool) -> int:
        """Read ordinary arrays from ``start`` on, all in one call, up to the first that is anything else."""
        if self._read_addresses is None or len(leaves) != self._count:
            return start
        flags = _WRITEABLE_FLAGS if zero else _FLAGS
        return self._read_addresses(id(leaves), type(leaves) is list, start, flags, self._handle)

    def _read_one(self, k: int, leaves: list[Any], zero: bool) -> None:
        """Read one gradient of any kind."""
        self._check_parameter(k)
        grad, parameter = leaves[k], self.parameters[k]
        self.table[ADDRESS, k] = 0
        self.table[LAYOUT, k] = DIRECT
        if grad is ABSENT or grad is None or not (parameter.trainable or zero):
            return
        if isinstance(grad, np.generic) and parameter.array.ndim == 0 and not zero:
            grad = leaves[k] = np.asarray(grad)
        name = f"gradient {parameter.path}"
        grad = leaves[k] = self._place.view(name, _in_numpy(name, grad))
        check_gradient(parameter, grad, zero)
        if grad.size == 0:
            return
        self._check_overlap(parameter, grad, zero)
        if not parameter.trainable:
            return
        self.table[ADDRESS, k] = grad.__array_interface__["data"][0]
        self._find_layout(k, grad)
        if zero and self.table[LAYOUT, k] != DIRECT:
            self._staged.append(grad)


def _in_numpy(name: str, value: Any) -> Any:
    """A view, in NumPy, of another library's array in host memory, such as JAX's or torch's; anything else as it is."""
    if is_array(value) or not (hasattr(value, "__dlpack_device__") and hasattr(value, "__array__")):
        return value
    try:
        return np.asarray(value) if value.__dlpack_device__()[0] == CPU else value
    except (BufferError, RuntimeError, TypeError, ValueError) as reason:
        raise TypeError(f"{name}: cannot be read as a NumPy array: {reason}") from reason


CPU = 1
"""DLPack's number of the kind of device."""
