"""The callbacks of Keras 2.2.4 that set learning rates, with the hooks of `fastopt.callbacks`."""

from __future__ import annotations

import math
import warnings
from typing import Any

from ... import callbacks

__all__ = ["LearningRateScheduler", "ReduceLROnPlateau"]


class LearningRateScheduler(callbacks.LearningRateScheduler):
    """Sets ``optimizer.lr`` at the beginning of every epoch.

    As `fastopt.callbacks.LearningRateScheduler`: ``schedule(epoch, lr)`` is tried, then ``schedule(epoch)``, so that a
    second argument with a default **receives the learning rate** (in Keras 1 and up to 2.1.3 it kept its default). What
    is set is the base rate: an optimizer's ``decay`` goes on to multiply it. ``logs["lr"]`` is the rate, as from 2.2.3
    on.

    Parameters
    ----------
    schedule : callable
        A function of the epoch, from 0, and the rate, or of the epoch; returns a float.
    verbose : int
        1 prints every rate.

    Raises
    ------
    ValueError
        At the beginning of an epoch, if the schedule returns no float, or the optimizer has no ``lr``.
    """

    rate_name = log_name = "lr"
    epoch_format = "Epoch {:05d}"


class ReduceLROnPlateau(callbacks.ReduceLROnPlateau):
    """Multiplies ``optimizer.lr`` by ``factor`` when a metric has stopped improving.

    As `fastopt.callbacks.ReduceLROnPlateau`, but the mode "auto" means "max" if "acc" is in the metric's name and
    "min" otherwise; the best metric starts at infinity, so that a first one of NaN is no improvement; a negative
    ``min_delta`` lets worse metrics count as better; the rate is logged as "lr". ``patience`` counts as from 2.1.6 on:
    before, the first reduction came an epoch later.

    Parameters
    ----------
    monitor, factor, patience, verbose, mode, min_delta, cooldown, min_lr
        As there.
    epsilon : float, optional
        The name of ``min_delta`` up to 2.1.5; it goes before, with a warning.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown (the release ignores it), or a number is none or out of range.

    Warns
    -----
    RuntimeWarning
        If ``logs`` lack the metric, or the mode is unknown.
    """

    rate_name = log_name = "lr"
    epoch_format = "Epoch {:05d}"
    warning = RuntimeWarning

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0,
        *,
        epsilon: float | None = None,
    ) -> None:
        if epsilon is not None:
            min_delta = epsilon
            warnings.warn(
                "`epsilon` argument is deprecated and will be removed, use `min_delta` instead.", stacklevel=2
            )
        super().__init__(monitor, factor, patience, verbose, mode, min_delta, cooldown, min_lr)

    def _start(self) -> float:
        return -math.inf if self._maximizes else math.inf

    def _is_improvement(self, current: Any) -> bool:
        if self._maximizes:
            return bool(current > self.best + self.min_delta)
        return bool(current < self.best - self.min_delta)

    def _more_is_better(self) -> bool:
        return "acc" in self.monitor

    def _missing_message(self, available: list[str]) -> str:
        return (
            f"Reduce LR on plateau conditioned on metric `{self.monitor}` which is not available. "
            f"Available metrics are: {','.join(available)}"
        )
