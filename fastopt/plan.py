"""What a build works out once: slots, groups, and the tables that every launch reads."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .device import AnyArray, engine
from .flat import aligned_offsets
from .formats import Formats, beside, load_averages, parts_of
from .kernels.cpu.engines import contiguous_chunks
from .kernels.cpu.launch import Work, kernel, launch, run
from .kernels.cpu.loops import step
from .kernels.layout import ACCUMULATOR, AVERAGE, CHUNK, DIRECT, PARAM, SLOTS, Control
from .kernels.registry import RULES, Slot
from .parameters import Array, Parameter

AVERAGE_SLOT, ACCUMULATOR_SLOT = "average", "gradient_accumulator"
"""Names of the state arrays that belong to the step, not to a rule."""


class Group(NamedTuple):
    """Parameters with the same settings: one row of the scalars table."""

    multiplier: float
    weight_decay: float | None  # None: the optimizer's own


Storage = Callable[[str, Slot, list[Parameter]], tuple[list[Array | None], list[Array]]]
"""Where state lives: ``(name, slot, parameters)`` gives the slot's array for each parameter, None where it has none,
and the memory that they occupy. An array lies in memory as its parameter does."""


def allocate(name: str, slot: Slot, parameters: list[Parameter]) -> tuple[list[AnyArray | None], list[AnyArray]]:
    """The `Storage` of an optimizer that owns its state: side by side in one flat array."""
    dtype, place = np.dtype(slot.dtype) if slot.dtype else parameters[0].dtype, parameters[0].place
    wanted = [parameter.array.ndim in slot.axes for parameter in parameters]
    sizes = [math.prod(p.shape_of(slot)) * has for p, has in zip(parameters, wanted, strict=True)]
    offsets, end = aligned_offsets(sizes, dtype)
    flat = place.zeros(end, dtype)
    if slot.start and not slot.dtype:
        place.fill(flat, slot.start)
    arrays: list[AnyArray | None] = []
    for parameter, offset, size, has in zip(parameters, offsets, sizes, wanted, strict=True):
        view = parameter.view_of(flat[offset : offset + size], slot) if has else None
        if view is not None and slot.copies_parameter and view.dtype == parameter.array.dtype:
            place.copy(view, parameter.array)
        arrays.append(view)
    return arrays, [flat]


class Plan:
    """The parameters of one dtype under one rule, ready to be stepped.

    Parameters
    ----------
    indices : list of int
        Which of the optimizer's parameters these are.
    parameters : list of Parameter
        Those parameters.
    groups : list of Group
        The group of each.
    scalars : NamedTuple class
        Selects the rule.
    slots : dict of str to Slot
        The rule's, in its order.
    extra : dict of str to Slot
        The average and the accumulator, where they are wanted.
    storage : Storage
        Where the slots' arrays come from.
    formats : Formats, optional
        How numbers are kept.

    Attributes
    ----------
    rows : list of int
        The row in the scalars table of each parameter.
    pack : function
        ``(table, byte, *values)`` writes a row of the scalars table: the control scalars, then the rule's.
    settings : list of tuple
        Per group: first byte of its row, factor of the learning rate, weight decay.
    slots : dict of str to list
        For each slot the array of each parameter, in the parameter's shape and axis order; None where it has none.
    """

    def __init__(
        self,
        branch: str,
        indices: list[int],
        parameters: list[Parameter],
        groups: list[Group],
        scalars: Any,
        slots: dict[str, Slot],
        extra: dict[str, Slot],
        storage: Storage = allocate,
        formats: Formats | None = None,
    ) -> None:
        self.branch = branch
        self.indices = np.array(indices, np.int64)
        self.parameters = parameters
        self.place: Any = parameters[0].place
        self.dtype = parameters[0].dtype
        self.groups = list(dict.fromkeys(groups))
        self.memory: list[Array] = []
        self.slots: dict[str, list[Array | None]] = {}
        self.scalars = scalars
        self.rule_slots = list(slots)
        self.whole_slots = [*slots, *extra]
        self.beside: list[str] = []  # names of what the parameters' format keeps beside them
        self.kept: Any = None
        if formats is None:
            self._make({**slots, **extra}, storage)
        else:
            self._make(parts_of(formats.formats, {**slots, **extra}), storage)
            self.beside = list(beside(formats.formats))
            self.kept = formats.keep(self, {**slots, **extra})
        self.rows = [self.groups.index(group) for group in groups]

    def _make(self, slots: dict[str, Slot], storage: Storage) -> None:
        for name, slot in slots.items():
            self.slots[name], memory = storage(name, slot, self.parameters)
            self.memory += memory

    @property
    def table_format(self) -> tuple[int, int, np.dtype[Any]]:
        """Rows, columns and dtype of the scalars table."""
        return len(self.groups), len(Control._fields) + len(self.scalars._fields), self.dtype

    def connect(self, gradients: Array, layouts: Array, make_work: Callable[..., Any]) -> None:
        """Make the tables and the engine.

        Parameters
        ----------
        gradients, layouts : int64 arrays
            Those of the optimizer's `Gradients`.
        make_work : function
            ``(chunks, addresses, gradients, layouts, terms)`` gives the work, where its engine runs.
        """
        sizes = [parameter.array.size for parameter in self.parameters]
        chunks = contiguous_chunks(sizes, self.rows, CHUNK)
        addresses = np.zeros((SLOTS + len(self.rule_slots), len(sizes)), np.int64)
        for row, arrays in self._address_rows().items():
            addresses[row] = [0 if array is None else self.place.address(array) for array in arrays]
        self._all_gradients = gradients
        self.shares_gradients = len(self.indices) == gradients.shape[1]
        own = gradients if self.shares_gradients else np.take(gradients, self.indices, axis=1)
        self.work = make_work(chunks, addresses, own, layouts, RULES[self.scalars].terms)
        self.engine = engine(self)
        table = self.work.table
        self.pack = struct.Struct(f"={table.shape[1]}{'f' if table.itemsize == 4 else 'd'}").pack_into
        self.settings: list[Any] = [(k * table.strides[0], *group) for k, group in enumerate(self.groups)]

    def connect_on_host(self, gradients: Array, layouts: Array) -> None:
        """`connect` to the CPU engine."""
        rows, columns, dtype = self.table_format
        table = np.zeros((rows, columns), dtype)
        self.connect(
            gradients,
            layouts,
            lambda chunks, addresses, own, layouts, terms: Work(chunks, addresses, own, layouts, table, terms),
        )

    def settings_together(self, own_decay: float) -> tuple[int, Array, Array]:
        """All `settings` as one, of arrays; ``own_decay`` is the optimizer's weight decay."""
        multipliers, decays = self._columns
        return 0, multipliers, np.where(np.isnan(decays), own_decay, decays)

    @functools.cached_property
    def _columns(self) -> tuple[Array, Array]:
        """Factors of the learning rate, and weight decays, NaN where that is the optimizer's own."""
        multipliers, decays = zip(*self.groups, strict=True)
        return np.array(multipliers, np.float64), np.array(decays, np.float64)

    @staticmethod
    def pack_together(table: Array, byte: int, *values: Any) -> None:
        """`pack` into all rows, from numbers and arrays of one per row.

        Raises
        ------
        FloatingPointError
            If one does not fit the table's dtype.
        """
        with np.errstate(over="raise"):
            for column, value in enumerate(values):
                table[:, column] = value

    def _address_rows(self) -> dict[int, list[Array | None]]:
        rows: dict[int, list[Array | None]] = {PARAM: [parameter.array for parameter in self.parameters]}
        rows |= {SLOTS + k: self.slots[name] for k, name in enumerate(self.rule_slots)}
        return rows | {row: self.slots[name] for row, name in _EXTRA_ROWS.items() if name in self.slots}

    def run_on_parameters(self, scalars: Any) -> None:
        """Run the rule of ``scalars`` once, without decay or clipping; what it returns replaces the parameters.

        The rule has this plan's slots; its gradients are the parameters themselves.
        """
        own = self.work
        gradients = np.stack([own.addresses[PARAM], np.full_like(own.addresses[PARAM], DIRECT)])
        row = [1.0, 1.0, np.inf, 0.0, 1.0, *scalars]
        table = np.array([row] * len(self.groups), self.dtype)
        kind: Any = type(scalars)
        if self.place.on_gpu:
            return own.run_once(kind, len(self.rule_slots), table, gradients, self.place.stream())
        work = Work(own.chunks, own.addresses, gradients, own.layouts, table)
        launch(kernel(step, kind, len(self.rule_slots), self.dtype), work, 0)

    def take_gradients(self) -> None:
        """Point the work's segments at the gradients that the optimizer has read."""
        if not self.shares_gradients:
            np.take(self._all_gradients, self.indices, axis=1, out=self.work.gradients)

    def follow_averages(self) -> None:
        """Have averages follow the steps that left rows alone."""
        if not self.place.on_gpu and self.engine.rows is not None:
            run(self.engine.rows.following(), self.engine.on_threads)

    def load_averages(self, for_good: bool) -> None:
        """Put the averages in the parameters' place; ``for_good``: also in that of what is kept beside them."""
        self.follow_averages()
        if self.kept is not None:
            return load_averages(self.kept, for_good)
        for parameter, average in zip(self.parameters, self.slots[AVERAGE_SLOT], strict=True):
            self.place.copy(parameter.array, average)

    def take_rows(self, rows: Mapping[int, Any], *stream: int) -> None:
        """Take the gradients that are there for some rows only, by number of the optimizer's parameter.

        A GPU is waited for, which sorts them on a ``stream``.

        Raises
        ------
        TypeError
            If the rule needs whole gradients.
        ValueError
            If a GPU finds an index that is out of range.
        """
        own = {k: rows[index] for k, index in enumerate(self.indices.tolist()) if index in rows} if rows else {}
        if own and self.kept is not None:
            raise TypeError(
                f"gradient {self.parameters[next(iter(own))].path}: what is kept in a storage format takes whole "
                "gradients: pass RowGradient.to_dense(shape), or keep it in float32"
            )
        if own and self.engine.row_step is None:
            path, rule = self.parameters[next(iter(own))].path, RULES[self.scalars].name
            raise TypeError(
                f"gradient {path}: the rule {rule} needs whole gradients: pass RowGradient.to_dense(shape), or choose "
                "an elementwise optimizer for it"
            )
        self.engine.take_rows(own, *stream)


_EXTRA_ROWS = {AVERAGE: AVERAGE_SLOT, ACCUMULATOR: ACCUMULATOR_SLOT}
