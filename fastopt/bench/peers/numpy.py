"""NumPy, as one would write it without a library: elementwise rules in blocks that stay in a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..cases import Case
from ..memory import Array
from ..problem import Problem
from ..rules import RULES, slots_of
from ..sides import OnArrays, Side, decay_of, multiplier_of
from .base import Peer

BLOCK = 16_384


class Steps:
    """Steps of a case's rule and stack on arrays of any precision, gradients given with their norm."""

    def __init__(self, case: Case, params: list[Array], blocked: bool) -> None:
        rule = case.rule
        self._rule, self._stack, self._optimizer = RULES[rule.optimizer], case.options, rule.optimizer
        self._blocked = blocked and rule.elementwise
        self._hyper = [rule.hyper | _own(case, k) for k in range(len(params))]
        self.params = params
        self.slots = [slots_of(rule.optimizer, h, param) for h, param in zip(self._hyper, params, strict=True)]
        self.averages: list[Array] = []
        self._t = 0

    def step(self, grads: list[Array], norm: float) -> None:
        """One step; gradients are read only."""
        self._t += 1
        factor = self._factor(norm)
        for param, grad, slots, h in zip(self.params, grads, self.slots, self._hyper, strict=True):
            for p, g, own in self._pieces(param, grad, slots):
                self._rule(p, g * factor if factor != 1 else g, own, h, self._t)
        if self._stack.ema is not None:
            self._average(self._stack.ema)

    def _factor(self, norm: float) -> float:
        unscale = 1.0 if self._stack.scale is None else 1 / self._stack.scale
        clip = self._stack.clip
        return unscale if clip is None else unscale * clip / max(norm * unscale, clip)

    def _pieces(
        self, param: Array, grad: Array, slots: dict[str, Array]
    ) -> Iterator[tuple[Array, Array, dict[str, Array]]]:
        if not self._blocked or param.size <= BLOCK:
            yield param, grad, slots
            return
        flat = [array.reshape(-1) for array in (param, grad, *slots.values())]
        for start in range(0, param.size, BLOCK):
            p, g, *own = (array[start : start + BLOCK] for array in flat)
            yield p, g, dict(zip(slots, own, strict=True))

    def _average(self, keep: float) -> None:
        if not self.averages:
            self.averages = [param.copy() for param in self.params]
        for average, param in zip(self.averages, self.params, strict=True):
            average += (1 - keep) * (param - average)


def _own(case: Case, k: int) -> dict[str, float]:
    """Hyper-parameters that one parameter has for itself."""
    if not case.groups:
        return {}
    rate = case.rule.hyper["learning_rate"]
    return {"learning_rate": rate * multiplier_of(k), "weight_decay": decay_of(k)}


class Numpy(OnArrays, Peer):
    """The rules of the judge, in the precision of the case."""

    name = "NumPy"
    package = "numpy"
    arrays_beside = 0.1

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._steps = Steps(self.case, self._params, blocked=True)

    def step(self) -> None:
        """One step."""
        norm = 0.0
        if self.case.options.clip is not None:
            norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in self._grads))
        self._steps.step(self._grads, norm)
        if self.case.options.zero_grads:
            for grad in self._grads:
                grad.fill(0)

    def slots(self) -> dict[str, list[Array]]:
        """See `Side`."""
        return slots_by_name(self._steps)


class Judge(Side):
    """The same in float64: of elementwise rules only the elements that are compared."""

    name = "NumPy in float64"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._params, self._grads = (
            [problem.sample(array, whole=not self.case.rule.elementwise) for array in arrays]
            for arrays in (problem.params, problem.grads)
        )
        self._norm = problem.norm() if self.case.options.clip is not None else 0.0
        self._steps = Steps(self.case, self._params, blocked=False)
        self._sign = 1

    def step(self) -> None:
        """One step."""
        self._steps.step([self._sign * grad for grad in self._grads], self._norm)

    def renew(self, k: int) -> None:
        """See `Side`."""
        self._sign = (-1) ** k

    def params(self) -> list[Array]:
        """The sampled elements."""
        return self._sampled(self._steps.params)

    def slots(self) -> dict[str, list[Array]]:
        """The sampled elements."""
        return {name: self._sampled(arrays) for name, arrays in slots_by_name(self._steps).items()}

    def _sampled(self, arrays: list[Array]) -> list[Array]:
        return [self.problem.sample(array) for array in arrays]


def slots_by_name(steps: Steps) -> dict[str, list[Array]]:
    """Those that every parameter has."""
    common = [name for name in steps.slots[0] if all(name in slots for slots in steps.slots)]
    found = {name: [slots[name] for slots in steps.slots] for name in common}
    return found | ({"average": steps.averages} if steps.averages else {})
