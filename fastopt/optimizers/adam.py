"""Adam and AdamW."""

from __future__ import annotations

from typing import Any, Unpack

from ..kernels.rules.adam import AdamSettings, AmsgradSettings
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, CommonButDecay, Fraction, NotNegative, Rate, hyper_parameters


class Adam(Optimizer):
    """Steps scaled by running means of the gradient and of its square.

    See `fastopt.kernels.rules.adam`. Epsilon is the paper's "epsilon hat", as in Keras; torch's differs early in
    training.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1, beta_2 : float in [0, 1), or callable
        Shares that the running means of the gradient and of its square keep.
    epsilon : float >= 0, or callable
    amsgrad : bool
        Never let the denominator shrink.

    Slots: ``momentum``, ``velocity``, with amsgrad ``velocity_hat``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Fraction = 0.9, beta_2: Fraction = 0.999,
        epsilon: NotNegative = 1e-7, amsgrad: bool = False, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    amsgrad: bool

    @property
    def _settings_class(self) -> Any:
        return AmsgradSettings if self.amsgrad else AdamSettings


class AdamW(Adam):
    """Adam with decoupled weight decay: `Adam` with another default and order of arguments.

    ``weight_decay`` is the second argument. Source: Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    weight_decay : float >= 0
        The parameter shrinks by ``weight_decay * learning_rate`` of itself before each step.
    beta_1, beta_2, epsilon, amsgrad
        As in `Adam`; so are the slots.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, weight_decay: float = 0.004, beta_1: Fraction = 0.9,
        beta_2: Fraction = 0.999, epsilon: NotNegative = 1e-7, amsgrad: bool = False, **common: Unpack[CommonButDecay],
    ) -> None: ...  # fmt: skip

    def _check(self) -> None:
        if self.weight_decay is None:
            raise ValueError("AdamW needs a weight_decay; without one it is Adam")
        super()._check()
