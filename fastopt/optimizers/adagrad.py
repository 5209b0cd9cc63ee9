"""Adagrad."""

from __future__ import annotations

from typing import Annotated, Unpack

from ..kernels.rules.adagrad import AdagradScalars
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, NotNegative, Range, Rate, hyper_parameters


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients.

    See `fastopt.kernels.rules.adagrad`.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    initial_accumulator_value : float >= 0
    epsilon : float >= 0, or callable
        Inside the root.

    Slots: ``accumulator``, like the parameter, ``initial_accumulator_value``.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, initial_accumulator_value: Annotated[float, Range(0.0)] = 0.1,
        epsilon: NotNegative = 1e-7, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = AdagradScalars
    initial_accumulator_value: float
    epsilon: Coefficient
