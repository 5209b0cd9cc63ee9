"""A fastopt optimizer at work on the memory of tensors: a torch optimizer's parameters on one device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..device import HOST, AnyArray, place_of
from ..device.strides import is_dense, memory_order
from ..gradients import ABSENT, BaseGradients
from ..optimizer import Optimizer
from ..parameters import Parameter, check_disjoint
from ..plan import AVERAGE_SLOT, Plan, Slot
from .gradients import TensorGradients, present_of
from .memory import as_array, check_parameter, kept, local, new_state
from .names import SLOTS
from .rows import Restructured, Rows

if TYPE_CHECKING:
    from .base import Fused


class Cohort:
    """Parameters that have been updated equally often: what counts their updates is one tensor of theirs together.

    Attributes
    ----------
    tensors : dict
        ``state[p]["step"]`` and the like, for every ``p`` of them.
    next_product : float
        What NAdam's ``mu_product`` becomes when the update that is under way is done.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        self.tensors = tensors
        self.next_product = 1.0
        self._count = count

    @property
    def count(self) -> int:
        """Updates so far. The tensor is asked: users may set it."""
        return int(self.tensors["step"].item()) if "step" in self.tensors else self._count

    @count.setter
    def count(self, value: int) -> None:
        self._count = value
        if "step" in self.tensors:
            self.tensors["step"].fill_(value)


class Member(NamedTuple):
    """A parameter of the torch optimizer."""

    path: str
    tensor: Any
    group: int  # number of its parameter group
    state: dict[str, Any]
    cohort: Cohort


class Row(NamedTuple):
    """What parameters have in common that share a row of the scalars table."""

    group: int
    cohort: Cohort
    extra: Hashable


