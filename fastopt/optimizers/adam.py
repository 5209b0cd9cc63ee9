"""Adam and AdamW."""

from __future__ import annotations

import math
from typing import Any

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.adam import AdamSettings, AmsgradSettings
from ..optimizer import Optimizer
from ..parameters import check_flag
from ..plan import Slot


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
        self, learning_rate: Rate = 0.001, beta_1: Coefficient = 0.9, beta_2: Coefficient = 0.999,
        epsilon: Coefficient = 1e-7, amsgrad: bool = False,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    amsgrad: bool

    def _check(self) -> None:
        check_flag("amsgrad", self.amsgrad)
        self._check_coefficient("beta_1", "beta_2")
        self._check_coefficient("epsilon", high=math.inf)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        names = ("momentum", "velocity", "velocity_hat") if self.amsgrad else ("momentum", "velocity")
        return {name: Slot() for name in names}

    _takes_rates = True
    _follows_settings = True

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        kind: Any = AmsgradSettings if self.amsgrad else AdamSettings
        return kind(learning_rate, self._value("beta_1"), self._value("beta_2"), self._value("epsilon"))


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
        self, learning_rate: Rate = 0.001, weight_decay: float = 0.004, beta_1: Coefficient = 0.9,
        beta_2: Coefficient = 0.999, epsilon: Coefficient = 1e-7, amsgrad: bool = False,
        clipnorm: float | None = None, clipvalue: float | None = None, global_clipnorm: float | None = None,
        use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
        name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    def _check(self) -> None:
        if self.weight_decay is None:
            raise ValueError("AdamW needs a weight_decay; without one it is Adam")
        super()._check()
