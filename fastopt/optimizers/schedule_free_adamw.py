"""Schedule-free AdamW."""

from __future__ import annotations

import math
from typing import Any

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.schedule_free_adamw import ScheduleFreeAverageScalars, ScheduleFreeSettings
from ..optimizer import Optimizer
from ..parameters import check_number
from ..plan import Slot


class ScheduleFreeAdamW(Optimizer):
    """Adam without a schedule: gradients at an interpolation, evaluation at an average of the iterates.

    See `fastopt.kernels.rules.schedule_free_adamw`. Evaluate and export inside `evaluation_weights`, which loads the
    average; Keras has no way to do so.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1 : float in (0, 1), or callable
        Share of the average in the point where gradients are taken.
    beta_2 : float in [0, 1), or callable
    epsilon : float >= 0, or callable
    warmup_steps : int >= 0
        Updates over which the rate grows linearly.

    Slots: ``momentum`` (the fast iterate, a copy of the parameter), ``velocity`` (zeros), like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.0025, beta_1: Coefficient = 0.9, beta_2: Coefficient = 0.999,
        epsilon: Coefficient = 1e-8, warmup_steps: int = 0,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    warmup_steps: int

    def _check(self) -> None:
        self._check_coefficient("beta_1", low=1e-8)  # the average is divided by it
        self._check_coefficient("beta_2")
        self._check_coefficient("epsilon", high=math.inf)
        check_number("warmup_steps", self.warmup_steps, low=0.0)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"momentum": Slot(copies_parameter=True), "velocity": Slot()}

    _takes_rates = True
    _follows_settings = True

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        return ScheduleFreeSettings(
            learning_rate,
            self._value("beta_1"),
            self._value("beta_2"),
            self._value("epsilon"),
            float(self.warmup_steps or 0.0),
        )

    def _check_averages(self) -> None:
        """Always there: the average follows from parameter and slots."""

    def _load_averages(self) -> None:
        if self.use_ema:
            return super()._load_averages()
        beta_1 = self._value("beta_1")
        for plan in self._plans:
            plan.run_on_parameters(ScheduleFreeAverageScalars(1.0 - beta_1, 1.0 / beta_1))

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Replace the parameters by the moving average if ``use_ema``, as in every optimizer; else nothing."""
        if self.use_ema:
            super().finalize_variable_values(var_list)
