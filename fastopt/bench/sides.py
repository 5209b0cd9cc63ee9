"""Sides of a contest that are always there: fastopt, and the ceiling."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np

from ..kernels.cpu.ceiling import Loop, add_to_all, read
from .cases import Case
from .memory import MEMORY, Array
from .problem import Problem

SLOW = "FASTOPT_BENCH_SLOW"
"""Environment variable: an optimizer whose steps are to be slow, to see whether anything notices."""

SLOWED = 10
"""Steps that a step of such an optimizer takes."""


OTHER_BYTES = 64 << 20
"""Of other memory that is read before a cold step."""


def fill_caches() -> None:
    """Read other memory, on all threads, until no cache holds anything else."""
    _other_memory()()


@functools.cache
def _other_memory() -> Loop:
    array = MEMORY.empty((OTHER_BYTES // 4,), np.int32)
    array.fill(1)  # memory that nobody has written is one page, which all caches hold
    return Loop(read, array)


class Side:
    """One way to do the step of a case, on arrays of its own."""

    name = ""
    norm_in_float32 = False
    """Whether the norm that gradients are clipped to is summed up in float32."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.case: Case = problem.case

    def step(self) -> None:
        """Take one step, which is what is timed."""
        raise NotImplementedError

    def renew(self, k: int) -> None:
        """Write the gradients of step ``k``."""

    def prepare(self, k: int) -> None:
        """Do what comes before step ``k``; not timed."""
        if self.case.renews:
            self.renew(k)
        if self.case.cold:
            fill_caches()

    def params(self) -> list[Array]:
        """The parameters, in the shapes of the case."""
        raise NotImplementedError

    def slots(self) -> dict[str, list[Array]]:
        """State by fastopt's names for it, as far as this side has the same; the moving average is ``average``."""
        return {}


class OnArrays(Side):
    """A side with NumPy arrays of its own, which it steps in place, unless it says otherwise."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._params, self._grads = problem.copies()

    def renew(self, k: int) -> None:
        self.problem.renew(self._grads, k)

    def params(self) -> list[Array]:
        return self._params


class Fastopt(OnArrays):
    """This library."""

    name = "fastopt"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.optimizer = self.case.rule.make(**common_options(self.case))
        self.optimizer.build(self._params, overrides=overrides_of(self.case))
        self.slow = os.environ.get(SLOW, "").lower() == type(self.optimizer).__name__.lower()
        if self.slow:
            self.step = self._slow_step  # type: ignore[method-assign]

    def step(self) -> None:
        """One call of `apply`."""
        self.optimizer.apply(self._grads, zero_grads=self.case.options.zero_grads)

    def _slow_step(self) -> None:
        for _ in range(SLOWED):
            Fastopt.step(self)

    def slots(self) -> dict[str, list[Array]]:
        return slots_of(self.optimizer)


def slots_of(optimizer: Any) -> dict[str, list[Array]]:
    """Return those slots of fastopt's that every parameter has."""
    return {name: arrays for name, arrays in optimizer.slots.items() if all(array is not None for array in arrays)}


def averaging(case: Case) -> dict[str, Any]:
    """Return a case's moving average in the words of fastopt and Keras."""
    keep = case.options.ema
    return {} if keep is None else {"use_ema": True, "ema_momentum": keep}


def common_options(case: Case) -> dict[str, Any]:
    """Return a case's stack in the words of fastopt and Keras."""
    return {"global_clipnorm": case.options.clip, "loss_scale_factor": case.options.scale} | averaging(case)


def own_of(case: Case, k: int) -> dict[str, float]:
    """Return the hyper-parameters that one parameter has for itself, which is alone in its group."""
    if not case.groups:
        return {}
    return {"learning_rate": case.rule.hyper["learning_rate"] * (1.0 - k / 1000), "weight_decay": 1e-2 * (k % 2)}


def overrides_of(case: Case) -> dict[str, dict[str, float]] | None:
    """Return the hyper-parameters of single parameters, as `build` takes them."""
    if not case.groups:
        return None
    rate, found = case.rule.hyper["learning_rate"], {}
    for k in range(len(case.shapes)):
        own = own_of(case, k)
        found[f"^{k}$"] = {"learning_rate_multiplier": own.pop("learning_rate") / rate, **own}
    return found


class Traffic:
    """What one step of a built optimizer has to move.

    ``updated`` arrays are read and written, the gradient is read, and ``reads`` arrays are read once more (or, in place
    of that, written once more); all of them as large as the parameters.
    """

    def __init__(self, side: Fastopt) -> None:
        case, parameters = side.case, max(1, side.case.parameters)
        slots = sum(
            math.prod(array.shape) for arrays in side.optimizer.slots.values() for array in arrays if array is not None
        )
        self.updated = 1 + round(slots / parameters)
        self.reads = case.rule.facts.reads + (case.options.clip is not None) + case.options.zero_grads
        self.bytes_per_parameter = case.itemsize * (1 + 2 * self.updated + self.reads)


class Ceiling(Side):
    """Plain loops over flat arrays with as much traffic as the step of a case."""

    name = "ceiling"

    def __init__(self, problem: Problem, traffic: Traffic) -> None:
        super().__init__(problem)
        shape = (self.case.parameters,)
        arrays = [MEMORY.empty(shape, self.case.dtype) for _ in range(1 + traffic.updated)]
        for array in arrays:
            array.fill(1e-6)
        words = {4: np.int32, 8: np.int64}[self.case.itemsize]
        again = [arrays[k % len(arrays)].view(words) for k in range(traffic.reads)]
        self._loops = [*(Loop(read, array) for array in again), Loop(add_to_all, arrays[0], arrays[1:])]
        ends = np.cumsum([grad.size for grad in problem.grads])[:-1]
        self._grads = [
            part.reshape(grad.shape) for part, grad in zip(np.split(arrays[0], ends), problem.grads, strict=True)
        ]

    def step(self) -> None:
        """All loops once."""
        for loop in self._loops:
            loop()

    def renew(self, k: int) -> None:
        # What one thread has just written is in the caches for everybody, or for nobody.
        self.problem.renew(self._grads, k)
