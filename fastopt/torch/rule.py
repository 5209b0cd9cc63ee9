"""How hyper-parameters of torch's optimizers become scalars of a kernel's rule."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Protocol

import torch

from ..kernels.registry import RULES, Slot, scalars_of
from .cohorts import Cohort
from .options import Chosen


class Rule:
    """A rule under torch's names: functions of a parameter group, which keep nothing.

    Attributes
    ----------
    names : mapping
        Slot of the rule → what torch calls it in ``state``.
    reads : tuple of str
        Hyper-parameters that the scalars depend on.
    counters : tuple of str
        State that is a number per parameter.
    needs_whole : bool
        Whether the rule looks at more than single elements.
    needs_sparse : bool
        Whether the optimizer takes nothing but sparse gradients.
    needs_cpu : bool
        Whether it steps parameters on the CPU only. Others may be added, whose place those take before a step.
    """

    names: ClassVar[Mapping[str, str]]
    reads: ClassVar[tuple[str, ...]]
    counters: ClassVar[tuple[str, ...]] = ("step",)
    needs_whole: ClassVar[bool] = False
    needs_sparse: ClassVar[bool] = False
    needs_cpu: ClassVar[bool] = False

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        """Return what the scalars follow from, and the share of itself that the parameter loses before a step.

        ``extra`` is what `extra` says of the parameter.
        """
        raise NotImplementedError

    def scalars(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> tuple[Any, float]:
        """Return the scalars for update number ``t``, and the share of `settings`."""
        settings, share = self.settings(group, cohort, extra)
        return scalars_of(settings, t), share

    def slots(self, group: Mapping[str, Any]) -> dict[str, Slot]:
        """Return the state arrays of the rule, under torch's names."""
        scalars = self._sample(group)
        return {
            self.names[name]: slot._replace(start=float(group[slot.starts_as])) if slot.starts_as else slot
            for name, slot in RULES[scalars].slots.items()
        }

    def extra(self, tensor: torch.Tensor) -> Hashable:
        """Return what the scalars depend on beside hyper-parameters and counts."""
        return None

    def needs_c_order(self, axes: tuple[int, ...]) -> bool:
        """Whether the rule cannot work on a parameter whose axes lie so in memory."""
        return False

    def takes_rows(self, group: Mapping[str, Any]) -> bool:
        """Whether rows without a gradient are to stay as they are: so a step with some rows is what torch makes it."""
        return False

    def start(self, name: str, group: Mapping[str, Any]) -> float:
        """Return what a counter starts as."""
        return 0.0

    def count_of(self, state: Mapping[str, Any]) -> int:
        """Updates that a parameter has had, as far as its scalars depend on them."""
        return int(state["step"]) if "step" in state else 0

    def counted(self, cohort: Cohort) -> tuple[int, dict[str, float]]:
        """Return ``count`` and ``counters`` of a cohort after one more update."""
        count = cohort.count + 1
        return count, {"step": float(count)} if "step" in self.counters else {}

    def counted_apart(self, group: int) -> Hashable:
        """Return what cohorts must have in common beside their counters."""
        return None

    def structure(self, group: Mapping[str, Any]) -> tuple[type, tuple[tuple[str, Slot], ...]]:
        """Return what parameters must have in common to be stepped together: the class of the scalars, and slots."""
        return self._sample(group), tuple(self.slots(group).items())

    def _sample(self, group: Mapping[str, Any]) -> type:
        """Return the class of the scalars."""
        sample = Cohort(group, {name: self.start(name, group) for name in self.counters}, 0, False)
        return type(self.scalars(group, 1, sample, (1, 1))[0])


class Owner(Protocol):
    """A torch optimizer, as its device optimizers see it."""

    rule: Rule
    param_groups: list[dict[str, Any]]
    state: Any
    flat: bool
    fused_backward: bool
    clip_norm: float | None
    clip_value: float | None
    ema: float | None
    nonfinite: str
    slot_dtype: str | Mapping[str, str | None] | None
    master_weights: str | None
    compensation: str | None
    stochastic_rounding: bool
    seed: int
    chosen: Chosen
    buffers: dict[Any, torch.Tensor]
