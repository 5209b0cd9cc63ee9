"""The callback of Keras 1.0.2 that sets learning rates, with the hooks of `fastopt.callbacks`.

``ReduceLROnPlateau`` came with 1.1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import callbacks
from ...callbacks import Logs

__all__ = ["LearningRateScheduler"]


class LearningRateScheduler(callbacks.LearningRateScheduler):
    """Sets ``optimizer.lr`` to ``schedule(epoch)`` at the beginning of every epoch; nothing is logged.

    That is the base rate: an optimizer's ``decay`` goes on to multiply it.

    Parameters
    ----------
    schedule : callable
        From the epoch, counted from 0, to a Python float. A second argument with a default keeps its default here, but
        receives the learning rate from Keras 2.1.4 on (`keras_2_2`).

    Raises
    ------
    AssertionError
        At the beginning of an epoch, if the schedule returns anything but a Python float, `numpy.float64` included, or
        the optimizer has no ``lr``.
    """

    rate_name = "lr"

    def __init__(self, schedule: Callable[[int], float]) -> None:
        super().__init__(schedule)

    def _read(self, optimizer: Any) -> float:
        try:
            return super()._read(optimizer)
        except ValueError as error:
            raise AssertionError(str(error)) from None

    def _next_rate(self, epoch: int, rate: float) -> float:
        rate = self.schedule(epoch)
        if type(rate) is not float:
            raise AssertionError(f'The output of the "schedule" function should be float. Got: {rate!r}')
        return rate

    def on_epoch_end(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Nothing: the release logs no rate."""
