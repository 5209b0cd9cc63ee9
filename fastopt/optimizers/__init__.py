"""One class per algorithm: signature and defaults of Keras 3, checks, slots, and the scalars of a step.

The mathematics is in ``kernels/rules``, a file per algorithm. Every class takes, after its own hyper-parameters and in
this order, the common ones, see `fastopt.signatures.common_arguments`; type checkers want these by keyword.
"""

from ..loss_scale import LossScaleOptimizer
from ..registry import add
from ..registry import deserialize as deserialize
from ..registry import get as get
from ..registry import serialize as serialize
from .adabelief import AdaBelief
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .adan import Adan
from .ftrl import Ftrl
from .lamb import Lamb
from .lion import Lion
from .muon import Muon
from .nadam import Nadam
from .radam import RAdam
from .rmsprop import RMSprop
from .rowwise_adagrad import RowwiseAdagrad
from .schedule_free_adamw import ScheduleFreeAdamW
from .sgd import SGD

__all__ = [
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Ftrl",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "Muon",
    "Nadam",
    "RAdam",
    "RMSprop",
    "RowwiseAdagrad",
    "ScheduleFreeAdamW",
]

for _name in __all__:
    add(globals()[_name], built_in=True)
