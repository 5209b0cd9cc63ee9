"""The tensors in state that count updates: each parameter's own, as in torch, read and written where they lie."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .._torch import filling, mark_of
from ..kernels.cpu.counters import DTYPES, compiled, handle_of
from .cohorts import Cohort, Member
from .memory import local
from .rule import Owner

_KINDS = {getattr(torch, name): (kind, np.dtype(name).type) for name, kind in DTYPES.items()}


def counter_of(name: str, found: Any, gpu_of: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor that counts from now on: what was found in state, unless that is a number, or cannot hold one.

    With ``gpu_of`` it is on the GPU of that tensor.
    """
    counter = _counter_of(name, found)
    if gpu_of is None or counter.device == gpu_of.device:
        return counter
    return gpu_of.new_full((), float(counter), dtype=counter.dtype)


def _counter_of(name: str, found: Any) -> torch.Tensor:
    if isinstance(found, torch.Tensor) and (
        found.dtype.is_floating_point or (name == "step" and found.dtype in _KINDS)
    ):
        is_fixed = found.is_inference() and not torch.is_inference_mode_enabled()
        return found.clone() if is_fixed else found
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(found), dtype=dtype, device="cpu")


class Counters:
    """What all counters of an optimizer's parameters say, cohort by cohort.

    Whoever has the tensors too (another process, another optimizer) sees every step counted, and may count himself.

    Parameters
    ----------
    owner : Owner
        Or a weak reference to it.
    members : list of Member

    Attributes
    ----------
    writes : list of function
        Called in order, without arguments, they have the tensors say what `prepare` has found. None runs Python code.
    far : list of torch.Tensor
        Those of the tensors that are not written to by their address; each once.
    """

    def __init__(self, owner: Owner, members: list[Member]) -> None:
        self._rule, self._names = owner.rule, owner.rule.counters
        self._cohorts = list(dict.fromkeys(member.cohort for member in members))
        numbers = {key: number for number, key in enumerate(itertools.product(self._cohorts, self._names))}
        counters = [
            (local(member.counters[name]), numbers[member.cohort, name]) for member in members for name in self._names
        ]
        self._numbers = numbers
        self._round = {number: _rounding(tensor.dtype) for tensor, number in counters}
        self._near = [(tensor, number) for tensor, number in counters if _is_near(tensor)]
        self._far = [(tensor, number) for tensor, number in counters if not _is_near(tensor)]
        self._make_tables()
        self._active: list[Cohort] | None = None
        self._counted: list[tuple[Cohort, int, dict[str, float]]] = []
        self._far_versions = self._versions()
        self._far_numbers: list[int] = []  # of the active ones,
        self._far_values: Any = []  # and what they will be
        self.writes: list[Callable[[], Any]] = []
        self.far: list[torch.Tensor] = []

    def _make_tables(self) -> None:
        rows = [(tensor.data_ptr(), _KINDS[tensor.dtype][0], number) for tensor, number in self._near]
        self._places = np.array(rows, np.int64).reshape(-1, 3)
        self._known = np.array([cohort.counters[name] for cohort, name in self._numbers], np.float64)
        self._coming, self._wanted = self._known.copy(), np.zeros(len(self._known), np.int64)
        self._found = np.zeros(len(rows))
        self._handle = handle_of(self._places, self._coming, self._wanted, self._known, self._found)
        self._write: Callable[[], Any] | None = None
        self._read: Callable[[], bool] | None = None
        if self._near:
            self._write, self._read = (functools.partial(each, self._handle.ctypes.data) for each in compiled())

    # -- reading ----------------------------------------------------------------------------------------------------

    def read(self) -> bool:
        """Take up what others have written to the tensors; False if cohorts are not what they were.

        Requires the tensors to have their memory where it was.
        """
        if self._far and self._versions() != self._far_versions:
            return False
        if self._read is None or self._read():
            return True
        return not self._far and self._take_up()

    def _take_up(self) -> bool:
        """After `_read`: whether what it found is one number for each cohort, as it is now."""
        places = self._places[:, 2]
        now = np.zeros_like(self._known)
        now[places] = self._found
        if not np.array_equal(now[places], self._found):
            return False
        self._known[:] = now
        for cohort in self._cohorts:
            cohort.counters = {name: float(now[self._numbers[cohort, name]]) for name in self._names}
            cohort.count = self._rule.count_of(cohort.counters)
        return True

    def _versions(self) -> list[Any]:
        """Return what tells of writing to tensors that are not read at every step: it may take waiting for a GPU."""
        return [mark_of(tensor) for tensor, _ in self._far]

    @property
    def counts(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """What all cohorts are taken to have counted."""
        return tuple((cohort.count, cohort.counters) for cohort in self._cohorts)

    @counts.setter
    def counts(self, counts: tuple[tuple[int, dict[str, float]], ...]) -> None:
        for cohort, (count, counters) in zip(self._cohorts, counts, strict=True):
            cohort.count, cohort.counters = count, counters
        self._known[:] = [cohort.counters[name] for cohort, name in self._numbers]

    # -- writing ----------------------------------------------------------------------------------------------------

    def prepare(self, active: list[Cohort]) -> None:
        """Work out what the counters of cohorts will be after a step; only their tensors are written to."""
        if active is not self._active:
            self._select(active)
        self._counted = [(cohort, *self._rule.counted(cohort)) for cohort in active]
        self._coming[:] = self._known
        for cohort, _, counters in self._counted:
            for name in self._names:
                number = self._numbers[cohort, name]
                self._coming[number] = counters[name] = self._round[number](counters[name])
        self._far_values[:] = [self._coming[number].item() for number in self._far_numbers]

    def _select(self, active: list[Cohort]) -> None:
        self._active = active
        wanted = [self._numbers[cohort, name] for cohort in active for name in self._names]
        self._wanted[:] = 0
        self._wanted[wanted] = 1
        far = [(tensor, number) for tensor, number in self._far if self._wanted[number]]
        tensors, self._far_numbers = [tensor for tensor, _ in far], [number for _, number in far]
        self.far = list({tensor.data_ptr(): tensor for tensor in tensors}.values())
        self.writes, self._far_values = [] if self._write is None else [self._write], []
        if far:
            self._far_values, fills = filling(tensors)
            self.writes += fills

    def accept(self) -> None:
        """After `writes`: the cohorts have been updated."""
        for cohort, count, counters in self._counted:
            cohort.count, cohort.counters = count, counters
        self._known[:] = self._coming

    def note_writing(self) -> None:
        """Take the tensors to say what the cohorts have counted: nobody else has written to them."""
        if self._far:
            self._far_versions = self._versions()

    def are_steps_on(self, device: torch.device) -> bool:
        """Whether all tensors are there, and each goes up by one with every update."""
        return self._names in ((), ("step",)) and all(tensor.device == device for tensor, _ in self._near + self._far)


def _is_near(tensor: torch.Tensor) -> bool:
    """Whether a tensor's number can be read and written by its address."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype in _KINDS
        and not tensor.is_neg()
        and tensor.data_ptr() != 0
    )


def _rounding(dtype: torch.dtype) -> Callable[[float], float]:
    """Return a function from a number to what becomes of it in a tensor of this dtype."""
    if dtype in _KINDS:
        convert = _KINDS[dtype][1]
        return lambda value: float(convert(value))
    return lambda value: torch.tensor(value, dtype=dtype, device="cpu").item()
