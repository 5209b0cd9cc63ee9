"""fastopt: Keras's optimizers as fused Numba kernels.

>>> import numpy as np, fastopt
>>> w, b = np.zeros((4, 2), np.float32), np.zeros(2, np.float32)
>>> opt = fastopt.Adam(learning_rate=1e-3, global_clipnorm=1.0, use_ema=True)
>>> opt.build([w, b])
>>> opt.apply([np.ones_like(w), np.ones_like(b)])
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _checkout, optimizers, schedules  # noqa: F401
from .checkpoint.faults import CheckpointError
from .checkpoint.loading import load
from .custom import register_rule
from .custom_format import register_format
from .flat import FlatBuffer, pack
from .graphs import capture
from .kernels.cpu.launch import get_num_threads, set_num_threads
from .optimizer import Optimizer
from .optimizers import *  # noqa: F403
from .row_gradient import RowGradient

if TYPE_CHECKING:
    from . import activations, callbacks, losses

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "FlatBuffer",
    "Optimizer",
    "RowGradient",
    "activations",
    "callbacks",
    "capture",
    "get_num_threads",
    "load",
    "losses",
    "optimizers",
    "pack",
    "register_format",
    "register_rule",
    "schedules",
    "set_num_threads",
]
__all__ += optimizers.__all__

_ON_FIRST_USE = ("activations", "callbacks", "compat", "keras", "losses", "torch")


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is public, less the adapters: who looks at all that is listed would import Keras and torch."""
    return sorted({*__all__, "compat", "__version__"})
