"""The callback that swaps averaged weights in and out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from .base import Callback, Logs


class SwapEMAWeights(Callback):
    """Lets evaluations and predictions see the averaged weights, and training go on with its own.

    The weights are those of ``optimizer.evaluation_weights()``: the moving average of an optimizer made with
    ``use_ema=True``, or the average of `ScheduleFreeAdamW`. They are in place between ``on_test_begin`` and
    ``on_test_end``, and between ``on_predict_begin`` and ``on_predict_end`` (Keras, after a prediction, leaves them in
    the model). A step in between is an error.

    At the end of a training loop call ``on_train_end``, then, to keep the average for good,
    ``optimizer.finalize_variable_values()``: Keras's ``fit`` does both.

    Parameters
    ----------
    swap_on_epoch : bool
        Put the averaged weights in place from the end of an epoch to the beginning of the next too, so that what saves
        the weights there saves the averaged ones.

    Raises
    ------
    RuntimeError
        At a swap, if the optimizer keeps no average or is not built.
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self.swap_on_epoch = swap_on_epoch
        self._swapped: AbstractContextManager[None] | None = None

    def _swap_in(self, logs: Logs, optimizer: Any) -> None:
        if self._swapped is None:
            swapped = optimizer.evaluation_weights()
            swapped.__enter__()
            self._swapped = swapped

    def _swap_out(self, logs: Logs, optimizer: Any) -> None:
        swapped, self._swapped = self._swapped, None
        if swapped is not None:
            swapped.__exit__(None, None, None)

    on_test_begin = on_predict_begin = _swap_in
    on_test_end = on_predict_end = on_train_end = _swap_out

    def on_epoch_begin(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Put the training weights back."""
        if self.swap_on_epoch:
            self._swap_out(logs, optimizer)

    def on_epoch_end(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Put the averaged weights in place, with ``swap_on_epoch``."""
        if self.swap_on_epoch:
            self._swap_in(logs, optimizer)
