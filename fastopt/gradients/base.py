"""What gradients have in common wherever they live: their structure, their layout, and what is refused."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..device import HOST, AnyArray, Array, is_array
from ..device.strides import lies_alike, same_strides
from ..flat import FlatBuffer, flatten, is_plain, match
from ..kernels.cpu.repeated_step import RepeatedStep
from ..kernels.layout import ADDRESS, BFLOAT16, DIRECT, FIRST_RECORD, FLOAT16, FLOAT32, FLOAT64, LAYOUT
from ..parameters import Parameter, dtype_of, kept_as
from ..row_gradient import RowGradient

ABSENT = object()
"""Stands for the gradient of a parameter that a step leaves out on purpose."""

_KINDS = {"float32": FLOAT32, "float64": FLOAT64, "bfloat16": BFLOAT16, "float16": FLOAT16}


class BaseGradients:
    """Reads the gradients of one step into a table of addresses.

    Parameters
    ----------
    parameters : list of Parameter
        Those that gradients belong to, in order.
    buffer : FlatBuffer or None
        What the parameters are views of, if they were packed: then one flat gradient is possible.
    state : list of arrays
        All memory that a step writes to: no gradient may overlap it.

    Attributes
    ----------
    table : int64 array [2, parameters]
        Address of each gradient (0: none) and start of its record in ``layouts``.
    layouts : int64 array
        What copies gradients that cannot be read as they lie, and records of these.
    rows : dict of int to Rows
        Gradients of the last `read` that are there for some rows only, by parameter; they have no address in the table.
        As `kernels.cpu.row_tables` has them, or, on a GPU, `kernels.cuda.row_tables`.
    refuses_missing : bool
        Whether a gradient of None is an error rather than a warning.
    streams_to_wait_for : list of int
        Those in which gradients of the last `read` may still be being written.
    """

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[AnyArray]) -> None:
        self.parameters = parameters
        self._place = parameters[0].place if parameters else HOST
        self._count = len(parameters)
        self._frozen = [k for k, parameter in enumerate(parameters) if not parameter.trainable]
        self._paths = tuple(parameter.path for parameter in parameters)
        self._optional = {self._paths[k] for k in self._frozen}
        self._buffer = buffer
        if buffer is not None:
            self._flat_size, self._flat_dtype = buffer.size, buffer.dtype
            self._byte_offsets = np.array(
                [segment.offset * buffer.dtype.itemsize for segment in buffer.segments], np.int64
            )
        self._state = state
        self._shapes = [parameter.array.shape for parameter in parameters]
        self.table = np.zeros((2, len(parameters)), np.int64)
        room = np.array([2 + 2 * max(parameter.array.ndim, 1) for parameter in parameters], np.int64)
        ends = FIRST_RECORD + np.cumsum(room)
        self._starts = ends - room
        self.layouts = np.zeros(FIRST_RECORD + int(room.sum()), np.int64)
        self._occupied = self._merged_ranges()
        self.rows: dict[int, Any] = {}
        self.refuses_missing = False
        self.streams_to_wait_for: list[int] = []
        self._held: Any = ()
        self._staged: list[AnyArray] = []
        self._sizes = np.array([parameter.array.size for parameter in parameters], np.int64)
        self._known: list[object] = [None] * self._count  # signatures of what was examined last
        self._zeroes = False  # whether that was examined for zeroing
        # Of each gradient: first byte and the one after the last, counted from its address; bytes of an element.
        self._reach = np.zeros((2, self._count), np.int64)
        self._itemsizes = np.ones(self._count, np.int64)
        self._apart = b"", b""  # addresses and reaches that were found not to overlap

    def read(self, grads: Any, zero: bool) -> int:
        """Fill the table from one step's gradients.

        Parameters
        ----------
        grads : list, tuple, mapping, nested, FlatBuffer, or one flat array
            In the parameters' structure, or a plain list or tuple in their order.
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
        raise NotImplementedError

    def repeated_step(self, counters: Any, engine: Any, *what: Any) -> RepeatedStep | None:
        """A `read` and what else steps repeat in one call, for gradients that are as usual; None: that is not possible.

        ``engine`` is the optimizer's only one, the rest is as of `RepeatedStep`, from the settings on.
        """
        return None

    def check_parameters(self) -> None:
        """Refuse to go on if a parameter's memory is not where it was.

        Raises
        ------
        RuntimeError
            If it has been exchanged for another.
        """

    def release(self) -> None:
        """Let go of the gradients, once the step has used them."""
        self._held = ()
        self.rows = {}
        self._staged.clear()

    @property
    def zeroes(self) -> bool:
        """Whether `zero` has something to do."""
        return bool(self._staged)

    def zeroing(self) -> list[Callable[[], Any]]:
        """Return what zeroes those gradients of the last `read` that kernels leave alone: see `Place.filling`."""
        return [self._place.filling(grad, 0) for grad in self._staged]

    def zero(self) -> None:
        """Do what `zeroing` gives."""
        for each in self.zeroing():
            each()

    def zero_all(self, grads: Any) -> None:
        """Zero all gradients, after a step that was skipped."""
        for leaf in flatten(grads)[1]:
            array = leaf.values if isinstance(leaf, RowGradient) else leaf
            if is_array(array):
                self._place.fill(self._place.view("gradient", array), 0)

    # -- structure --------------------------------------------------------------------------------------------------

    def _in_order(self, grads: Any) -> Any:
        """Return what looks like a list in the parameters' order as such; anything else as it is."""
        if isinstance(grads, FlatBuffer) and grads.paths == self._paths:
            return grads.arrays
        if type(grads) is dict and tuple(grads) == self._paths:
            return tuple(grads.values())
        return grads

    def _leaves(self, grads: Any) -> list[Any]:
        """The gradients as a list in the parameters' order."""
        ordered = self._in_order(grads)
        if type(ordered) in (list, tuple) and len(ordered) == self._count and is_plain(ordered):
            return list(ordered)
        if is_array(grads):
            whole = self._place.view("gradient of all parameters", grads)
            if self._is_flat(whole):
                return [
                    whole[segment.offset : segment.offset + math.prod(segment.shape)].reshape(segment.shape)
                    for segment in self._buffer.segments  # type: ignore[union-attr]
                ]
        return match(self._paths, grads, self._optional)

    def _is_flat(self, grads: AnyArray) -> bool:
        if self._buffer is None or grads.ndim != 1 or (self._count == 1 and grads.shape == self._shapes[0]):
            return False
        if grads.size != self._flat_size:
            raise ValueError(
                f"a flat gradient must have the {self._flat_size} elements of params.flat, "
                f"padding included, got {grads.size}: use params.like()"
            )
        return True

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
        warnings.warn(f"no gradient for {names}: left as it is", UserWarning, stacklevel=_frames_to_caller())

    # -- memory -----------------------------------------------------------------------------------------------------

    def _read_flat(self, grads: AnyArray, zero: bool) -> bool:
        """Read one flat gradient laid out like the parameters' buffer; False where it must be taken apart."""
        if not self._is_flat(grads) or grads.dtype != self._flat_dtype or not grads.flags.c_contiguous:
            return False
        low, high = self._place.byte_range(grads)
        if (
            not grads.flags.aligned
            or (zero and (self._frozen or not grads.flags.writeable))
            or self._is_occupied(low, high)
        ):
            return False
        np.add(self._byte_offsets, low, out=self.table[ADDRESS])
        self.table[LAYOUT] = DIRECT
        return True

    def _find_layout(self, k: int, grad: AnyArray) -> None:
        """Note how gradient ``k`` must be read: as it lies, or by a record of its layout."""
        self.table[LAYOUT, k] = DIRECT
        parameter = self.parameters[k]
        alike = lies_alike(grad, parameter.array)
        if grad.dtype == parameter.dtype and alike:
            return
        self.table[LAYOUT, k] = self._write_record(k, grad, () if alike else parameter.axes)

    def _write_record(self, k: int, grad: AnyArray, axes: Sequence[int]) -> int:
        """Note how gradient ``k`` is read, along these axes, slowest first, or none, without gaps; where it starts."""
        extents = [grad.shape[axis] for axis in axes] or [grad.size]
        strides = [grad.strides[axis] for axis in axes] or [grad.itemsize]
        record = [kind_of(grad, self.parameters[k]), len(extents), *extents, *strides]
        start = int(self._starts[k])
        self.layouts[start : start + len(record)] = record
        return start

    def _is_occupied(self, low: int, high: int) -> bool:
        k = np.searchsorted(self._occupied[:, 1], low, side="right")
        return bool(k < len(self._occupied) and self._occupied[k, 0] < high)

    def _check_overlap(self, parameter: Parameter, grad: AnyArray, zero: bool) -> None:
        place = self._place
        if not self._is_occupied(*place.byte_range(grad)):
            return
        array = parameter.in_place
        alike = grad.dtype == array.dtype or kept_as(grad, parameter.kept_as) == parameter.kept_as != ""
        same = place.address(grad) == place.address(array) and alike and same_strides(grad, array)
        if same and not zero:
            return
        if same:
            raise ValueError(f"gradient {parameter.path}: is the parameter itself, and zero_grads would erase it")
        self._check_apart(f"gradient {parameter.path}", grad)

    def _check_apart(self, name: str, grad: AnyArray) -> None:
        """Refuse an array that shares memory with what a step writes to."""
        if self._is_occupied(*self._place.byte_range(grad)) and any(
            self._place.shares_memory(grad, state) for state in self._state
        ):
            raise ValueError(f"{name}: overlaps a parameter or the optimizer's own state: pass a copy")

    def _forget(self, zero: bool) -> None:
        """Examine every gradient anew, as one that is to be zeroed or not."""
        self._zeroes, self._known = zero, [None] * self._count

    def _check_addresses(self, view: Callable[[int], AnyArray]) -> None:
        """Check the addresses in the table, whatever is known of the gradients; ``view`` gives each one.

        Raises
        ------
        ValueError
            If one is not aligned, or belongs to memory that a step writes to.
        """
        addresses, occupied = self.table[ADDRESS], self._occupied
        for k in np.flatnonzero(addresses % self._itemsizes).tolist():
            raise ValueError(f"gradient {self._paths[k]}: its memory is not aligned to its dtype: pass a copy")
        if not len(occupied):
            return
        low, high = addresses + self._reach
        ranges = occupied[np.minimum(np.searchsorted(occupied[:, 1], low, side="right"), len(occupied) - 1)]
        for k in np.flatnonzero((addresses != 0) & (ranges[:, 0] < high) & (ranges[:, 1] > low)).tolist():
            self._check_overlap(self.parameters[k], view(k), self._zeroes)

    def _are_apart(self, reach: Array) -> bool:
        """Whether the gradients in the table, which reach so far, share no memory. The last answer is remembered."""
        addresses = self.table[ADDRESS]
        asked = addresses.tobytes(), reach.tobytes()
        if asked != self._apart:
            low, high = addresses + reach * (addresses != 0)
            order = np.argsort(low)
            if np.any(high[order][:-1] > low[order][1:]):
                return False
            self._apart = asked
        return True

    def _merged_ranges(self) -> Array:
        """Sorted, disjoint ranges of addresses that a step writes to, int64 [ranges, 2]."""
        merged: list[list[int]] = []
        for start, end in sorted(self._place.byte_range(array) for array in self._state if array.size):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return np.array(merged, np.int64).reshape(-1, 2)


