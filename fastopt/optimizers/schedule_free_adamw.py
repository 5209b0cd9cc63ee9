"""Schedule-free AdamW."""

from __future__ import annotations

from typing import Annotated, Any, Unpack

from ..kernels.rules.schedule_free_adamw import ScheduleFreeAverageScalars, ScheduleFreeSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Fraction, NotNegative, Range, Rate, hyper_parameters

_Divisor = Annotated[Coefficient, Range(1e-8, 1.0, below=True)]


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
        self, learning_rate: Rate = 0.0025, beta_1: _Divisor = 0.9, beta_2: Fraction = 0.999,
        epsilon: NotNegative = 1e-8, warmup_steps: Annotated[float, Range(0.0)] = 0, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = ScheduleFreeSettings
    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    warmup_steps: int

    def _check_averages(self) -> None:
        """Refuse nothing: the average follows from parameter and slots."""

    def _load_averages(self, for_good: bool) -> None:
        if self.use_ema:
            return super()._load_averages(for_good)
        beta_1 = self._value("beta_1")
        for plan in self._plans:
            plan.run_on_parameters(ScheduleFreeAverageScalars(1.0 - beta_1, 1.0 / beta_1))

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Replace the parameters by the moving average if ``use_ema``, as in every optimizer; else nothing."""
        if self.use_ema:
            super().finalize_variable_values(var_list)
