"""RAdam."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.radam import RAdamSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Fraction, NotNegative, Rate, hyper_parameters


class RAdam(Optimizer):
    """Adam that warms up by itself: steps ignore the mean of squares until that is known well enough.

    See `fastopt.kernels.rules.radam`. Keras has no such class; torch's differs in epsilon's default, 1e-8.

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
        self, learning_rate: Rate = 0.001, beta_1: Fraction = 0.9, beta_2: Fraction = 0.999,
        epsilon: NotNegative = 1e-7, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = RAdamSettings
    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
