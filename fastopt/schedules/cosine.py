"""Keras 3's two decays along half a cosine wave."""

import math

from . import checks
from .base import LearningRateSchedule


class CosineDecay(LearningRateSchedule):
    """Half a cosine wave down from the peak rate, after an optional linear warm-up.

    Warm-up, for ``step < warmup_steps``:
    ``learning_rate = initial_learning_rate + (warmup_target - initial_learning_rate) * step / warmup_steps``.
    After it, with ``s = min(step - warmup_steps, decay_steps)`` and ``peak = warmup_target``:
    ``learning_rate = peak * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)``.
    Without a ``warmup_target`` there is no warm-up, whatever ``warmup_steps`` says, and
    ``peak = initial_learning_rate``.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Length of the cosine part in steps, > 0. The warm-up comes on top of it.
    alpha : float
        Final rate as a fraction of the peak.
    warmup_target : float or None
        Peak rate.
    warmup_steps : float
        Length of the warm-up in steps, >= 0.

    Notes
    -----
    Sources: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983 (eq. 5, without restarts); warm-up: Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677 (section 2.2).

    Examples
    --------
    >>> schedule = CosineDecay(0.0, decay_steps=10, warmup_target=0.5, warmup_steps=4)
    >>> [round(schedule(step), 6) for step in (0, 2, 4, 9, 14, 99)]
    [0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        name: str | None = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: float = 0,
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = checks.positive("decay_steps", decay_steps)
        self.alpha = checks.finite("alpha", alpha)
        self.name = checks.label(name)
        self.warmup_target = None if warmup_target is None else checks.finite("warmup_target", warmup_target)
        self.warmup_steps = checks.at_least(0, "warmup_steps", warmup_steps)

    def __call__(self, step: float) -> float:
        step = checks.elapsed(step)
        if self.warmup_target is None:
            return self._cosine(self.initial_learning_rate, step)
        if step < self.warmup_steps:
            rise = self.warmup_target - self.initial_learning_rate
            return self.initial_learning_rate + rise * (step / self.warmup_steps)
        return self._cosine(self.warmup_target, step - self.warmup_steps)

    def _cosine(self, peak: float, step: float) -> float:
        return peak * _cosine_factor(min(step / self.decay_steps, 1.0), self.alpha)


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decay that starts over, each time over a longer period (SGDR).

    Period ``i`` lasts ``first_decay_steps * t_mul**i`` steps. With ``r`` the part of it that is done, in [0, 1):
    ``learning_rate = initial_learning_rate * ((1 - alpha) * m_mul**i * (1 + cos(pi * r)) / 2 + alpha)``.

    Parameters
    ----------
    initial_learning_rate : float
    first_decay_steps : float
        Length of the first period in steps, > 0.
    t_mul : float
        Each period's length over the one before, >= 1 (with Keras a smaller one gives NaN once the periods have shrunk
        to nothing).
    m_mul : float
        Each period's peak over the one before, >= 0.
    alpha : float
        Lowest rate as a fraction of ``initial_learning_rate``; ``m_mul`` does not scale it.

    Raises
    ------
    OverflowError
        ``m_mul > 1`` has grown the rate past float64.

    Notes
    -----
    A restart falls on its exact step. Keras rounds a quotient of logarithms and, for some ``t_mul``, gives the lowest
    rate there and restarts one step late.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983 (eq. 5).

    Examples
    --------
    >>> schedule = CosineDecayRestarts(0.1, first_decay_steps=10, t_mul=2.0, m_mul=0.5)
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: float,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str | None = "SGDRDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.first_decay_steps = checks.positive("first_decay_steps", first_decay_steps)
        self.t_mul = checks.at_least(1, "t_mul", t_mul)
        self.m_mul = checks.at_least(0, "m_mul", m_mul)
        self.alpha = checks.finite("alpha", alpha)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        period, done = self._position(checks.elapsed(step) / self.first_decay_steps)
        return self.initial_learning_rate * _cosine_factor(done, self.alpha, self.m_mul**period)

    def _position(self, elapsed: float) -> tuple[int, float]:
        """Number of the running period and the part of it that is done; ``elapsed`` counts in first periods."""
        if self.t_mul == 1:
            period = math.floor(elapsed)
            done = elapsed - period
        else:
            growth = self.t_mul - 1.0
            period = math.floor(math.log1p(elapsed * growth) / math.log(self.t_mul))
            length = self.t_mul**period
            done = (elapsed - (length - 1.0) / growth) / length
        # The logarithm may have been rounded to either side of a restart.
        if done > 1.0 - 1e-12:
            return period + 1, 0.0
        return period, max(done, 0.0)


def _cosine_factor(done: float, alpha: float, peak: float = 1.0) -> float:
    """Return what falls from ``(1 - alpha) * peak + alpha`` at ``done = 0`` to ``alpha`` at ``done = 1``."""
    return (1.0 - alpha) * 0.5 * peak * (1.0 + math.cos(math.pi * done)) + alpha
