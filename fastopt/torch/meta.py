"""Steps of parameters on the device "meta", which have no elements: all but the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..counts import Call
from ..kernels.cpu.launch import one_call
from ..kernels.registry import Slot
from .cohorts import Member
from .counters import Counters
from .memory import check_parameter, is_distributed, new_state
from .rule import Owner


class MetaOptimizer:
    """Does to tensors without elements what a `DeviceOptimizer` does to others: state appears, updates are counted.

    It does one step.

    Parameters
    ----------
    owner : Owner
        Or a weak reference to it.
    members : list of Member
    """

    last_grad_norm = None
    has_recorded = True
    is_undecided = False

    def __init__(self, owner: Owner, members: list[Member]) -> None:
        self._owner, self.members = owner, members
        self.distributed = any(is_distributed(member.tensor) for member in members)
        self._counting = Counters(owner, members)
        self._present: list[Member] = []
        self._is_new = True
        for member in members:
            check_parameter(member.path, member.tensor)

    def is_current(self, grads: list[Any]) -> bool:
        """See `DeviceOptimizer`."""
        return self._is_new

    def prepare_step(self, grads: list[Any]) -> bool:
        """See `DeviceOptimizer`."""
        self._present = [member for member, grad in zip(self.members, grads, strict=True) if grad is not None]
        self._counting.prepare(list(dict.fromkeys(member.cohort for member in self._present)))
        return True

    def run(self, grads: list[Any], zero: bool, ends: Sequence[Call] = (), unscale: float = 1.0) -> bool:
        """See `DeviceOptimizer`."""
        self._is_new = False
        states = [(self._owner.state[member.tensor], self._state_of(member)) for member in self._present]
        one_call([*self._counting.writes, *(partial(live.update, found) for live, found in states), *ends])()
        self._counting.accept()
        self._counting.note_writing()
        return True

    def _state_of(self, member: Member) -> dict[str, Any]:
        owner, tensor = self._owner, member.tensor
        slots = owner.rule.slots(member.cohort.group)
        if owner.ema is not None:
            slots["ema"] = Slot()
        missing = {name: slot for name, slot in slots.items() if member.state.get(name) is None}
        made = {
            name: new_state(tensor, None, slot, tensor.dtype)
            for name, slot in missing.items()
            if tensor.ndim in slot.axes
        }
        return {**member.counters, **member.state, **made}

    @property
    def stepped(self) -> list[torch.Tensor]:
        """See `DeviceOptimizer`."""
        return [member.tensor for member in self._present]
