"""Adan."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.adan import AdanSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Fraction, NotNegative, Rate, hyper_parameters


class Adan(Optimizer):
    """Nesterov's momentum from the differences of successive gradients, scaled as in Adam.

    See `fastopt.kernels.rules.adan`. The authors decay weights after the step, by division, and count each parameter's
    updates: here a parameter without a gradient at the first one starts from a gradient of 0. Keras has no such class.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1, beta_2, beta_3 : float in [0, 1), or callable
        Shares that the running means of the gradient, of its change, and of the square of what is expected next, keep.
    epsilon : float >= 0, or callable

    Slots: ``momentum``, ``difference``, ``velocity``, ``previous_gradient``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Fraction = 0.98, beta_2: Fraction = 0.92, beta_3: Fraction = 0.99,
        epsilon: NotNegative = 1e-8, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = AdanSettings
    beta_1: Coefficient
    beta_2: Coefficient
    beta_3: Coefficient
    epsilon: Coefficient
