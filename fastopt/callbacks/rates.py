"""Callbacks that set learning rates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..parameters import check_number
from .base import Logs, RateCallback, members


class LearningRateScheduler(RateCallback):
    """Sets the learning rate at the beginning of every epoch.

    ``schedule(epoch, learning_rate)`` is called with the epoch, from 0, and the present rate; if that raises TypeError,
    ``schedule(epoch)`` is. At the end of the epoch ``logs["learning_rate"]`` is the rate.

    Beware of the order of the two attempts: a schedule with a second argument that has a default, such as
    ``def step_decay(epoch, drop=0.5)``, **receives the learning rate in it**. Make such an argument keyword-only. And a
    TypeError inside of a schedule looks like a missing argument; it is the context of the error that is seen.

    Parameters
    ----------
    schedule : callable
        A function of the epoch and the rate, or of the epoch; schedules such as `fastopt.schedules.StepDecay` are
        functions of the epoch. Returns a float; `numpy.float32` and `numpy.float64` will do.
    verbose : int
        1 prints every rate.

    Raises
    ------
    TypeError
        If ``schedule`` cannot be called; at the beginning of an epoch, if the optimizer's rate follows a schedule of
        its own and so cannot be set.
    ValueError
        At the beginning of an epoch, if the schedule returns no float, or the optimizer has no ``learning_rate``.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(f"schedule must be a function of the epoch, got {schedule!r}")
        self.schedule = schedule
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Set the rate of epoch number ``epoch``, from 0."""
        for name, member in members(optimizer):
            rate = self._next_rate(epoch, self._read(member))
            self._write(member, rate)
            self._tell(epoch, "LearningRateScheduler setting", name, rate)

    def on_epoch_end(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Log the rate."""
        self._logs_with_rates(logs, optimizer)

    def _next_rate(self, epoch: int, rate: float) -> float:
        try:
            rate = self.schedule(epoch, rate)
        except TypeError:
            rate = self.schedule(epoch)
        if not isinstance(rate, (float, np.float32)):
            raise ValueError(f"The output of the `schedule` function should be a float. Got: {rate!r}")
        return rate


