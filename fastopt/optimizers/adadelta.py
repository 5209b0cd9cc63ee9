"""Adadelta."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.adadelta import AdadeltaScalars
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, NotNegative, Rate, Share, hyper_parameters


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
        self, learning_rate: Rate = 0.001, rho: Share = 0.95, epsilon: NotNegative = 1e-7, **common: Unpack[Common]
    ) -> None: ...

    _settings_class = AdadeltaScalars
    rho: Coefficient
    epsilon: Coefficient
