"""NumPy, as one would write it without a library, in blocks that stay in a cache: AdamW, and SGD with momentum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..cases import Case
from ..memory import Array
from ..problem import Problem
from ..sides import OnArrays, own_of
from .base import Peer

BLOCK = 16_384


def _adamw(t: int, h: dict[str, float], param: Array, grad: Array, momentum: Array, velocity: Array) -> None:
    for average, value, keep in ((momentum, grad, h["beta_1"]), (velocity, grad * grad, h["beta_2"])):
        average *= keep
        average += (1 - keep) * value
    param *= 1 - h["learning_rate"] * h.get("weight_decay", 0.0)
    alpha = h["learning_rate"] * math.sqrt(1 - h["beta_2"] ** t) / (1 - h["beta_1"] ** t)
    param -= alpha * momentum / (np.sqrt(velocity) + h["epsilon"])


def _momentum(t: int, h: dict[str, float], param: Array, grad: Array, momentum: Array) -> None:
    momentum *= h["momentum"]
    momentum -= h["learning_rate"] * grad
    param += momentum


RULES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "adam": (_adamw, ("momentum", "velocity")),
    "adamw": (_adamw, ("momentum", "velocity")),
    "sgd-momentum": (_momentum, ("momentum",)),
}
"""Recipe → its rule, and its slots."""


class Numpy(OnArrays, Peer):
    """The rule on one block after the other."""

    name = "NumPy"
    package = "numpy"
    arrays_beside = 0.1

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._rule, names = RULES[self.case.recipe]
        self._slots = {name: [np.zeros_like(param) for param in self._params] for name in names}
        self._averages: list[Array] = []
        self._hyper = [self.case.rule.hyper | own_of(self.case, k) for k in range(len(self._params))]
        self._t = 0

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        return None if case.recipe in RULES else f"it would not be {case.recipe} that one writes by hand"

    def step(self) -> None:
        stack, factor = self.case.options, 1.0
        if stack.scale is not None:
            factor = 1 / stack.scale
        if stack.clip is not None:
            norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in self._grads))
            factor *= stack.clip / max(norm * factor, stack.clip)
        self._t += 1
        for h, *arrays in zip(self._hyper, self._params, self._grads, *self._slots.values(), strict=True):
            self._update(factor, h, [array.reshape(-1) for array in arrays])
        if stack.ema is not None:
            self._average(stack.ema)
        if stack.zero_grads:
            for grad in self._grads:
                grad.fill(0)

    def _update(self, factor: float, h: dict[str, float], arrays: list[Array]) -> None:
        for start in range(0, arrays[0].size, BLOCK):
            param, grad, *slots = (array[start : start + BLOCK] for array in arrays)
            self._rule(self._t, h, param, grad * factor if factor != 1 else grad, *slots)

    def _average(self, keep: float) -> None:
        if not self._averages:
            self._averages = [param.copy() for param in self._params]
        for average, param in zip(self._averages, self._params, strict=True):
            average += (1 - keep) * (param - average)

    def slots(self) -> dict[str, list[Array]]:
        return self._slots | ({"average": self._averages} if self._averages else {})
