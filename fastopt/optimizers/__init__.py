"""One class per algorithm: signature and defaults of Keras 3, checks, slots, and the scalars of a step.

The mathematics is in ``kernels/rules``, a file per algorithm. Every class takes, after its own hyper-parameters and in
this order, the common ones: ``weight_decay`` (decoupled: p ← p − p · weight_decay · learning_rate before the step),
``clipnorm`` (per parameter), ``clipvalue``, ``global_clipnorm`` (at most one of the three), ``use_ema``,
``ema_momentum``, ``ema_overwrite_frequency`` (an average of the parameters, and how often it replaces them),
``loss_scale_factor`` (gradients are divided by it), ``gradient_accumulation_steps`` (one update from the mean of so
many gradients), ``name``, and by keyword ``nonfinite`` ("propagate", "skip" or "raise": what a NaN or Inf gradient
does).
"""

from ..loss_scale import LossScaleOptimizer
from ..registry import add, deserialize, get, serialize
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .ftrl import Ftrl
from .lamb import Lamb
from .lion import Lion
from .muon import Muon
from .nadam import Nadam
from .rmsprop import RMSprop
from .schedule_free_adamw import ScheduleFreeAdamW
from .sgd import SGD

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
    "Muon",
    "Nadam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "deserialize",
    "get",
    "serialize",
]

for _kind in (
    SGD,
    RMSprop,
    Adagrad,
    Adadelta,
    Adam,
    AdamW,
    Adamax,
    Nadam,
    Lion,
    Ftrl,
    ScheduleFreeAdamW,
    Lamb,
    Adafactor,
    Muon,
    LossScaleOptimizer,
):
    add(_kind, built_in=True)
