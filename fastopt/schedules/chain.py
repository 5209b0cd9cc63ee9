"""Schedules one after the other."""

import bisect
from collections.abc import Sequence

from . import checks
from .base import LearningRateSchedule, rate_at, rate_or_schedule


class Chain(LearningRateSchedule):
    """One schedule after the other, each from its own step 0: ``optax.join_schedules``.

    ``schedules[i]`` holds for ``boundaries[i - 1] <= step < boundaries[i]`` and is called with
    ``step - boundaries[i - 1]``. torch's ``SequentialLR`` with ``milestones=boundaries`` gives the same rates, as long
    as its schedulers do not build on the rate that the one before left. A boundary belongs to the schedule that begins
    there, while in Keras's ``PiecewiseConstantDecay`` it belongs to the interval before.

    Parameters
    ----------
    schedules : sequence of LearningRateSchedule or float
        A number is a constant rate.
    boundaries : sequence of float
        Steps >= 0, strictly increasing, one fewer than schedules.

    Raises
    ------
    TypeError, ValueError
        An element is of another kind, the lengths do not match, or the boundaries are not increasing.

    Examples
    --------
    >>> from fastopt.schedules import PolynomialDecay
    >>> schedule = Chain([0.5, PolynomialDecay(0.5, decay_steps=4, end_learning_rate=0.0)], boundaries=[10])
    >>> [schedule(step) for step in (0, 9, 10, 12, 14)]
    [0.5, 0.5, 0.5, 0.25, 0.0]
    """

    def __init__(
        self,
        schedules: Sequence[LearningRateSchedule | float],
        boundaries: Sequence[float],
        name: str | None = "Chain",
    ) -> None:
        listed = checks.items("schedules", schedules, "schedules or numbers")
        self.schedules = [rate_or_schedule(f"schedules[{index}]", item) for index, item in enumerate(listed)]
        self.boundaries = checks.increasing("boundaries", boundaries)
        self.name = checks.label(name)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"schedules must have one element more than boundaries, got {len(self.schedules)} schedules "
                f"and {len(self.boundaries)} boundaries"
            )
        if self.boundaries and self.boundaries[0] < 0:
            raise ValueError(f"boundaries must be >= 0, got {self.boundaries[0]}")

    def __call__(self, step: float) -> float:
        step = checks.elapsed(step)
        index = bisect.bisect_right(self.boundaries, step)
        begin = self.boundaries[index - 1] if index else 0
        return rate_at(self.schedules[index], step - begin)
