"""AdaBelief."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.adabelief import AdaBeliefSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Fraction, NotNegative, Rate, hyper_parameters


class AdaBelief(Optimizer):
    """Adam, whose steps are scaled by how far gradients are from their running mean. Keras has no such class.

    See `fastopt.kernels.rules.adabelief`.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1, beta_2 : float in [0, 1), or callable
        Shares that the running means of the gradient, and of its squared distance from that, keep.
    epsilon : float >= 0, or callable
        Added to the second mean at every step, and to its root.

    Slots: ``momentum``, ``belief``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Fraction = 0.9, beta_2: Fraction = 0.999,
        epsilon: NotNegative = 1e-16, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = AdaBeliefSettings
    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
