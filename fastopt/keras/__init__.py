"""fastopt's fused step inside Keras 3: optimizers for ``model.compile``.

>>> import fastopt.keras, keras  # doctest: +SKIP
>>> model.compile(optimizer=fastopt.keras.Adam(1e-3, global_clipnorm=1.0), loss="mse")  # doctest: +SKIP
>>> model.compile(optimizer="fastopt>Adam", loss="mse")  # doctest: +SKIP

On the torch (CPU) and NumPy backends a step is one pass over Keras's own memory. Elsewhere Keras's own update runs,
said once. On JAX that is the best route: XLA compiles the update together with the backward pass and writes each
parameter while its gradient is in the cache; a custom call into fastopt's kernels was faster by itself, but not in
whole training steps, and kept every gradient in memory. On TensorFlow a callback has to copy all state at each step.
"""

from keras.optimizers import LossScaleOptimizer, MultiOptimizer, OptimizerMap

from . import losses
from .adapter import adapt
from .conversion import from_keras
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
    "from_keras",
    "losses",
]
