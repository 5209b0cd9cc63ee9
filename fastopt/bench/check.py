"""The judge: fastopt in float64, which the tests hold against formulas from the papers; and whether all sides agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .memory import Array
from .problem import Problem
from .sides import Side, averaging, overrides_of, slots_of

STEPS, LARGE_STEPS = 3, 2
"""Steps that are taken; of large cases fewer: there is nothing in them that small ones lack."""

TOLERANCES = {"float32": 3e-5, "float64": 1e-11}
"""Of an array: relative to its largest number."""

MAY_DIFFER = 1e-3
"""Share of the elements that may be further off where a sign decides."""

ROUNDED_NORM = 200.0
"""Factor on the tolerance where gradients are clipped to a norm that was added up in float32: torch's is off by 4e-4
for a hundred million elements."""

ADDED_TO_NORM = 1e-6
"""Torch's `clip_grad_norm_` divides by so much more than the norm."""


class DisagreementError(Exception):
    """A side computes something else than the others."""


class Judge(Side):
    """The rule alone in float64; of elementwise rules only the elements that are compared.

    Gradients are unscaled and clipped here, by a norm of its own.
    """

    name = "fastopt in float64"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        stack, whole = self.case.options, not self.case.rule.elementwise
        self._params, self._grads = (
            [problem.sample(array, whole) for array in arrays] for arrays in (problem.params, problem.grads)
        )
        self._factor = 1.0 if stack.scale is None else 1 / stack.scale
        if stack.clip is not None:
            self._factor *= stack.clip / max(problem.norm() * self._factor, stack.clip)
        self._optimizer = self.case.rule.make(**averaging(self.case))
        self._optimizer.build(self._params, overrides=overrides_of(self.case))
        self._sign = 1

    def step(self) -> None:
        self._optimizer.apply([self._sign * self._factor * grad for grad in self._grads])

    def renew(self, k: int) -> None:
        self._sign = (-1) ** k

    def params(self) -> list[Array]:
        return [self.problem.sample(array) for array in self._params]

    def slots(self) -> dict[str, list[Array]]:
        found = slots_of(self._optimizer)
        return {name: [self.problem.sample(array) for array in arrays] for name, arrays in found.items()}


def check(problem: Problem, sides: Sequence[Side]) -> None:
    """Let the judge and all sides take the same steps from the same gradients; leave fresh gradients behind.

    Requires sides that have not been stepped yet, whose gradients are those of the problem.

    Raises
    ------
    DisagreementError
        If parameters, or slots that a side and the judge both have, are further apart than rounding takes them.
    """
    judge = Judge(problem)
    steps = LARGE_STEPS if problem.case.is_large else STEPS
    for side in (judge, *sides):
        side.step()  # its gradients are fresh
        for k in range(1, steps):
            side.renew(k)
            side.step()
    for side in sides:
        _compare(problem, side, judge)
        side.renew(0)


def _compare(problem: Problem, side: Side, judge: Judge) -> None:
    rounded = side.norm_in_float32 and problem.case.options.clip is not None
    expected = {"parameters": judge.params()} | judge.slots()
    found = {"parameters": side.params()} | side.slots()
    for what in expected.keys() & found.keys():
        for k, (one, two) in enumerate(zip(found[what], expected[what], strict=True)):
            if reason := _difference(problem, problem.sample(one), two, rounded):
                raise DisagreementError(f"{side.name} and {judge.name} disagree in {what} of array {k}: {reason}")


def _difference(problem: Problem, one: Array, two: Array, rounded_norm: bool) -> str | None:
    facts, dtype = problem.case.rule.facts, problem.case.dtype
    if one.shape != two.shape:
        return f"shapes {one.shape} and {two.shape}"
    if not two.size:
        return None
    relative = facts.looser * TOLERANCES[dtype]
    if rounded_norm:  # elements of gradients are about 1; where slots hold squares it counts twice
        relative = ROUNDED_NORM * relative + 2 * ADDED_TO_NORM / math.sqrt(problem.case.parameters)
    tolerance = relative * float(np.max(np.abs(two)))
    beyond = ~(np.abs(one - two) <= tolerance)  # NaN is beyond
    if np.count_nonzero(beyond) <= (MAY_DIFFER * two.size if facts.by_sign else 0):
        return None
    return f"{np.count_nonzero(beyond)} of {two.size} compared elements, by up to {np.max(np.abs(one - two)):.3g}"
