"""Lamb."""

from __future__ import annotations

import math

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.lamb import LambSettings
from ..optimizer import Optimizer
from ..plan import Slot


class Lamb(Optimizer):
    """Adam whose step on each parameter is scaled to the parameter's norm, for large batches.

    See `fastopt.kernels.rules.lamb`. Two passes: the norms of parameter and update are needed before it can move.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1, beta_2 : float in [0, 1), or callable
        Shares that the running means of the gradient and of its square keep.
    epsilon : float >= 0, or callable

    Slots: ``momentum``, ``velocity``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Coefficient = 0.9, beta_2: Coefficient = 0.999,
        epsilon: Coefficient = 1e-7,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient

    def _check(self) -> None:
        self._check_coefficient("beta_1", "beta_2")
        self._check_coefficient("epsilon", high=math.inf)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"momentum": Slot(), "velocity": Slot()}

    _takes_rates = True
    _follows_settings = True

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        return LambSettings(learning_rate, self._value("beta_1"), self._value("beta_2"), self._value("epsilon"))
