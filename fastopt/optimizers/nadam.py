"""Nadam."""

from __future__ import annotations

from typing import Unpack

from ..kernels.rules.nadam import NadamSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Fraction, NotNegative, Rate, hyper_parameters


class Nadam(Optimizer):
    """Adam with Nesterov's momentum.

    See `fastopt.kernels.rules.nadam`. The momentum's warm-up is Keras's; torch's is slower.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1, beta_2 : float in [0, 1), or callable
        Shares that the running means of the gradient and of its square keep.
    epsilon : float >= 0, or callable

    Slots: ``momentum``, ``velocity``; zeros like the parameter. The product of the momenta so far is a counter of the
    state, ``u_product``.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Fraction = 0.9, beta_2: Fraction = 0.999,
        epsilon: NotNegative = 1e-7, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = NadamSettings
    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    schedule_decay: Coefficient = 1.0  # how fast the momentum warms up; an argument of earlier releases only
