"""How hyper-parameters of torch's optimizers become scalars of a kernel's rule."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Protocol

import torch

from ..kernels.registry import Slot
from .cohorts import Cohort
from .options import Chosen

Slots = tuple[tuple[str, Slot], ...]
"""Of a rule, in its order, under torch's names."""


class Rule:
    """A rule under torch's names: functions of a parameter group, which keep nothing.

    Attributes
    ----------
    reads : tuple of str
        Hyper-parameters that the scalars depend on.
    counters : tuple of str
        State that is a number per parameter.
    needs_whole : bool
        Whether the rule looks at more than single elements.
    """

    reads: ClassVar[tuple[str, ...]]
    counters: ClassVar[tuple[str, ...]] = ("step",)
    needs_whole: ClassVar[bool] = False

    def slots(self, group: Mapping[str, Any]) -> Slots:
        """State arrays of the rule."""
        raise NotImplementedError

    def scalars(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> tuple[tuple[float, ...], float]:
        """The scalars for update number ``t``, and the share of itself that the parameter loses before.

        ``extra`` is what `extra` says of the parameter.
        """
        raise NotImplementedError

    def extra(self, tensor: torch.Tensor) -> Hashable:
        """What the scalars depend on beside hyper-parameters and counts."""
        return None

    def needs_c_order(self, axes: tuple[int, ...]) -> bool:
        """Whether the rule cannot work on a parameter whose axes lie so in memory."""
        return False

    def start(self, name: str, group: Mapping[str, Any]) -> float:
        """What a counter starts as."""
        return 0.0

    def count_of(self, state: Mapping[str, Any]) -> int:
        """Updates that a parameter has had, as far as its scalars depend on them."""
        return int(state["step"]) if "step" in state else 0

    def counted(self, cohort: Cohort) -> tuple[int, dict[str, float]]:
        """What ``count`` and ``counters`` of a cohort are after one more update."""
        count = cohort.count + 1
        return count, {"step": float(count)} if "step" in self.counters else {}

    def counted_apart(self, group: int) -> Hashable:
        """What cohorts must have in common beside their counters."""
        return None

    def structure(self, group: Mapping[str, Any]) -> tuple[type, Slots]:
        """What parameters must have in common to be stepped together: the class of the scalars, and slots."""
        sample = Cohort(group, {name: self.start(name, group) for name in self.counters}, 0, False)
        scalars, _ = self.scalars(group, 1, sample, (1, 1))
        return type(scalars), self.slots(group)


class Owner(Protocol):
    """A torch optimizer, as its engines see it."""

    rule: Rule
    param_groups: list[dict[str, Any]]
    state: Any
    flat: bool
    fused_backward: bool
    clip_norm: float | None
    clip_value: float | None
    ema: float | None
    nonfinite: str
    chosen: Chosen
    buffers: dict[Any, torch.Tensor]
