"""Keras 3's four decays without a cosine."""

import bisect
import math
from collections.abc import Sequence

from . import checks
from .base import LearningRateSchedule


class ExponentialDecay(LearningRateSchedule):
    """Multiplies the rate by ``decay_rate`` every ``decay_steps`` steps.

    ``learning_rate = initial_learning_rate * decay_rate ** (step / decay_steps)``

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps per multiplication, > 0.
    decay_rate : float
        Factor, >= 0 (Keras takes a negative one and gives NaN between multiples of ``decay_steps``).
    staircase : bool
        Round ``step / decay_steps`` down, so that the rate falls in jumps.

    Raises
    ------
    OverflowError
        ``decay_rate > 1`` has grown the rate past float64.

    Examples
    --------
    >>> schedule = ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = "ExponentialDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = checks.positive("decay_steps", decay_steps)
        self.decay_rate = checks.at_least(0, "decay_rate", decay_rate)
        self.staircase = checks.flag("staircase", staircase)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        return self.initial_learning_rate * self.decay_rate ** _periods(step, self.decay_steps, self.staircase)


class PiecewiseConstantDecay(LearningRateSchedule):
    """One constant rate per interval of steps.

    ``values[i]`` holds for ``boundaries[i - 1] < step <= boundaries[i]``: a boundary still belongs to the interval
    before it. The first value has no lower bound, the last no upper one.

    Parameters
    ----------
    boundaries : sequence of float
        Steps, strictly increasing (Keras does not check this). An empty one gives a constant; Keras fails at the first
        call.
    values : sequence of float
        Learning rates, one more than boundaries.

    Raises
    ------
    ValueError
        The lengths do not match, or the boundaries are not increasing.

    Examples
    --------
    >>> schedule = PiecewiseConstantDecay([100, 110], [1.0, 0.5, 0.1])
    >>> [schedule(step) for step in (0, 100, 101, 111)]
    [1.0, 1.0, 0.5, 0.1]
    """

    def __init__(
        self, boundaries: Sequence[float], values: Sequence[float], name: str | None = "PiecewiseConstant"
    ) -> None:
        self.boundaries = checks.increasing("boundaries", boundaries)
        self.values = checks.numbers("values", values)
        self.name = checks.label(name)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values must have one element more than boundaries, got {len(self.values)} values "
                f"and {len(self.boundaries)} boundaries"
            )

    def __call__(self, step: float) -> float:
        return float(self.values[bisect.bisect_left(self.boundaries, checks.elapsed(step))])


class PolynomialDecay(LearningRateSchedule):
    """Falls from one rate to another along a power of the remaining time.

    ``learning_rate = (initial_learning_rate - end_learning_rate) * (1 - s / d) ** power + end_learning_rate`` with
    ``s = min(step, decay_steps)`` and ``d = decay_steps``. With ``cycle`` the step is not capped and ``d`` is the first
    positive multiple of ``decay_steps`` that is not below the step.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps until ``end_learning_rate``, > 0.
    end_learning_rate : float
    power : float
        >= 0; 1 is a straight line (Keras takes a negative power and ends at infinity).
    cycle : bool
        Start over, towards the next multiple, instead of staying at ``end_learning_rate``.

    Examples
    --------
    >>> schedule = PolynomialDecay(1.0, decay_steps=4, end_learning_rate=0.0, power=2.0)
    >>> [schedule(step) for step in (0, 2, 4, 9)]
    [1.0, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str | None = "PolynomialDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = checks.positive("decay_steps", decay_steps)
        self.end_learning_rate = checks.finite("end_learning_rate", end_learning_rate)
        self.power = checks.at_least(0, "power", power)
        self.cycle = checks.flag("cycle", cycle)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        periods = checks.elapsed(step) / self.decay_steps
        done = periods / max(1, math.ceil(periods)) if self.cycle else min(periods, 1.0)
        distance = self.initial_learning_rate - self.end_learning_rate
        return distance * (1.0 - done) ** self.power + self.end_learning_rate


class InverseTimeDecay(LearningRateSchedule):
    """Divides the rate by a number that grows linearly with the step.

    ``learning_rate = initial_learning_rate / (1 + decay_rate * step / decay_steps)``

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps in which the divisor grows by ``decay_rate``, > 0.
    decay_rate : float
        >= 0 (Keras takes a negative one, whose rate has a pole and then changes sign).
    staircase : bool
        Round ``step / decay_steps`` down, so that the rate falls in jumps.

    Examples
    --------
    >>> schedule = InverseTimeDecay(0.1, decay_steps=10, decay_rate=1.0)
    >>> [schedule(step) for step in (0, 10, 30)]
    [0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = "InverseTimeDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = checks.positive("decay_steps", decay_steps)
        self.decay_rate = checks.at_least(0, "decay_rate", decay_rate)
        self.staircase = checks.flag("staircase", staircase)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        periods = _periods(step, self.decay_steps, self.staircase)
        return self.initial_learning_rate / (1.0 + self.decay_rate * periods)


def _periods(step: float, decay_steps: float, staircase: bool) -> float:
    periods = checks.elapsed(step) / decay_steps
    return float(math.floor(periods)) if staircase else periods
