"""fastopt's fused step inside PyTorch: drop-in optimizers for CPU and CUDA tensors.

>>> import fastopt.torch  # doctest: +SKIP
>>> optimizer = fastopt.torch.AdamW(model.parameters(), lr=1e-3, clip_norm=1.0, ema=0.99)  # doctest: +SKIP

How it is made:

- Each class is torch's own with `base.Fused` before it: arguments, checks, ``param_groups``, ``state``, hooks and
  ``state_dict`` are torch's, the step is one launch for all groups of a device, by a
  `device_optimizer.DeviceOptimizer`.
- That works on the tensors of parameters and ``state`` where they lie. Per step it reads their addresses, those of the
  gradients, and the hyper-parameters of every group; it is made anew (`building`) when memory, or what is to be
  done, has changed: a parameter moved, a group came, a state was loaded, a flag chose another rule. New state appears
  in ``state`` when a step has been done with it: one that is refused or skipped leaves no trace.
- A row of scalars serves the parameters of one group that have been updated equally often: a `cohorts.Cohort`. Where
  some of a cohort have no gradient, it is divided, for good. Each parameter has its own tensor ``step``, as in torch;
  they are elements of one array, which is written and compared as a whole.
- Parameters of 16 bits, and state in few bytes, are kept as `formats` says: in 16 bits as torch has them by default.
- State of bitsandbytes is converted by `bitsandbytes.from_bitsandbytes`.
- `deepspeed` has the class that takes the place of DeepSpeed's, for its engine.
- What else is asked for stands beside: `options`, `averages`, ``fused_backward`` in `backward`, ``flat`` in `flat`.
- The mathematics are in ``fastopt.kernels.rules``, for CPU and CUDA alike, torch's names for slots with each `rule`.
"""

from .adam import Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam
from .bitsandbytes import from_bitsandbytes
from .classic import SGD, Adadelta, Adagrad, RMSprop, RowwiseAdagrad
from .deepspeed import DeepSpeedCPUAdam
from .modern import Adafactor, Lamb, Lion, Muon, ScheduleFreeAdamW

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DeepSpeedCPUAdam",
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "RowwiseAdagrad",
    "ScheduleFreeAdamW",
    "SparseAdam",
    "from_bitsandbytes",
]
