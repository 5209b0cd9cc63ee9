"""Lion."""

from __future__ import annotations

from ..hyper_parameters import Coefficient, Rate, hyper_parameters
from ..kernels.rules.lion import LionScalars
from ..optimizer import Optimizer
from ..plan import Slot


class Lion(Optimizer):
    """Steps of one size, in the direction of an interpolated momentum.

    See `fastopt.kernels.rules.lion`. Wants a learning rate 3 to 10 times smaller than Adam's.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    beta_1 : float in (0, 1], or callable
        Share of the momentum in the direction.
    beta_2 : float in [0, 1], or callable
        Share that the momentum keeps.

    Slots: ``momentum``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Coefficient = 0.9, beta_2: Coefficient = 0.99,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    beta_1: Coefficient
    beta_2: Coefficient

    def _check(self) -> None:
        self._check_coefficient("beta_1", "beta_2", below=False)
        if self.beta_1 == 0:
            raise ValueError("beta_1 must be in (0, 1], got 0")

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"momentum": Slot()}

    _takes_rates = True
    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = self._value("beta_1"), self._value("beta_2")
        return LionScalars(learning_rate, beta_1, 1.0 - beta_1, beta_2, 1.0 - beta_2)