class ReduceLROnPlateau(RateCallback):
    """Multiplies the learning rate by ``factor`` when a metric has stopped improving.

    At the end of each epoch, after ``logs["learning_rate"]`` is set:

    1. in a cool-down, one epoch of it is done and ``wait`` is 0;
    2. a metric that is better than the best one by more than ``min_delta`` is the new best, and ``wait`` is 0; the
       first is always the best (even NaN, which nothing improves on then, as in Keras);
    3. else, unless the cool-down lasts, ``wait`` grows by 1. If it has reached ``patience`` and the rate is above
       ``min_lr``: ``rate = max(rate * factor, min_lr)``, a cool-down of ``cooldown`` epochs begins, and ``wait`` is 0.

    Parameters
    ----------
    monitor : str
        Key of the metric in ``logs``.
    factor : float
        >= 0 and < 1.
    patience : int
        Epochs without improvement until the rate falls.
    verbose : int
        1 prints every reduction.
    mode : {"auto", "min", "max"}
        Whether less or more is better. "auto" knows "loss" and the names of Keras's metrics, with or without "val\\_";
        Keras looks at the model's metrics instead. Another mode is taken for "auto", with a warning.
    min_delta : float
        Its sign does not matter.
    cooldown : int
        Epochs after a reduction in which nothing is counted.
    min_lr : float
        The rate does not fall below.

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range, or "auto" does not know the metric (Keras: at the end of the first epoch).
        At the end of an epoch, TypeError if the optimizer's rate follows a schedule.

    Warns
    -----
    UserWarning
        If ``logs`` lack the metric: the epoch then does not count.
    """

    warning: type[Warning] = UserWarning
    """Category of the warnings."""

    best: Any
    cooldown_counter: float
    wait: int

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        check_number("factor", factor, low=0.0)
        if factor >= 1.0:
            raise ValueError(f"ReduceLROnPlateau does not support a factor >= 1.0. Received factor={factor}")
        for name, value in (("patience", patience), ("cooldown", cooldown)):
            check_number(name, value, low=0.0)
        check_number("min_delta", min_delta)
        check_number("min_lr", min_lr)
        self.monitor = monitor
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.mode = self._known_mode(mode)
        self.min_delta = min_delta
        self.cooldown = cooldown
        self.min_lr = min_lr
        self._maximizes = self._more_is_better() if self.mode == "auto" else self.mode == "max"
        self._reset()

    def on_train_begin(self, logs: Logs, optimizer: Any) -> None:
        """Forget the best metric, the cool-down and the epochs waited."""
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Log the rate, and reduce it if the metric has not improved for long enough."""
        logs = self._logs_with_rates(logs, optimizer)
        current = logs.get(self.monitor)
        if current is None:
            message = self._missing_message(list(logs))
            warnings.warn(message, self.warning, stacklevel=2)
            return
        if self.in_cooldown():
            self.cooldown_counter -= 1
            self.wait = 0
        if self._is_improvement(current):
            self.best = current
            self.wait = 0
        elif not self.in_cooldown():
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch, optimizer):
                self.cooldown_counter = self.cooldown
                self.wait = 0

    def in_cooldown(self) -> bool:
        """Whether epochs are not counted now."""
        return self.cooldown_counter > 0

    def _reset(self) -> None:
        self.best = self._start()
        self.cooldown_counter = 0
        self.wait = 0

    def _start(self) -> float | None:
        """The best metric before there is any."""
        return None

    def _is_improvement(self, current: Any) -> bool:
        if self.best is None:
            return True
        least = abs(self.min_delta)
        return bool(current - least > self.best if self._maximizes else current + least < self.best)

    def _known_mode(self, mode: str) -> str:
        if mode in ("auto", "min", "max"):
            return mode
        warnings.warn(f"ReduceLROnPlateau mode {mode!r} is unknown, fallback to auto mode.", self.warning, stacklevel=3)
        return "auto"

    def _more_is_better(self) -> bool:
        metric = self.monitor.removeprefix("val_")
        if metric not in MINIMIZED | MAXIMIZED:
            raise ValueError(
                f"ReduceLROnPlateau cannot tell whether the metric {self.monitor!r} should fall or rise: "
                'pass mode="min" or mode="max"'
            )
        return metric in MAXIMIZED

    def _missing_message(self, available: list[str]) -> str:
        return (
            f"Learning rate reduction is conditioned on metric `{self.monitor}` which is not available. "
            f"Available metrics are: {','.join(available)}."
        )

    def _reduce(self, epoch: int, optimizer: Any) -> bool:
        """Whether a rate was above the least one, and fell."""
        # An optimizer that keeps its rate in float32 may hold min_lr rounded up.
        floor = max(self.min_lr, float(np.float32(self.min_lr)))
        fell = False
        for name, member in members(optimizer):
            rate = self._read(member)
            if rate > floor:
                rate = max(rate * self.factor, self.min_lr)
                self._write(member, rate)
                self._tell(epoch, "ReduceLROnPlateau reducing", name, rate)
                fell = True
        return fell


MAXIMIZED = frozenset(
    {
        "acc", "accuracy", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy",
        "top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy", "auc", "precision", "recall",
        "sensitivity_at_specificity", "specificity_at_sensitivity", "precision_at_recall", "recall_at_precision",
        "fbeta_score", "f1_score", "io_u", "binary_io_u", "mean_io_u", "one_hot_io_u", "one_hot_mean_io_u",
        "cosine_similarity", "r2_score", "pearson_correlation", "concordance_correlation",
    }
)  # fmt: skip
"""Keras's metrics of which more is better."""

MINIMIZED = frozenset(
    {
        "loss", "mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error",
        "mean_squared_logarithmic_error", "root_mean_squared_error", "logcosh", "hinge", "squared_hinge",
        "categorical_hinge", "kl_divergence", "poisson", "binary_crossentropy", "categorical_crossentropy",
        "sparse_categorical_crossentropy", "mse", "mae", "mape", "msle", "rmse",
    }
)  # fmt: skip
"""Keras's metrics of which less is better."""
