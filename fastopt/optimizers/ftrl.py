"""Ftrl."""

from __future__ import annotations

from typing import Annotated, Any, Unpack

from ..kernels.rules.ftrl import FtrlSettings, PowerFtrlSettings
from ..optimizer import Optimizer
from ..signatures import Common, Number, Range, Rate, hyper_parameters

_Strength = Annotated[float, Range(0.0)]


class Ftrl(Optimizer):
    """Follow the regularised leader: sparse weights for linear models.

    See `fastopt.kernels.rules.ftrl`. The parameter is worked out anew from the slots at every step.

    Parameters
    ----------
    learning_rate : float > 0, schedule, or function of the step or of nothing
    learning_rate_power : float <= 0
        -0.5 is fast; any other value takes two powers per element.
    initial_accumulator_value : float >= 0
    l1_regularization_strength, l2_regularization_strength : float >= 0
    l2_shrinkage_regularization_strength : float >= 0
        A penalty on the gradient, where l2 stabilises the parameter.
    beta : float

    Slots: ``accumulator`` (``initial_accumulator_value``), ``linear`` (zeros), like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, learning_rate_power: Annotated[float, Range(high=0.0)] = -0.5,
        initial_accumulator_value: _Strength = 0.1, l1_regularization_strength: _Strength = 0.0,
        l2_regularization_strength: _Strength = 0.0, l2_shrinkage_regularization_strength: _Strength = 0.0,
        beta: Number = 0.0, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    learning_rate_power: float
    initial_accumulator_value: float
    l1_regularization_strength: float
    l2_regularization_strength: float
    l2_shrinkage_regularization_strength: float
    beta: float

    @property
    def _settings_class(self) -> Any:
        return FtrlSettings if self.learning_rate_power == -0.5 else PowerFtrlSettings