def _frames_to_caller() -> int:
    """Return the ``stacklevel`` at which a warning shows the line that called fastopt."""
    package, level, frame = __name__.partition(".")[0], 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def is_half(grad: AnyArray, parameter: Parameter) -> bool:
    """Whether an array can be a gradient of 16 bits. Only kernels for formats read such on a GPU."""
    return kind_of(grad, parameter) in (BFLOAT16, FLOAT16) and bool(parameter.kept_as or not parameter.place.on_gpu)


def is_like(grad: AnyArray, parameter: Parameter) -> bool:
    """Whether a gradient's numbers are of the same 16 bits as the parameter's."""
    return bool(parameter.kept_as) and kind_of(grad, parameter) == _KINDS[parameter.kept_as]


def kind_of(grad: AnyArray, parameter: Parameter) -> int | None:
    """The kind of a gradient's numbers; those of uint16 are as the parameter is declared."""
    declared = parameter.kept_as if parameter.settings.get("dtype") else ""
    return _KINDS.get(kept_as(grad, declared) or grad.dtype.name)


def check_gradient(parameter: Parameter, grad: AnyArray, zero: bool) -> None:
    """Refuse an array that cannot be a parameter's gradient."""
    path, array = parameter.path, parameter.array
    if (grad.dtype not in (np.float32, np.float64) and not is_half(grad, parameter)) or not grad.dtype.isnative:
        takes_halves = parameter.kept_as or not parameter.place.on_gpu
        halves = ", or bfloat16 or float16," if takes_halves else ""
        hint = "" if takes_halves else ": on a GPU gradients of 16 bits are for parameters of 16 bits, cast it"
        raise TypeError(
            f"gradient {path}: expected float32 or float64{halves} in native byte order, got {dtype_of(grad)}"
            + hint * (kind_of(grad, parameter) in (BFLOAT16, FLOAT16))
        )
    if grad.shape != array.shape:
        raise ValueError(f"gradient {path}: expected shape {array.shape} like the parameter, got {grad.shape}")
    if not grad.flags.aligned:
        raise ValueError(f"gradient {path}: its memory is not aligned to its dtype: pass a copy")
    if zero and not grad.flags.writeable:
        raise ValueError(f"gradient {path}: is read-only, so zero_grads cannot zero it")
