"""fastopt's fused step inside PyTorch: drop-in optimizers for CPU and CUDA tensors.

>>> import fastopt.torch  # doctest: +SKIP
>>> optimizer = fastopt.torch.AdamW(model.parameters(), lr=1e-3, clip_norm=1.0, ema=0.99)  # doctest: +SKIP

How it is made:

- Each class is torch's own with `base.Fused` before it: arguments, checks, ``param_groups``, ``state``, hooks and
  ``state_dict`` are torch's, the step is one launch for all groups of a device, by an `engine.Engine`.
- The engine works on the tensors of parameters and ``state`` where they lie. Per step it reads their addresses, those
  of the gradients, and the hyper-parameters of every group; it is made anew when memory, or what is to be done, has
  changed: a parameter moved, a group came, a state was loaded, a flag chose another rule.
- A row of scalars serves the parameters of one group that have been updated equally often. These are a `Cohort`, and
  share one tensor ``step``; where some of a cohort have no gradient, it is divided.
- The mathematics are in ``fastopt.kernels.rules``, for CPU and CUDA alike; slot names are mapped in `names`.
"""

from .adam import Adam, Adamax, AdamW, NAdam
from .classic import SGD, Adadelta, Adagrad, RMSprop
from .modern import Adafactor, Lamb, Lion, Muon, ScheduleFreeAdamW

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
]
