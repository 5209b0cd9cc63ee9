"""RMSprop."""

from __future__ import annotations

from typing import Any, Unpack

from ..kernels.rules.rmsprop import (
    CenteredMomentumRMSpropScalars,
    CenteredRMSpropScalars,
    MomentumRMSpropScalars,
    RMSpropScalars,
)
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, NotNegative, Rate, Share, hyper_parameters


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
        self, learning_rate: Rate = 0.001, rho: Share = 0.9, momentum: Share = 0.0, epsilon: NotNegative = 1e-7,
        centered: bool = False, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    rho: Coefficient
    momentum: Coefficient
    epsilon: Coefficient
    centered: bool

    @property
    def _settings_class(self) -> Any:
        if self.centered:
            return CenteredMomentumRMSpropScalars if self.momentum else CenteredRMSpropScalars
        return MomentumRMSpropScalars if self.momentum else RMSpropScalars
