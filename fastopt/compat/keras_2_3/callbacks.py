"""The callbacks of Keras 2.3.1 that set learning rates: those of 2.2.4, for optimizers whose ``lr`` is read-only."""

from __future__ import annotations

from ..keras_2_2 import callbacks

__all__ = ["LearningRateScheduler", "ReduceLROnPlateau"]


class LearningRateScheduler(callbacks.LearningRateScheduler):
    """`keras_2_2`'s, setting ``optimizer.learning_rate``; the rate is logged as "lr" all the same."""

    rate_name = "learning_rate"


class ReduceLROnPlateau(callbacks.ReduceLROnPlateau):
    """`keras_2_2`'s, reducing ``optimizer.learning_rate``; the rate is logged as "lr" all the same."""

    rate_name = "learning_rate"
