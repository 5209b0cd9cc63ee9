"""Steps of parameters on the device "meta", which have no elements: all but the arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..plan import Slot
from .cohorts import Cohort, Member
from .memory import check_parameter, is_distributed, new_state

if TYPE_CHECKING:
    from .base import Fused


class MetaEngine:
    """Does to tensors without elements what an `engine.Engine` does to others: state appears, updates are counted.

    It does one step.

    Parameters
    ----------
    owner : Fused
        Or a weak reference to it.
    members : list of Member
    """

    last_grad_norm = None

    def __init__(self, owner: Fused, members: list[Member]) -> None:
        self._owner, self.members = owner, members
        self.distributed = any(is_distributed(member.tensor) for member in members)
        self._present: list[Member] = []
        self._is_new = True
        for member in members:
            check_parameter(member.path, member.tensor)

    def has_state_of(self, owner: Fused) -> bool:
        """See `engine.Engine`."""
        return self._is_new

    def is_current(self, grads: list[Any], same_state: bool = False) -> bool:
        """See `engine.Engine`."""
        return self._is_new

    def prepare_step(self, grads: list[Any], unscale: float, same_settings: bool = False) -> bool:
        """See `engine.Engine`."""
        self._present = [member for member, grad in zip(self.members, grads, strict=True) if grad is not None]
        return True

    def run(self, grads: list[Any], unscale: float, zero: bool) -> bool:
        """See `engine.Engine`."""
        self._is_new = False
        for cohort in dict.fromkeys(member.cohort for member in self._present):
            self._owner._count(cohort)
        return True

    def commit(self) -> None:
        """See `engine.Engine`."""
        for member in self._present:
            live = self._owner.state[member.tensor]
            found = {name: _as_tensor(live.get(name), member.cohort, name) for name in self._owner._counters}
            live.update(found | self._state_of(member))

    def _state_of(self, member: Member) -> dict[str, Any]:
        owner, tensor = self._owner, member.tensor
        slots = dict(owner._slots(member.cohort.group))
        if owner.ema is not None:
            slots["ema"] = Slot()
        missing = {name: slot for name, slot in slots.items() if member.state.get(name) is None}
        made = {name: new_state(tensor, None, slot) for name, slot in missing.items() if tensor.ndim in slot.axes}
        return member.state | made

    @property
    def stepped(self) -> list[torch.Tensor]:
        """See `engine.Engine`."""
        return [member.tensor for member in self._present]


def _as_tensor(known: Any, cohort: Cohort, name: str) -> torch.Tensor:
    """A counter, in the tensor that it is in already."""
    value = cohort.counters[name]
    if isinstance(known, torch.Tensor):
        return known.fill_(value)
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(value, dtype=dtype, device="cpu")
