"""Parameters that have been updated equally often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .counters import counter_of
from .memory import device_of, is_updatable

if TYPE_CHECKING:
    from .base import Fused


class Cohort:
    """Parameters that have been updated equally often: they share a row of scalars.

    Attributes
    ----------
    group : dict
        A parameter group of theirs.
    counters : dict of str to float
        What ``state[p]["step"]`` and the like are, for every ``p`` of them.
    count : int
        Updates so far, as far as scalars depend on them.
    averages : bool
        Whether their moving average has begun.
    """

    def __init__(self, group: Mapping[str, Any], counters: dict[str, float], count: int, averages: bool) -> None:
        self.group, self.counters, self.count, self.averages = group, counters, count, averages


class Member(NamedTuple):
    """A parameter of the torch optimizer.

    What a build does to its state is done to the copy here; `engine.Engine.run` makes it known after a step.
    """

    path: str
    tensor: Any
    group: int  # number of its parameter group
    state: dict[str, Any]
    cohort: Cohort
    counters: dict[str, torch.Tensor]  # the tensors that count its updates: those in its state, or new ones


Known = Mapping[Any, Cohort]
"""Parameter → the cohort that it was in."""


def members_of(owner: Fused, params: list[Any], grads: list[Any], known: Known) -> dict[int, Member]:
    """The parameters that are to be stepped, by their number, in cohorts.

    Those that were divided before stay so: what comes without a gradient at one step is likely to do so again.
    """
    places = [(g, k) for g, group in enumerate(owner.param_groups) for k in range(len(group["params"]))]
    cohorts: dict[Any, Cohort] = {}
    return {
        number: member_of(owner, tensor, grad, *places[number], cohorts, known)
        for number, (tensor, grad) in enumerate(zip(params, grads, strict=True))
        if _is_member(owner, tensor, grad, known)
    }


def member_of(owner: Fused, tensor: Any, grad: Any, g: int, k: int, cohorts: dict[Any, Cohort], known: Known) -> Member:
    """Parameter ``k`` of group ``g``; its cohort is one of ``cohorts``, or is added to them."""
    group, state = owner.param_groups[g], dict(owner.state.get(tensor, ()))
    tensors = {name: counter_of(name, state.pop(name, owner._start(name, group))) for name in owner._counters}
    counters = {name: float(tensor) for name, tensor in tensors.items()}
    count = owner._count_of({**counters, **state})
    averages = "ema" in state
    key = (
        known.get(tensor),
        device_of(tensor),
        *counters.values(),
        *(tensor.dtype for tensor in tensors.values()),  # each rounds in its own way
        count,
        averages,
        grad is None,
        owner._counted_apart(g),
    )
    cohort = cohorts.get(key) or cohorts.setdefault(key, Cohort(group, counters, count, averages))
    return Member(path_of(group, g, k), tensor, g, state, cohort, tensors)


def _is_member(owner: Fused, tensor: Any, grad: Any, known: Known) -> bool:
    if grad is not None:
        return True
    return bool(owner.state.get(tensor) or tensor in known) and is_updatable(tensor)


def path_of(group: Mapping[str, Any], number: int, k: int) -> str:
    """What a parameter is called in messages."""
    name = f" ({group['param_names'][k]})" if "param_names" in group else ""
    return f"parameter {k} of group {number}{name}"
