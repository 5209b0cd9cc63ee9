"""Gradients as they arrive: matched to the parameters, checked, and found in memory. Nothing is copied."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from .device import check_array
from .flat import FlatBuffer, flatten
from .kernels import reader
from .kernels.layout import ADDRESS, DIRECT, FLOAT32, FLOAT64, LAYOUT, STAGED, ZERO
from .parameters import Array, Parameter

ABSENT = object()
"""Stands for the gradient of a parameter that a step leaves out on purpose."""

_FLAGS, _WRITEABLE_FLAGS = reader.required_flags(False), reader.required_flags(True)
_KINDS = {np.dtype(np.float32): FLOAT32, np.dtype(np.float64): FLOAT64}


class Gradients:
    """Reads the gradients of one step into a table of addresses.

    Parameters
    ----------
    parameters : list of Parameter
        Those that gradients belong to, in order.
    buffer : FlatBuffer or None
        What the parameters are views of, if they were packed: then one flat gradient is possible.
    state : list of ndarray
        All memory that a step writes to: no gradient may overlap it.

    Attributes
    ----------
    table : int64 array [2, parameters]
        Address of each gradient (0: none) and start of its record in ``layouts``.
    layouts : int64 array
        Records of the gradients that cannot be read as they lie.
    refuses_missing : bool
        Whether a gradient of None is an error rather than a warning.
    """

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[Array]) -> None:
        self.parameters = parameters
        self._count = len(parameters)
        self._frozen = [k for k, parameter in enumerate(parameters) if not parameter.trainable]
        self._paths = tuple(parameter.path for parameter in parameters)
        self._buffer = buffer
        if buffer is not None:
            self._flat_size, self._flat_dtype = buffer.flat.size, buffer.dtype
            self._byte_offsets = np.array(
                [segment.offset * buffer.dtype.itemsize for segment in buffer.segments], np.int64
            )
        self._state = state
        self._shapes = [parameter.array.shape for parameter in parameters]
        self.table = np.zeros((2, len(parameters)), np.int64)
        room = np.array([2 + 2 * max(parameter.array.ndim, 1) for parameter in parameters], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(room)[:-1]]).astype(np.int64) if parameters else room
        self.layouts = np.zeros(max(int(room.sum()), 1), np.int64)
        self._occupied = _merged_ranges(state)
        descrs = np.array([id(parameter.array.dtype) for parameter in parameters], np.int64)
        expected = self._expectations(int(room.sum()))
        self._tables = (descrs, expected, self._starts, self._occupied, self.table)
        self._handle = reader.handle_of(*self._tables)
        self._read_addresses = reader.compiled()
        self.refuses_missing = False
        self._held: Any = ()
        self._staged: list[Array] = []

    def _expectations(self, size: int) -> Array:
        expected = np.zeros(max(size, 1), np.int64)
        for start, parameter in zip(self._starts, self.parameters, strict=True):
            array = parameter.array
            record = [array.ndim, array.nbytes, *array.shape, *array.strides]
            expected[start : start + len(record)] = record
        return expected

    def read(self, grads: Any, zero: bool) -> int:
        """Fill the table from one step's gradients.

        Parameters
        ----------
        grads : list, tuple, mapping, nested, FlatBuffer, or one flat array
            In the parameters' structure, or as many leaves in their order.
        zero : bool
            Whether they are to be zeroed after the step: by the kernels as far as they can, the rest by `zero`.

        Returns
        -------
        int
            Options for the launch: `STAGED`, `ZERO`.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter. Nothing but the table has been written.
        """
        self._staged.clear()
        ordered = grads
        if isinstance(grads, FlatBuffer) and grads.paths == self._paths:
            ordered = grads.arrays
        elif type(grads) is dict and tuple(grads) == self._paths:
            ordered = tuple(grads.values())
        if type(ordered) is list:
            ordered = tuple(ordered)
        # The table holds addresses only: their arrays must live until `release`, whoever empties a list meanwhile.
        self._held = ordered
        if self._read_list(ordered, 0, zero) == self._count:
            return self._zero_options(ordered) if zero else 0
        if isinstance(grads, np.ndarray) and self._read_flat(grads, zero):
            return ZERO if zero else 0
        leaves = self._held = self._match(grads)
        self._check_missing([k for k, leaf in enumerate(leaves) if leaf is None], leaves)
        position = 0
        while (position := self._read_list(leaves, position, zero)) < self._count:
            self._read_one(position, leaves, zero)
            position += 1
        staged = STAGED if np.any(self.table[LAYOUT] != DIRECT) else 0
        return staged | (self._zero_options(leaves) if zero else 0)

    def _read_flat(self, grads: Array, zero: bool) -> bool:
        """Read one flat gradient laid out like the parameters' buffer; False where it must be taken apart."""
        check_array("of all parameters", grads, "gradient")
        if not self._is_flat(grads) or grads.dtype != self._flat_dtype or not grads.flags.c_contiguous:
            return False
        low, high = byte_bounds(grads)
        if (
            not grads.flags.aligned
            or (zero and (self._frozen or not grads.flags.writeable))
            or self._is_occupied(low, high)
        ):
            return False
        np.add(self._byte_offsets, low, out=self.table[ADDRESS])
        self.table[LAYOUT] = DIRECT
        return True

    def _is_occupied(self, low: int, high: int) -> bool:
        k = np.searchsorted(self._occupied[:, 1], low, side="right")
        return bool(k < len(self._occupied) and self._occupied[k, 0] < high)

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

    def release(self) -> None:
        """Let go of the gradients, once the step has used them."""
        self._held = ()
        self._staged.clear()

    def zero(self) -> None:
        """Zero those gradients of the last `read` that the kernels leave alone."""
        for grad in self._staged:
            grad.fill(0)

    def zero_all(self, grads: Any) -> None:
        """Zero all gradients, after a step that was skipped."""
        for leaf in flatten(grads)[1]:
            if isinstance(leaf, np.ndarray):
                leaf.fill(0)

    def _read_list(self, leaves: Any, start: int, zero: bool) -> int:
        """Read ordinary arrays from ``start`` on, all in one call, up to the first that is anything else."""
        kind = type(leaves)
        if self._read_addresses is None or (kind is not list and kind is not tuple) or len(leaves) != self._count:
            return start
        flags = _WRITEABLE_FLAGS if zero else _FLAGS
        return self._read_addresses(id(leaves), kind is list, start, flags, self._handle)

    def _match(self, grads: Any) -> list[Any]:
        """The gradients as a list in the parameters' order."""
        if isinstance(grads, np.ndarray) and self._is_flat(grads):
            return [
                grads[segment.offset : segment.offset + int(np.prod(segment.shape))].reshape(segment.shape)
                for segment in self._buffer.segments  # type: ignore[union-attr]
            ]
        paths, leaves = flatten(grads)
        if tuple(paths) == self._paths:
            return leaves
        by_path = dict(zip(paths, leaves, strict=True))
        if isinstance(grads, Mapping) or set(paths) == set(self._paths):
            return self._by_path(by_path)
        if len(leaves) != len(self.parameters):
            raise ValueError(
                f"expected {len(self.parameters)} gradients, one per parameter, got {len(leaves)}: "
                "pass None for a parameter without a gradient"
            )
        return leaves

    def _by_path(self, by_path: dict[str, Any]) -> list[Any]:
        unexpected = [path for path in by_path if path not in set(self._paths)]
        absent = [p.path for p in self.parameters if p.path not in by_path and p.trainable]
        if unexpected or absent:
            raise ValueError(
                "the gradients' structure is not the parameters': "
                f"missing {absent[:5] or 'nothing'}, unexpected {unexpected[:5] or 'nothing'}"
            )
        return [by_path.get(path) for path in self._paths]

    def _is_flat(self, grads: Array) -> bool:
        if self._buffer is None or grads.ndim != 1 or (len(self.parameters) == 1 and grads.shape == self._shapes[0]):
            return False
        if grads.size != self._flat_size:
            raise ValueError(
                f"a flat gradient must have the {self._flat_size} elements of params.flat, "
                f"padding included, got {grads.size}: use params.like()"
            )
        return True

    def _read_one(self, k: int, leaves: list[Any], zero: bool) -> None:
        """Read one gradient of any kind."""
        grad = leaves[k]
        self.table[ADDRESS, k] = 0
        self.table[LAYOUT, k] = DIRECT
        parameter = self.parameters[k]
        if grad is ABSENT or grad is None:
            return
        if not parameter.trainable:
            if zero:
                _check_gradient(parameter, grad, zero)
                self._check_overlap(parameter, grad, zero)
            return
        if isinstance(grad, np.generic) and parameter.array.ndim == 0 and not zero:
            grad = leaves[k] = np.asarray(grad)
        _check_gradient(parameter, grad, zero)
        if grad.size == 0:
            return
        self._check_overlap(parameter, grad, zero)
        self.table[ADDRESS, k] = grad.__array_interface__["data"][0]
        if grad.dtype != parameter.array.dtype or not _same_strides(grad, parameter.array):
            self.table[LAYOUT, k] = self._starts[k]
            self._describe(k, grad)
            if zero:
                self._staged.append(grad)

    def _describe(self, k: int, grad: Array) -> None:
        axes = self.parameters[k].axes
        extents = [grad.shape[axis] for axis in axes] or [1]
        strides = [grad.strides[axis] for axis in axes] or [grad.itemsize]
        record = [_KINDS[grad.dtype], len(extents), *extents, *strides]
        self.layouts[self._starts[k] : self._starts[k] + len(record)] = record

    def _check_overlap(self, parameter: Parameter, grad: Array, zero: bool) -> None:
        low, high = byte_bounds(grad)
        if not self._is_occupied(low, high):
            return
        array = parameter.given
        same = grad.ctypes.data == array.ctypes.data and grad.dtype == array.dtype and _same_strides(grad, array)
        if same and not zero:
            return
        if same:
            raise ValueError(f"gradient {parameter.path}: is the parameter itself, and zero_grads would erase it")
        for state in self._state:
            if _shares_memory(grad, state):
                raise ValueError(
                    f"gradient {parameter.path}: overlaps a parameter or the optimizer's own state: pass a copy"
                )

    def _check_missing(self, missing: list[int], leaves: list[Any]) -> None:
        missing = [k for k in missing if self.parameters[k].trainable]
        if not missing:
            return
        offered = sum(leaf is not ABSENT and p.trainable for leaf, p in zip(leaves, self.parameters, strict=True))
        if len(missing) == offered:
            raise ValueError("no gradients: all of them are None")
        names = ", ".join(self._paths[k] for k in missing[:5]) + (", …" if len(missing) > 5 else "")
        if self.refuses_missing:
            raise ValueError(f"An operation has `None` for gradient. There is no gradient for {names}: pass zeros")
        warnings.warn(f"no gradient for {names}: left as it is", UserWarning, stacklevel=5)


