"""Parameters that have been updated equally often, and the tensors in state that count their updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

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

    What a build does to its state is done to the copy here; `engine.Engine.commit` makes it known after a step.
    """

    path: str
    tensor: Any
    group: int  # number of its parameter group
    state: dict[str, Any]
    cohort: Cohort


class Counters:
    """The tensors that count updates: one for each parameter, as torch has them, but all elements of one array.

    Parameters
    ----------
    names : tuple of str
    cohorts : list of Cohort
        Of each parameter.
    """

    def __init__(self, names: Sequence[str], cohorts: list[Cohort]) -> None:
        self._names, self._cohorts = names, list(dict.fromkeys(cohorts))
        numbers = {cohort: k for k, cohort in enumerate(self._cohorts)}
        self._places = np.array([numbers[cohort] for cohort in cohorts], np.int64)
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        self._tensor = torch.zeros((len(names), len(cohorts)), dtype=dtype, device="cpu")
        self._array = self._tensor.numpy()
        self.write()

    def of(self, k: int) -> dict[str, torch.Tensor]:
        """Those of parameter ``k``."""
        return {name: self._tensor[row, k] for row, name in enumerate(self._names)}

    def write(self) -> None:
        """Have the tensors say what the cohorts say; these take up the rounding."""
        for row, name in enumerate(self._names):
            values = np.array([cohort.counters[name] for cohort in self._cohorts], self._array.dtype)
            values.take(self._places, out=self._array[row])
            for cohort, value in zip(self._cohorts, values.tolist(), strict=True):
                cohort.counters[name] = value
        self._written = self._array.tobytes()

    @property
    def unchanged(self) -> bool:
        """Whether nobody else has written to the tensors."""
        return self._array.tobytes() == self._written


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
    counters = {name: float(state.pop(name, owner._start(name, group))) for name in owner._counters}
    count = owner._count_of({**counters, **state})
    averages = "ema" in state
    key = (
        known.get(tensor),
        device_of(tensor),
        *counters.values(),
        count,
        averages,
        grad is None,
        owner._counted_apart(g),
    )
    cohort = cohorts.get(key) or cohorts.setdefault(key, Cohort(group, counters, count, averages))
    return Member(path_of(group, g, k), tensor, g, state, cohort)


def _is_member(owner: Fused, tensor: Any, grad: Any, known: Known) -> bool:
    if grad is not None:
        return True
    return bool(owner.state.get(tensor) or tensor in known) and is_updatable(tensor)


def path_of(group: Mapping[str, Any], number: int, k: int) -> str:
    """What a parameter is called in messages."""
    name = f" ({group['param_names'][k]})" if "param_names" in group else ""
    return f"parameter {k} of group {number}{name}"
