"""Nadam."""

from __future__ import annotations

import math
from array import array

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.nadam import NadamSettings
from ..optimizer import Optimizer
from ..plan import Slot


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
        self, learning_rate: Rate = 0.001, beta_1: Coefficient = 0.9, beta_2: Coefficient = 0.999,
        epsilon: Coefficient = 1e-7,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient
    epsilon: Coefficient
    schedule_decay: Coefficient = 1.0  # how fast the momentum warms up; an argument of earlier releases only

    def _check(self) -> None:
        self._check_coefficient("beta_1", "beta_2")
        self._check_coefficient("epsilon", high=math.inf)

    def _reset(self) -> None:
        super()._reset()
        self._running = array("d", [1.0])

    def _counters(self) -> dict[str, str]:
        return {**super()._counters(), "u_product": "_u_product"}

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"momentum": Slot(), "velocity": Slot()}

    _takes_rates = True
    _follows_settings = True

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        return NadamSettings(
            learning_rate,
            self._value("beta_1"),
            self._value("beta_2"),
            self._value("epsilon"),
            self._value("schedule_decay"),
            self._u_product,
        )

    @property
    def _u_product(self) -> float:
        return self._running[0]

    @_u_product.setter
    def _u_product(self, product: float) -> None:
        self._running[0] = product
