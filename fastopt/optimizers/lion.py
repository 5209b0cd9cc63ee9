"""Lion."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.lion import LionScalars
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Rate, Share, hyper_parameters


class Lion(Optimizer):
    """Steps of one size, in the direction of an interpolated momentum.

    See `fastopt.kernels.rules.lion`. Wants a learning rate 3 to 10 times smaller than Adam's.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1 : float in (0, 1], or callable
        Share of the momentum in the direction.
    beta_2 : float in [0, 1], or callable
        Share that the momentum keeps.

    Slots: ``momentum``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Share = 0.9, beta_2: Share = 0.99, **common: Unpack[Common]
    ) -> None: ...

    _settings_class = LionScalars
    beta_1: Coefficient
    beta_2: Coefficient

    def _check(self) -> None:
        super()._check()
        if self.beta_1 == 0:
            raise ValueError("beta_1 must be in (0, 1], got 0")
