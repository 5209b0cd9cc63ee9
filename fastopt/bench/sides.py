"""Sides of a contest that are always there: fastopt, and the ceiling."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .. import optimizers
from ..kernels.ceiling import Loop, add_to_all, read
from .cases import Case
from .memory import MEMORY, Array
from .problem import Problem

SLOW = "FASTOPT_BENCH_SLOW"
"""Environment variable: an optimizer whose steps are to be slow, to see whether anything notices."""

SLOWED = 10
"""Steps that a step of such an optimizer takes."""


class Side:
    """One way to do the step of a case, on arrays of its own."""

    name = ""
    norm_in_float32 = False
    """Whether the norm that gradients are clipped to is summed up in float32."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.case: Case = problem.case

    def step(self) -> None:
        """What is timed."""
        raise NotImplementedError

    def renew(self, k: int) -> None:
        """Write the gradients of step ``k``; not timed."""

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
        """See `Side`."""
        self.problem.renew(self._grads, k)

    def params(self) -> list[Array]:
        """See `Side`."""
        return self._params


class Fastopt(OnArrays):
    """This library."""

    name = "fastopt"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.optimizer = optimizer_of(self.case)
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
        """See `Side`."""
        found = self.optimizer.slots
        return {name: arrays for name, arrays in found.items() if all(array is not None for array in arrays)}


def optimizer_of(case: Case) -> Any:
    """fastopt's optimizer for a case, not built."""
    return getattr(optimizers, case.rule.optimizer)(**case.rule.hyper, **common_options(case))


def common_options(case: Case) -> dict[str, Any]:
    """A case's stack in the words of fastopt and Keras."""
    stack = case.options
    options: dict[str, Any] = {"global_clipnorm": stack.clip, "loss_scale_factor": stack.scale}
    return options | ({"use_ema": True, "ema_momentum": stack.ema} if stack.ema is not None else {})


def multiplier_of(index: int) -> float:
    """Factor of the learning rate of one of many groups."""
    return 1.0 - index / 1000


def decay_of(index: int) -> float:
    """Weight decay of one of many groups."""
    return 1e-2 * (index % 2)


def overrides_of(case: Case) -> dict[str, dict[str, float]] | None:
    """Hyper-parameters of single parameters, as `build` takes them."""
    if not case.groups:
        return None
    return {
        f"^{k}$": {"learning_rate_multiplier": multiplier_of(k), "weight_decay": decay_of(k)}
        for k in range(len(case.shapes))
    }


class Traffic:
    """What one step of a built optimizer has to move.

    ``updated`` arrays are read and written, the gradient is read, and ``reads`` arrays are read once more (or, in place
    of that, written once more); all of them as large as the parameters.
    """

    def __init__(self, side: Fastopt) -> None:
        case, parameters = side.case, max(1, side.case.parameters)
        slots = sum(array.size for arrays in side.optimizer.slots.values() for array in arrays if array is not None)
        self.updated = 1 + round(slots / parameters)
        self.reads = case.rule.reads + (case.options.clip is not None) + case.options.zero_grads
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
        """See `Side`: what one thread has just written is in the caches for everybody, or for nobody."""
        self.problem.renew(self._grads, k)
