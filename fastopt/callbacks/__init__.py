"""Keras 3's callbacks for learning rates and averaged weights, for training loops of your own.

A loop calls the hooks of its callbacks where Keras's ``fit`` would, and hands them the optimizer:

>>> import numpy as np, fastopt
>>> from fastopt import callbacks
>>> weights = np.zeros(3, np.float32)
>>> optimizer = fastopt.SGD(0.4)
>>> scheduler = callbacks.LearningRateScheduler(lambda epoch, learning_rate: learning_rate / 2)
>>> for epoch in range(2):
...     scheduler.on_epoch_begin(epoch, None, optimizer)
...     optimizer.apply([np.ones_like(weights)], [weights])
...     logs = {"loss": 0.5}
...     scheduler.on_epoch_end(epoch, logs, optimizer)
...     print(logs)
{'loss': 0.5, 'learning_rate': 0.2}
{'loss': 0.5, 'learning_rate': 0.1}

An optimizer is any of fastopt's, `LossScaleOptimizer` among them, or any object with a ``learning_rate`` that can be
set. Of one with ``optimizers``, as Keras's ``MultiOptimizer``, each is treated by itself, under its ``name``.

Where Keras replaces empty logs by a dict that nobody sees, the rate is written into them here; logs may be None.

Source: https://keras.io/api/callbacks/
"""

from __future__ import annotations

from .averages import SwapEMAWeights
from .base import Callback
from .base import Logs as Logs
from .rates import LearningRateScheduler, ReduceLROnPlateau

__all__ = ["Callback", "LearningRateScheduler", "ReduceLROnPlateau", "SwapEMAWeights"]
