"""Adafactor."""

from __future__ import annotations

import math

from ..hyper_parameters import Rate, hyper_parameters
from ..kernels import adafactor  # noqa: F401  (registers the rule)
from ..kernels.rules.adafactor import AdafactorScalars
from ..optimizer import Optimizer
from ..parameters import Parameter, check_flag, check_number
from ..plan import Slot


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
        self, learning_rate: Rate = 0.001, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3, clip_threshold: float = 1.0, relative_step: bool = True,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_2_decay: float
    epsilon_1: float
    epsilon_2: float
    clip_threshold: float
    relative_step: bool

    def _check(self) -> None:
        check_flag("relative_step", self.relative_step)
        check_number("beta_2_decay", self.beta_2_decay, high=0.0)
        for name in ("epsilon_1", "epsilon_2", "clip_threshold"):
            check_number(name, getattr(self, name), low=0.0)
        if self.clip_threshold == 0:
            raise ValueError("clip_threshold must be positive, got 0")

    def _needs_c_order(self, parameter: Parameter) -> bool:
        # Rows and columns, in either order, must be the fastest axes; only then are their sums over neighbours.
        return set(parameter.axes[-2:]) != set(range(len(parameter.axes))[-2:])

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        matrices, vectors = range(2, 65), range(2)
        return {
            "row": Slot(without=-1, axes=matrices),
            "column": Slot(without=-2, axes=matrices),
            "velocity": Slot(axes=vectors),
        }

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        keep = 1.0 - t**self.beta_2_decay
        rho = min(learning_rate, 1.0 / math.sqrt(t))
        return AdafactorScalars(
            keep, 1.0 - keep, rho, self.epsilon_1, self.epsilon_2, self.clip_threshold, 0.0, 0.0, 1.0
        )
