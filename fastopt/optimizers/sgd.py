"""Gradient descent."""

from __future__ import annotations

from typing import Any, Unpack

from ..kernels.rules.sgd import MomentumScalars, NesterovScalars, SgdScalars
from ..optimizer import Optimizer
from ..signatures import Coefficient, Common, Rate, Share, hyper_parameters


class SGD(Optimizer):
    """Gradient descent, with momentum or Nesterov's momentum.

    Update: ``p ← p − learning_rate · g``; with momentum ``b ← momentum · b − learning_rate · g; p ← p + b``.
    See `fastopt.kernels.rules.sgd`. Unlike torch the slot holds steps, learning rate included.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    momentum : float in [0, 1], or callable
        Keras accepts a float only.
    nesterov : bool

    Slots: ``momentum`` (the parameter's shape and dtype, zeros), unless momentum is 0.

    Raises
    ------
    TypeError, ValueError
        For hyper-parameters of the wrong kind or out of range.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.SGD(0.1); opt.build([w]); opt.apply([np.ones(3, np.float32)])
    >>> w
    array([0.9, 0.9, 0.9], dtype=float32)
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Share = 0.0, nesterov: bool = False, **common: Unpack[Common]
    ) -> None: ...

    momentum: Coefficient
    nesterov: bool

    @property
    def _settings_class(self) -> Any:
        if not self.momentum:
            return SgdScalars
        return NesterovScalars if self.nesterov else MomentumScalars
