"""Schedules of several phases, each along a curve: warm-ups and cycles that Keras has not."""

import math

from . import checks
from .base import LearningRateSchedule, rate_at, rate_or_schedule


def _linear(start: float, end: float, done: float) -> float:
    return (end - start) * done + start


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * done) + 1.0)


def _one_minus_sqrt(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1.0 - math.sqrt(done))


_ANNEALINGS = {"cos": _cosine, "linear": _linear}
_COOLDOWNS = {"linear": _linear, "cosine": _cosine, "1-sqrt": _one_minus_sqrt}


class LinearWarmup(LearningRateSchedule):
    """A straight line up to a rate, or to where another schedule begins; that schedule then runs from its own step 0.

    For ``step < warmup_steps``, with ``peak`` the rate, or ``learning_rate(0)`` of a schedule:
    ``initial_learning_rate + (peak - initial_learning_rate) * step / warmup_steps``; after it the rate, or
    ``learning_rate(step - warmup_steps)``.

    So the warm-up comes on top of the schedule's own length, as with the warm-up of Keras's ``CosineDecay``. torch's
    ``LinearLR`` differs: it starts from a fraction of the rate.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule
    warmup_steps : float
        >= 0; 0 is no warm-up.
    initial_learning_rate : float

    Notes
    -----
    Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677 (section 2.2).

    Examples
    --------
    >>> from fastopt.schedules import ExponentialDecay
    >>> schedule = LinearWarmup(ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5), warmup_steps=2)
    >>> [schedule(step) for step in (0, 1, 2, 3, 4)]
    [0.0, 0.25, 0.5, 0.25, 0.125]
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule,
        warmup_steps: float,
        initial_learning_rate: float = 0.0,
        name: str | None = "LinearWarmup",
    ) -> None:
        self.learning_rate = rate_or_schedule("learning_rate", learning_rate)
        self.warmup_steps = checks.at_least(0, "warmup_steps", warmup_steps)
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        step = checks.elapsed(step)
        if step < self.warmup_steps:
            return _linear(self.initial_learning_rate, rate_at(self.learning_rate, 0), step / self.warmup_steps)
        return rate_at(self.learning_rate, step - self.warmup_steps)


class WarmupCosine(LearningRateSchedule):
    """A straight line up to the peak, then half a cosine wave down, within a given number of steps in all.

    For ``step < warmup_steps``:
    ``initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps``; after it, with
    ``r = min((step - warmup_steps) / (total_steps - warmup_steps), 1)``:
    ``end_learning_rate + (peak_learning_rate - end_learning_rate) * (1 + cos(pi * r)) / 2``.

    This is ``optax.warmup_cosine_decay_schedule``, and with rates 0 at both ends Hugging Face's
    ``get_cosine_schedule_with_warmup``. Keras's ``CosineDecay`` counts its ``decay_steps`` after the warm-up instead,
    and gives the last rate as a fraction of the peak.

    Parameters
    ----------
    peak_learning_rate : float
    warmup_steps : float
        >= 0 and less than ``total_steps``.
    total_steps : float
        Steps until ``end_learning_rate``, which then stays; the warm-up is part of them.
    initial_learning_rate, end_learning_rate : float

    Notes
    -----
    Sources: as for `CosineDecay`.

    Examples
    --------
    >>> schedule = WarmupCosine(0.5, warmup_steps=4, total_steps=14)
    >>> [round(schedule(step), 6) for step in (0, 2, 4, 9, 14, 99)]
    [0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        peak_learning_rate: float,
        warmup_steps: float,
        total_steps: float,
        initial_learning_rate: float = 0.0,
        end_learning_rate: float = 0.0,
        name: str | None = "WarmupCosine",
    ) -> None:
        self.peak_learning_rate = checks.finite("peak_learning_rate", peak_learning_rate)
        self.warmup_steps = checks.at_least(0, "warmup_steps", warmup_steps)
        self.total_steps = checks.positive("total_steps", total_steps)
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.end_learning_rate = checks.finite("end_learning_rate", end_learning_rate)
        self.name = checks.label(name)
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps must be less than total_steps, which include them, got {self.warmup_steps} "
                f"of {self.total_steps}"
            )

    def __call__(self, step: float) -> float:
        step = checks.elapsed(step)
        if step < self.warmup_steps:
            return _linear(self.initial_learning_rate, self.peak_learning_rate, step / self.warmup_steps)
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return _cosine(self.peak_learning_rate, self.end_learning_rate, min(done, 1.0))


