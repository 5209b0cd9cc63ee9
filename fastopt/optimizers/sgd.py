"""Gradient descent."""

from __future__ import annotations

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.sgd import MomentumScalars, NesterovScalars, SgdScalars
from ..optimizer import Optimizer
from ..parameters import check_flag
from ..plan import Slot


class SGD(Optimizer):
    """Gradient descent, with momentum or Nesterov's momentum.

    Update: ``p ← p − learning_rate · g``; with momentum ``b ← momentum · b − learning_rate · g; p ← p + b``.
    See `fastopt.kernels.rules.sgd`. Unlike torch the slot holds steps, learning rate included.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    momentum : float in [0, 1], or callable
        Keras accepts a float only.
    nesterov : bool

    Slots: ``momentum`` (the parameter's shape and dtype, zeros), unless momentum is 0.

    Raises
    ------
    TypeError, ValueError
        For hyper-parameters of the wrong kind or out of range.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.SGD(0.1); opt.build([w]); opt.apply([np.ones(3, np.float32)])
    >>> w
    array([0.9, 0.9, 0.9], dtype=float32)
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Coefficient = 0.0, nesterov: bool = False,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    momentum: Coefficient
    nesterov: bool

    def _check(self) -> None:
        check_flag("nesterov", self.nesterov)
        self._check_coefficient("momentum", below=False)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"momentum": Slot()} if self.momentum else {}

    _takes_rates = True
    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        if not self.momentum:
            return SgdScalars(learning_rate)
        kind = NesterovScalars if self.nesterov else MomentumScalars
        return kind(learning_rate, self._value("momentum"))
