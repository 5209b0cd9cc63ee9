"""Adafactor."""

from __future__ import annotations

from typing import Annotated, Unpack

from ..kernels.cpu import adafactor  # noqa: F401  (registers the rule)
from ..kernels.rules.adafactor import AdafactorSettings
from ..optimizer import Optimizer
from ..parameters import Parameter
from ..signatures import Common, Range, Rate, hyper_parameters

_NotNegative = Annotated[float, Range(0.0)]


class Adafactor(Optimizer):
    """Adam's scaling from row and column sums: state of rows + columns instead of rows × columns.

    See `fastopt.kernels.rules.adafactor`. Arrays of fewer than two axes keep a full ``velocity``.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
        The relative step is ``min(learning_rate, 1 / √t)`` times the parameter's root mean square.
    beta_2_decay : float
        The running means keep ``1 − t ** beta_2_decay``.
    epsilon_1 : float >= 0
        Added to squared gradients.
    epsilon_2 : float >= 0
        Least root mean square of a parameter that counts.
    clip_threshold : float > 0
        Greatest root mean square of an update.
    relative_step : bool
        Without effect, as in Keras, whose formula takes the minimum either way.

    Slots: ``row`` (shape without the last axis) and ``column`` (without the last but one), else ``velocity``; zeros.
    Keras stores the full matrix besides.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_2_decay: Annotated[float, Range(high=0.0)] = -0.8,
        epsilon_1: _NotNegative = 1e-30, epsilon_2: _NotNegative = 1e-3, clip_threshold: _NotNegative = 1.0,
        relative_step: bool = True, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = AdafactorSettings
    beta_2_decay: float
    epsilon_1: float
    epsilon_2: float
    clip_threshold: float
    relative_step: bool

    def _check(self) -> None:
        super()._check()
        if self.clip_threshold == 0:
            raise ValueError("clip_threshold must be positive, got 0")

    def _needs_c_order(self, parameter: Parameter) -> bool:
        # Rows and columns, in either order, must be the fastest axes; only then are their sums over neighbours.
        return set(parameter.axes[-2:]) != set(range(len(parameter.axes))[-2:])