class Engine(Optimizer):
    """One launch per rule and dtype for the parameters of one device, in all groups.

    Hyper-parameters, numbers and state are the torch optimizer's, its ``owner``: nothing of them is kept here.

    Parameters
    ----------
    owner : Fused
    members : list of Member
        On one device.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place.
    """

    def __init__(self, owner: Fused, members: list[Member]) -> None:
        self._owner = owner
        self._members = members
        self._by_path = {member.path: member for member in members}
        self._configure(
            {
                "learning_rate": 0.0, "weight_decay": None, "clipnorm": None, "clipvalue": owner.clip_value,
                "global_clipnorm": owner.clip_norm, "use_ema": owner.ema is not None,
                "ema_momentum": owner.ema if owner.ema is not None else 0.0, "ema_overwrite_frequency": None,
                "loss_scale_factor": None, "gradient_accumulation_steps": None, "name": None,
                "nonfinite": owner.nonfinite,
            }
        )  # fmt: skip
        self._note_addresses()
        self._present: list[int] | None = []
        self._tables: list[Rows] = []
        self._active: list[Cohort] = []
        self._take_charge(self._collect(), self._state_arrays)
        self._note_state()

    def _check_clips(self, clips: list[str]) -> None:
        """Both kinds may be on: first the norm, then the value."""

    # -- building ---------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Parameter]:
        members = self._members
        for member in members:
            check_parameter(member.path, member.tensor)
        on_gpu = members[0].tensor.device.type == "cuda"
        tensors = [local(member.tensor).detach() for member in members]
        place = place_of([member.path for member in members], tensors) if on_gpu else HOST
        arrays = [as_array(m.path, tensor, place) for m, tensor in zip(members, tensors, strict=True)]
        dense = [k for k, array in enumerate(arrays) if is_dense(array)]
        check_disjoint([members[k].path for k in dense], [arrays[k] for k in dense], place)
        return [
            Parameter(m.path, array, memory_order(array), True, 1.0, {}, None, place, tensor if on_gpu else None)
            for m, array, tensor in zip(members, arrays, tensors, strict=True)
        ]

    def _needs_c_order(self, parameter: Parameter) -> bool:
        return not is_dense(parameter.array) or self._owner._needs_c_order(parameter.axes)

    def _gradients_class(self) -> type[BaseGradients]:
        return super()._gradients_class() if self._place.on_gpu else TensorGradients

    def _make_plans(self) -> list[Plan]:
        owner = self._owner
        structures = [owner._structure_of(group) for group in owner.param_groups]
        members: dict[tuple[Any, ...], list[int]] = {}
        for k, (member, parameter) in enumerate(zip(self._members, self._parameters, strict=True)):
            members.setdefault((structures[member.group], parameter.array.dtype), []).append(k)
        extra = {AVERAGE_SLOT: Slot(copies_parameter=True)} if self.use_ema else {}
        plans = []
        for ((scalars, names), _), indices in members.items():
            chosen = [self._parameters[k] for k in indices]
            rows: list[Any] = [self._row_of(self._members[k]) for k in indices]
            slots = {SLOTS[name]: slot for name, slot in names}
            self._names = {SLOTS[name]: name for name, _ in names} | {AVERAGE_SLOT: "ema"}
            plans.append(Plan("", indices, chosen, rows, scalars, slots, extra, self._storage))
        return plans

    def _row_of(self, member: Member) -> Row:
        return Row(member.group, member.cohort, self._owner._extra(member.tensor))

    def _state_arrays(
        self, name: str, slot: Slot, parameters: list[Parameter]
    ) -> tuple[list[AnyArray | None], list[AnyArray]]:
        """The arrays of ``owner.state``, made where they are missing (see `plan.Storage`)."""
        arrays = [
            self._state_array(self._names[name], slot, p) if p.array.ndim in slot.axes else None for p in parameters
        ]
        return arrays, [array for array in arrays if array is not None]

    def _state_array(self, name: str, slot: Slot, parameter: Parameter) -> AnyArray:
        member = self._by_path[parameter.path]
        if member.state.get(name) is None:
            member.state[name] = new_state(member.tensor, parameter.array, slot)
        member.state[name], array = kept(member.state[name], parameter.array, self._place, slot.without)
        return array

    # -- what may have changed --------------------------------------------------------------------------------------

    def _note_addresses(self) -> None:
        self._tensors = [member.tensor for member in self._members]
        self._addresses = self._find_addresses()

    def _find_addresses(self) -> list[int]:
        tensors = map(local, self._tensors) if self._owner._distributed else self._tensors
        return [tensor.data_ptr() for tensor in tensors]

    def _note_state(self) -> None:
        """For each name the dicts that have it, and what they hold."""
        names = dict.fromkeys(name for member in self._members for name in member.state)
        self._state: list[tuple[Any, list[dict[str, Any]], list[Any]]] = []
        for name in names:
            if name not in self._owner._counters:
                states = [member.state for member in self._members if name in member.state]
                self._state.append((itemgetter(name), states, [state[name] for state in states]))

    def is_current(self, grads: list[Any]) -> bool:
        """Whether parameters and state still are the memory that they were. Reads the gradients, if that is quick."""
        if self.use_ema != (self._owner.ema is not None):
            return False
        quick = not (self._place.on_gpu or self._owner._distributed) and self._gradients.read_quickly
        if not (quick and quick(self._tensors, grads)) and self._find_addresses() != self._addresses:
            return False
        try:
            return all(all(map(is_, map(get, states), tensors)) for get, states, tensors in self._state)
        except KeyError:
            return False

    # -- stepping ---------------------------------------------------------------------------------------------------

    def run(self, grads: Sequence[torch.Tensor | None], unscale: float, zero: bool) -> bool:
        """One step; whether it was done, not skipped.

        Raises
        ------
        Restructured
            If a new engine must do it. Nothing has changed then.
        TypeError, ValueError, FloatingPointError
            If a gradient does not fit, or is not finite and ``nonfinite="raise"``. Nothing has changed then.
        """
        if self._evaluating:
            raise RuntimeError("a step inside evaluation_weights(): leave the context first")
        owner = self._owner
        self.global_clipnorm, self.clipvalue, self.nonfinite = owner.clip_norm, owner.clip_value, owner.nonfinite
        self.ema_momentum = owner.ema if owner.ema is not None else 0.0
        is_read = not self._place.on_gpu and self._gradients.is_read
        present = None if is_read else present_of(grads)
        self._find_active(present)
        given: Any = grads
        if self._place.on_gpu:
            given = [ABSENT if grad is None else grad for grad in grads]
        else:
            self._gradients.present = present
        try:
            self._read_and_step(given, zero, unscale, self.nonfinite, None)
        finally:
            self._gradients.release()
        # On a GPU whether a step was skipped costs waiting for it: only asked where it can be.
        if self.nonfinite != "propagate" and self.last_step_skipped:
            return False
        for cohort in self._active:
            owner._count(cohort)
        return True

    def _find_active(self, present: list[int] | None) -> None:
        """The cohorts that have gradients: all of a cohort or none."""
        if self._active and present == self._present:
            return
        wanted = set(range(len(self._members)) if present is None else present)
        having = dict.fromkeys(self._members[k].cohort for k in sorted(wanted))
        if any(m.cohort in having and k not in wanted for k, m in enumerate(self._members)):
            raise Restructured
        self._present, self._active = present, list(having)

    def _write_rows(self, unscale: float, divisor: float, t: int, ask: bool = True) -> None:
        if not self._tables:
            self._tables = [Rows(self._owner, plan) for plan in self._plans]
        for plan, table in zip(self._plans, self._tables, strict=True):
            if not plan.shares_gradients:
                plan.take_gradients()
            table.write(unscale, self.clipvalue or math.inf, self.ema_momentum)
