"""RMSprop."""

from __future__ import annotations

import math

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.rmsprop import (
    CenteredMomentumRMSpropScalars,
    CenteredRMSpropScalars,
    MomentumRMSpropScalars,
    RMSpropScalars,
)
from ..optimizer import Optimizer
from ..parameters import check_flag
from ..plan import Slot


class RMSprop(Optimizer):
    """Steps divided by a running root mean square of the gradient; centered: by a running standard deviation.

    See `fastopt.kernels.rules.rmsprop`. Epsilon is inside the root, where torch has it outside.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    rho : float in [0, 1], or callable
        Share that the running mean keeps.
    momentum : float in [0, 1], or callable
    epsilon : float >= 0, or callable
    centered : bool

    Slots: ``velocity``, with momentum ``momentum``, centered ``average_gradient``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, rho: Coefficient = 0.9, momentum: Coefficient = 0.0,
        epsilon: Coefficient = 1e-7, centered: bool = False,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    rho: Coefficient
    momentum: Coefficient
    epsilon: Coefficient
    centered: bool

    def _check(self) -> None:
        check_flag("centered", self.centered)
        self._check_coefficient("rho", "momentum", below=False)
        self._check_coefficient("epsilon", high=math.inf)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        names = ["velocity", *(["momentum"] if self.momentum else []), *(["average_gradient"] if self.centered else [])]
        return {name: Slot() for name in names}

    _takes_rates = True
    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        rho = self._value("rho")
        kind = _RMSPROP_KINDS[bool(self.centered), bool(self.momentum)]
        return kind(learning_rate, rho, 1.0 - rho, self._value("momentum"), self._value("epsilon"))


_RMSPROP_KINDS: dict[tuple[bool, bool], type[RMSpropScalars]] = {
    (False, False): RMSpropScalars,
    (False, True): MomentumRMSpropScalars,
    (True, False): CenteredRMSpropScalars,
    (True, True): CenteredMomentumRMSpropScalars,
}
