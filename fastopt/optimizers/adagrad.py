"""Adagrad."""

from __future__ import annotations

import math

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.adagrad import AdagradScalars
from ..optimizer import Optimizer
from ..parameters import check_number
from ..plan import Slot


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients.

    See `fastopt.kernels.rules.adagrad`.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    initial_accumulator_value : float >= 0
    epsilon : float >= 0, or callable
        Inside the root.

    Slots: ``accumulator``, like the parameter, ``initial_accumulator_value``.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, initial_accumulator_value: float = 0.1, epsilon: Coefficient = 1e-7,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    initial_accumulator_value: float
    epsilon: Coefficient

    def _check(self) -> None:
        check_number("initial_accumulator_value", self.initial_accumulator_value, low=0.0)
        self._check_coefficient("epsilon", high=math.inf)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"accumulator": Slot(start=self.initial_accumulator_value)}

    _takes_rates = True
    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        return AdagradScalars(learning_rate, self._value("epsilon"))
