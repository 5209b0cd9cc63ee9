"""Gradients on a GPU."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import Any

import numpy as np

from ..device import AnyArray, CudaArray, Gpu, is_array
from ..device.strides import byte_range, lies_alike
from ..flat import FlatBuffer
from ..kernels.cuda.row_tables import Rows
from ..kernels.layout import ADDRESS, DIRECT, LAYOUT, STAGED, ZERO
from ..parameters import Parameter
from ..row_gradient import RowGradient, check_range, check_shape
from .base import ABSENT, BaseGradients, check_gradient, is_like, kind_of
from .rows import axes_of_rows, check_counts, require_whole_rows


class CudaGradients(BaseGradients):
    """Reads arrays on the parameters' GPU, of any library.

    An array of the parameters' own library is examined once: as long as those that follow differ from it in nothing but
    their address (`Library.signatures`), only that is read. Nothing is remembered by identity.
    """

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[AnyArray]) -> None:
        super().__init__(parameters, buffer, state)
        self._place: Gpu
        self._library = self._place.library
        self._given = [parameter.given for parameter in parameters]
        self._given_addresses = self._library.addresses(self._given)
        self._views: list[CudaArray] = []  # of this step, that their libraries would otherwise take back
        self._lent: deque[tuple[Any, list[CudaArray]]] = deque()  # the same of steps that the GPU has yet to do

    def check_parameters(self) -> None:
        """See `BaseGradients.check_parameters`."""
        addresses = self._library.addresses(self._given)
        if addresses != self._given_addresses:
            moved = next(k for k, known in enumerate(self._given_addresses) if addresses[k] != known)
            raise RuntimeError(
                f"parameter {self._paths[moved]} has moved in memory since build(), as module.to() and assigning to "
                ".data do: move parameters first, then build"
            )

    def read(self, grads: Any, zero: bool) -> int:
        """See `BaseGradients.read`."""
        self.check_parameters()
        self._staged.clear()
        self._views.clear()
        self.streams_to_wait_for = []
        if zero != self._zeroes:
            self._forget(zero)
        if self._is_read_as_one(grads, zero):
            self._held = grads
            self._forget(zero)
            return ZERO if zero else 0
        leaves = self._held = self._leaves(grads)
        self._check_missing([k for k, leaf in enumerate(leaves) if leaf is None], leaves)
        wanted = [
            k
            for k, leaf in enumerate(leaves)
            if leaf is not None and leaf is not ABSENT and (zero or self.parameters[k].trainable)
        ]
        by_rows = [k for k in wanted if isinstance(leaves[k], RowGradient)]
        if by_rows:
            wanted = sorted({*wanted}.difference(by_rows))
        self._find(leaves, wanted)
        self._check_memory(leaves, wanted)
        staged = STAGED if np.any(self.table[LAYOUT, self.table[ADDRESS] != 0] != DIRECT) else 0
        options = staged | (self._zero_options(leaves) if zero else 0)
        return self._read_rows(leaves, wanted, by_rows, options) if by_rows else options

    def _read_rows(self, leaves: list[Any], whole: list[int], numbers: list[int], options: int) -> int:
        """Read the gradients with these numbers, which are there for some rows; returns the options of all."""
        values = {}
        for k in numbers:
            rows, values[k] = self._rows_of(k, leaves[k])
            if self.parameters[k].trainable:
                self.rows[k] = rows
        height, count = (sum(getattr(rows, what) for rows in self.rows.values()) for what in ("height", "places"))
        check_counts("gradients for some rows", height, count)
        if not self._zeroes:
            return options
        # After all kernels: they may read what others would zero.
        self._staged = [self._view(k, leaves) for k in whole] + list(values.values())
        return options & ~ZERO

    def _rows_of(self, k: int, gradient: RowGradient) -> tuple[Rows, CudaArray]:
        """A gradient for some rows, checked but for the range of its indices; and its values."""
        parameter, name = self.parameters[k], f"gradient {self._paths[k]}"
        indices, values = self._array_of(name, gradient.indices), self._array_of(name, gradient.values)
        check_shape(name, values, parameter.array.shape)
        require_whole_rows(name, parameter)
        if not (indices.flags.aligned and values.flags.aligned):
            raise ValueError(f"{name}: its memory is not aligned to its dtype: pass a copy")
        self._check_apart(name, values)
        if self._zeroes and not values.flags.writeable:
            raise ValueError(f"{name}: its values are read-only, so zero_grads cannot zero them")
        height, count, width = parameter.array.shape[0], len(indices), math.prod(values.shape[1:])
        where = indices.address, indices.strides[0], indices.itemsize, values.address, self._record_of(k, values)
        refuse = partial(check_range, name, height)
        return Rows(count if width else 0, width, height, *where, refuse, indices), values

    def _array_of(self, name: str, array: Any) -> CudaArray:
        view = self._place.view(name, array)
        self._note(view, self._library.signatures([array])[0])
        return view

    def _record_of(self, k: int, values: CudaArray) -> int:
        """How rows of values are read: `DIRECT`, or where the record of their layout starts."""
        self._known[k] = None  # a record of another gradient may be written over
        axes = axes_of_rows(self.parameters[k])
        if values.dtype == self.parameters[k].array.dtype and values.transpose(axes).flags.c_contiguous:
            return DIRECT
        self._require_countable(k, values)
        return self._write_record(k, values, axes)

    def lend(self, stream: int) -> None:
        """Keep what libraries would take back while the GPU still reads it, until the step on ``stream`` is done."""
        if self._views:
            mark = self._place.device.mark()
            mark.record(stream)
            self._lent.append((mark, self._views))
            self._views = []
        while self._lent and self._lent[0][0].is_done():
            self._lent.popleft()

    def _is_read_as_one(self, grads: Any, zero: bool) -> bool:
        """Whether one flat gradient has been read."""
        if self._buffer is None:
            return False
        if isinstance(grads, FlatBuffer) and grads.segments == self._buffer.segments:
            grads = grads.flat
        if not is_array(grads):
            return False
        view = self._place.view("gradient of all parameters", grads)
        self._note(view, self._library.signatures([grads])[0])
        return self._read_flat(view, zero)

    def _find(self, leaves: list[Any], wanted: list[int]) -> None:
        """Fill the table, looking closely only at what differs from the last step's."""
        known, signatures = self._known, self._library.signatures(leaves[k] for k in wanted)
        strange = [
            (k, signature)
            for k, signature in zip(wanted, signatures, strict=True)
            if signature is None or signature != known[k]
        ]
        unknown = {k for k, _ in strange}
        familiar = [k for k in wanted if k not in unknown]
        self.table[ADDRESS] = 0
        self.table[ADDRESS, familiar] = self._library.addresses(leaves[k] for k in familiar)
        for k, signature in strange:
            known[k] = None
            view = self._examine(k, leaves[k])
            self.table[ADDRESS, k] = view.address
            known[k] = signature if self._note(view, signature) else None
        self.table[ADDRESS, self._sizes == 0] = 0

    def _examine(self, k: int, leaf: Any) -> CudaArray:
        """One gradient of any kind, checked."""
        parameter = self.parameters[k]
        view = self._place.view(f"gradient {parameter.path}", leaf)
        check_gradient(parameter, view, self._zeroes)
        self._find_layout(k, view)
        self._reach[:, k] = byte_range(0, view)
        self._itemsizes[k] = view.itemsize
        return view

    def _find_layout(self, k: int, grad: CudaArray) -> None:
        """See `BaseGradients._find_layout`. Of numbers like the parameter's, of 16 bits, the record has no axes."""
        parameter = self.parameters[k]
        if is_like(grad, parameter) and lies_alike(grad, parameter.array):
            kind: Any = kind_of(grad, parameter)
            start = self.table[LAYOUT, k] = self._starts[k]
            self.layouts[start : start + 2] = kind, 0
            return
        super()._find_layout(k, grad)
        if self.table[LAYOUT, k] != DIRECT:
            self._require_countable(k, grad)

    def _require_countable(self, k: int, view: CudaArray) -> None:
        if view.size >= 2**32:
            raise ValueError(
                f"gradient {self._paths[k]}: has {view.size} elements, in another order or dtype than the parameter, "
                "and a GPU reads fewer than 2**32 such: pass a copy laid out like the parameter"
            )

    def _note(self, view: CudaArray, signature: object) -> bool:
        """Note the stream of an array that has been looked at; True if the step is in the same one."""
        if signature is None:  # its own library would take it back while the GPU still reads: keep it for another step
            self._views.append(view)
        stream = view.stream()
        if stream == self._place.stream():
            return True
        if stream not in self.streams_to_wait_for:
            self.streams_to_wait_for.append(stream)
        return False

    def _check_memory(self, leaves: list[Any], wanted: list[int]) -> None:
        """Check the addresses, whatever is known of the arrays."""
        addresses = self.table[ADDRESS]
        lost = (addresses == 0) & (self._sizes > 0)
        for k in wanted if np.any(lost) else ():
            if lost[k]:
                raise ValueError(f"gradient {self._paths[k]}: has no memory: it was freed, or never allocated")
        self._check_addresses(lambda k: self._view(k, leaves))

    def _view(self, k: int, leaves: list[Any]) -> CudaArray:
        return self._place.view(f"gradient {self._paths[k]}", leaves[k])

    def _zero_options(self, leaves: list[Any]) -> int:
        """Have what no kernel comes by, or more than one reads, zeroed after the step, as on the host."""
        found = self.table[ADDRESS] != 0
        shared = not self._are_apart(self._reach)
        late = np.flatnonzero(found).tolist() if shared else [k for k in self._frozen if found[k]]
        self._staged = [self._view(k, leaves) for k in late]
        self.table[ADDRESS, self._frozen] = 0
        return 0 if shared else ZERO
