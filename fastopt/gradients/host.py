"""Gradients that are NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from ..device import Array, check_array
from ..flat import FlatBuffer
from ..kernels import reader
from ..kernels.layout import ADDRESS, DIRECT, LAYOUT, STAGED, ZERO
from ..kernels.repeated_step import RepeatedStep
from ..parameters import Parameter
from .base import ABSENT, BaseGradients, check_gradient

_FLAGS, _WRITEABLE_FLAGS = reader.required_flags(False), reader.required_flags(True)


class Gradients(BaseGradients):
    """Reads NumPy arrays: ordinary ones all in one compiled call."""

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[Array]) -> None:
        super().__init__(parameters, buffer, state)
        descrs = np.array([id(parameter.array.dtype) for parameter in parameters], np.int64)
        self._tables = (descrs, self._expectations(), self._starts, self._occupied, self.table)
        self._handle = reader.handle_of(*self._tables)
        self._read_addresses = reader.compiled()
        self._sizes = np.array([parameter.array.nbytes for parameter in parameters], np.int64)

    def _expectations(self) -> Array:
        expected = np.zeros_like(self.layouts)
        for start, parameter in zip(self._starts, self.parameters, strict=True):
            array = parameter.array
            record = [array.ndim, array.nbytes, *array.shape, *array.strides]
            expected[start : start + len(record)] = record
        return expected

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
        if isinstance(grads, np.ndarray):
            check_array("gradient of all parameters", grads)
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
        grad, parameter = leaves[k], self.parameters[k]
        self.table[ADDRESS, k] = 0
        self.table[LAYOUT, k] = DIRECT
        if grad is ABSENT or grad is None or not (parameter.trainable or zero):
            return
        if isinstance(grad, np.generic) and parameter.array.ndim == 0 and not zero:
            grad = leaves[k] = np.asarray(grad)
        check_array(f"gradient {parameter.path}", grad)
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
