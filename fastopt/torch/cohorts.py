"""Parameters that have been updated equally often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


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

    What a build does to its state is done to the copy here; `DeviceOptimizer.run` makes it known after a step.
    """

    path: str
    tensor: Any
    group: int  # number of its parameter group
    state: dict[str, Any]
    cohort: Cohort
    counters: dict[str, torch.Tensor]  # the tensors that count its updates: those in its state, or new ones


def path_of(group: Mapping[str, Any], number: int, k: int) -> str:
    """Name a parameter for messages."""
    name = f" ({group['param_names'][k]})" if "param_names" in group else ""
    return f"parameter {k} of group {number}{name}"