class WarmupStableDecay(LearningRateSchedule):
    """Warm-up, a constant rate, and a cool-down (WSD, "trapezoidal").

    A straight line from ``initial_learning_rate`` to ``peak_learning_rate`` in ``warmup_steps``, the peak for
    ``stable_steps``, then down to ``end_learning_rate`` in ``decay_steps``, where it stays. With ``r`` the part of the
    cool-down that is done, the rate is ``end_learning_rate + (peak_learning_rate - end_learning_rate) * c``; ``c`` is
    ``1 - r`` ("linear"), ``(1 + cos(pi * r)) / 2`` ("cosine") or ``1 - sqrt(r)`` ("1-sqrt").

    Parameters
    ----------
    peak_learning_rate : float
    warmup_steps, stable_steps : float
        >= 0.
    decay_steps : float
        > 0.
    initial_learning_rate, end_learning_rate : float
    decay : {"linear", "cosine", "1-sqrt"}

    Notes
    -----
    Sources: Hu et al. 2024 (MiniCPM), https://arxiv.org/abs/2404.06395; "1-sqrt": Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392 (section 3).

    Examples
    --------
    >>> schedule = WarmupStableDecay(0.5, warmup_steps=2, stable_steps=5, decay_steps=4, decay="1-sqrt")
    >>> [schedule(step) for step in (0, 1, 2, 7, 8, 11, 99)]
    [0.0, 0.25, 0.5, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        peak_learning_rate: float,
        warmup_steps: float,
        stable_steps: float,
        decay_steps: float,
        initial_learning_rate: float = 0.0,
        end_learning_rate: float = 0.0,
        decay: str = "linear",
        name: str | None = "WarmupStableDecay",
    ) -> None:
        self.peak_learning_rate = checks.finite("peak_learning_rate", peak_learning_rate)
        self.warmup_steps = checks.at_least(0, "warmup_steps", warmup_steps)
        self.stable_steps = checks.at_least(0, "stable_steps", stable_steps)
        self.decay_steps = checks.positive("decay_steps", decay_steps)
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.end_learning_rate = checks.finite("end_learning_rate", end_learning_rate)
        self.decay = checks.choice("decay", decay, _COOLDOWNS)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        step = checks.elapsed(step)
        if step < self.warmup_steps:
            return _linear(self.initial_learning_rate, self.peak_learning_rate, step / self.warmup_steps)
        done = (step - self.warmup_steps - self.stable_steps) / self.decay_steps
        return _COOLDOWNS[self.decay](self.peak_learning_rate, self.end_learning_rate, min(max(done, 0.0), 1.0))


class OneCycle(LearningRateSchedule):
    """Up to a high rate, and down to almost nothing: the rates of torch's ``OneCycleLR``.

    Between the rates ``initial = max_learning_rate / div_factor``, ``max_learning_rate`` and
    ``least = initial / final_div_factor``, along half cosine waves or straight lines:

    - two phases: ``initial`` to the maximum at step ``pct_start * total_steps - 1``, then to ``least`` at step
      ``total_steps - 1``;
    - three phases: the same rise, back to ``initial`` at step ``2 * pct_start * total_steps - 2``, then to ``least``.

    After ``total_steps`` the rate stays; torch extrapolates for one step and then raises. torch also cycles the
    momentum, which is no matter of a learning rate; fastopt's optimizers take a function for momentum or ``beta_1``.

    Parameters
    ----------
    max_learning_rate : float
    total_steps : float
        >= 1.
    pct_start : float
        The part of the steps, in [0, 1], that the rise takes.
    anneal_strategy : {"cos", "linear"}
    div_factor, final_div_factor : float
        > 0.
    three_phase : bool
        As in the paper; two phases are what fastai does.

    Notes
    -----
    Source: Smith and Topin 2018, https://arxiv.org/abs/1708.07120;
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html

    Examples
    --------
    >>> schedule = OneCycle(1.0, total_steps=10, pct_start=0.5, anneal_strategy="linear", div_factor=5.0)
    >>> [round(schedule(step), 3) for step in (0, 2, 4, 9, 99)]
    [0.2, 0.6, 1.0, 0.0, 0.0]
    """

    def __init__(
        self,
        max_learning_rate: float,
        total_steps: float,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        name: str | None = "OneCycle",
    ) -> None:
        self.max_learning_rate = checks.finite("max_learning_rate", max_learning_rate)
        self.total_steps = checks.at_least(1, "total_steps", total_steps)
        self.pct_start = checks.at_most_one("pct_start", pct_start)
        self.anneal_strategy = checks.choice("anneal_strategy", anneal_strategy, _ANNEALINGS)
        self.div_factor = checks.positive("div_factor", div_factor)
        self.final_div_factor = checks.positive("final_div_factor", final_div_factor)
        self.three_phase = checks.flag("three_phase", three_phase)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        last = self.total_steps - 1
        step = min(checks.elapsed(step), last)
        rise = self.pct_start * self.total_steps
        initial = self.max_learning_rate / self.div_factor
        begin, rate = 0.0, initial
        for end, target in self._phases(rise, initial, last):
            if step <= end:
                done = (step - begin) / (end - begin) if end > begin else 1.0
                return _ANNEALINGS[self.anneal_strategy](rate, target, done)
            begin, rate = end, target
        return rate

    def _phases(self, rise: float, initial: float, last: float) -> list[tuple[float, float]]:
        """The last step of each phase, and the rate that it ends with."""
        phases = [(rise - 1, self.max_learning_rate), (last, initial / self.final_div_factor)]
        if self.three_phase:
            phases.insert(1, (2 * rise - 2, initial))
        return phases
