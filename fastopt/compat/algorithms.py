"""The seven algorithms of Keras 1.0 to 2.3, over the rules of today's optimizers. A release adds its signatures."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .. import optimizers as modern
from ..kernels.rules.adagrad import AdagradScalars, OutsideAdagradScalars
from ..kernels.rules.rmsprop import OutsideRMSpropScalars, RMSpropScalars
from ..kernels.rules.sgd import MomentumScalars, NesterovScalars
from ..signatures import Coefficient
from .base import LegacyOptimizer


class SGD(LegacyOptimizer, modern.SGD):
    """Gradient descent; with a slot ``momentum`` even where momentum is 0."""

    _config_keys = ("momentum", "decay", "nesterov")

    @property
    def _settings_class(self) -> Any:
        return NesterovScalars if self.nesterov else MomentumScalars


class RMSprop(LegacyOptimizer, modern.RMSprop):
    """Without momentum and centering."""

    _config_keys = ("rho", "decay", "epsilon")
    momentum = 0.0
    centered = False

    @property
    def _settings_class(self) -> Any:
        return RMSpropScalars if self._epsilon_inside_root else OutsideRMSpropScalars


class Adagrad(LegacyOptimizer, modern.Adagrad):
    """With accumulators that start at zero."""

    _config_keys = ("decay", "epsilon")
    initial_accumulator_value = 0.0

    @property
    def _settings_class(self) -> Any:  # type: ignore[override]
        return AdagradScalars if self._epsilon_inside_root else OutsideAdagradScalars


class Adadelta(LegacyOptimizer, modern.Adadelta):
    """As today; epsilon is inside both roots in every release."""

    _config_keys = ("rho", "decay", "epsilon")


class _BiasCorrected(LegacyOptimizer):
    """Divides by 1 − β₁ᵗ."""

    beta_1: Coefficient

    def _check(self) -> None:
        super()._check()
        beta_1 = self._value("beta_1")
        if abs(beta_1) == 1:
            raise ValueError(f"beta_1 must not be {beta_1:g}: the bias correction divides by 1 - beta_1**t")


class Adam(_BiasCorrected, modern.Adam):
    """As today, AMSGrad included."""

    _config_keys = ("beta_1", "beta_2", "decay", "epsilon", "amsgrad")
    amsgrad = False


class Adamax(_BiasCorrected, modern.Adamax):
    """As today."""

    _config_keys = ("beta_1", "beta_2", "decay", "epsilon")
    _limits: ClassVar = {"epsilon": (0.0, math.inf, False)}


class Nadam(_BiasCorrected, modern.Nadam):
    """With a momentum that warms up ``schedule_decay`` times as fast as today's, and never a ``decay``."""

    _config_keys = ("beta_1", "beta_2", "epsilon", "schedule_decay")
    schedule_decay: float
