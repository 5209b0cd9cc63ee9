"""All sides compute the same, or nothing is timed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .memory import Array
from .peers.numpy import Judge
from .problem import Problem
from .sides import Side

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

LOOSER = {"Muon": 100.0}
"""Factor on the tolerance of rules that amplify rounding: iterated products of matrices do."""


class DisagreementError(Exception):
    """A side computes something else than the others."""


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
    rule, dtype = problem.case.rule, problem.case.dtype
    if one.shape != two.shape:
        return f"shapes {one.shape} and {two.shape}"
    if not two.size:
        return None
    relative = LOOSER.get(rule.optimizer, 1.0) * TOLERANCES[dtype]
    if rounded_norm:  # elements of gradients are about 1; where slots hold squares it counts twice
        relative = ROUNDED_NORM * relative + 2 * ADDED_TO_NORM / math.sqrt(problem.case.parameters)
    tolerance = relative * float(np.max(np.abs(two)))
    beyond = ~(np.abs(one - two) <= tolerance)  # NaN is beyond
    if np.count_nonzero(beyond) <= (MAY_DIFFER * two.size if rule.by_sign else 0):
        return None
    return f"{np.count_nonzero(beyond)} of {two.size} compared elements, by up to {np.max(np.abs(one - two)):.3g}"
