"""fastopt's fused step inside Keras 3: optimizers for ``model.compile``.

>>> import fastopt.keras, keras  # doctest: +SKIP
>>> model.compile(optimizer=fastopt.keras.Adam(1e-3, global_clipnorm=1.0), loss="mse")  # doctest: +SKIP
>>> model.compile(optimizer="fastopt>Adam", loss="mse")  # doctest: +SKIP

Backends: on torch (CPU) and NumPy a whole step is one pass over Keras's own memory.
"""

from keras.optimizers import LossScaleOptimizer, MultiOptimizer, OptimizerMap

from . import losses
from .adapter import adapt
from .optimizers import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Ftrl,
    Lamb,
    Lion,
    Muon,
    Nadam,
    RMSprop,
    ScheduleFreeAdamW,
)

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "MultiOptimizer",
    "Muon",
    "Nadam",
    "OptimizerMap",
    "RMSprop",
    "ScheduleFreeAdamW",
    "adapt",
    "losses",
]
