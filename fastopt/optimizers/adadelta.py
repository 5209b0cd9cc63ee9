"""Adadelta."""

from __future__ import annotations

import math

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.adadelta import AdadeltaScalars
from ..optimizer import Optimizer
from ..plan import Slot


class Adadelta(Optimizer):
    """Steps in the unit of the parameter: by the ratio of two running root mean squares.

    See `fastopt.kernels.rules.adadelta`. The paper has no learning rate: 1.0 is its update.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    rho : float in [0, 1], or callable
    epsilon : float >= 0, or callable
        Inside both roots.

    Slots: ``accumulated_grad``, ``accumulated_delta_var``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, rho: Coefficient = 0.95, epsilon: Coefficient = 1e-7,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    rho: Coefficient
    epsilon: Coefficient

    def _check(self) -> None:
        self._check_coefficient("rho", below=False)
        self._check_coefficient("epsilon", high=math.inf)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"accumulated_grad": Slot(), "accumulated_delta_var": Slot()}

    _takes_rates = True
    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        rho = self._value("rho")
        return AdadeltaScalars(learning_rate, rho, 1.0 - rho, self._value("epsilon"))
