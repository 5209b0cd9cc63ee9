"""Adagrad with an accumulator per row."""

from __future__ import annotations

from typing import Annotated, Unpack

from ..kernels.cpu import per_row  # noqa: F401  # the rule's engine
from ..kernels.rules.adagrad import RowwiseAdagradScalars
from ..optimizer import Optimizer
from ..parameters import Parameter
from ..signatures import Coefficient, Common, NotNegative, Range, Rate, hyper_parameters


class RowwiseAdagrad(Optimizer):
    """Steps of each row divided by the root of the sum of its mean squared gradients: one number of state per row.

    For embedding tables, whose state is then smaller than the table by the length of a row. A row is all that has one
    index along the first axis; of an array without axes it is the array. See `fastopt.kernels.rules.adagrad`.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    initial_accumulator_value : float >= 0
    epsilon : float >= 0, or callable
        Outside the root.

    Slots: ``accumulator``, of the shape of the parameter's first axis, ``initial_accumulator_value``.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.01, initial_accumulator_value: Annotated[float, Range(0.0)] = 0.0,
        epsilon: NotNegative = 1e-8, **common: Unpack[Common],
    ) -> None: ...  # fmt: skip

    _settings_class = RowwiseAdagradScalars
    initial_accumulator_value: float
    epsilon: Coefficient

    def _needs_c_order(self, parameter: Parameter) -> bool:
        return parameter.axes[:1] not in ((), (0,))