def _check_gradient(parameter: Parameter, grad: Any, zero: bool) -> None:
    path, array = parameter.path, parameter.array
    check_array(path, grad, "gradient")
    if grad.dtype not in (np.float32, np.float64) or not grad.dtype.isnative:
        raise TypeError(f"gradient {path}: expected float32 or float64 in native byte order, got {grad.dtype}")
    if grad.shape != array.shape:
        raise ValueError(f"gradient {path}: expected shape {array.shape} like the parameter, got {grad.shape}")
    if not grad.flags.aligned:
        raise ValueError(f"gradient {path}: its memory is not aligned to its dtype: pass a copy")
    if zero and not grad.flags.writeable:
        raise ValueError(f"gradient {path}: is read-only, so zero_grads cannot zero it")


def _same_strides(one: Array, other: Array) -> bool:
    return all(extent <= 1 or a == b for extent, a, b in zip(one.shape, one.strides, other.strides, strict=True))


def _shares_memory(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _merged_ranges(arrays: list[Array]) -> Array:
    """Sorted, disjoint ranges of addresses that the arrays occupy, int64 [ranges, 2]."""
    merged: list[list[int]] = []
    for start, end in sorted(byte_bounds(array) for array in arrays if array.size):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, np.int64).reshape(-1, 2)
