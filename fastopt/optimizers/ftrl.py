"""Ftrl."""

from __future__ import annotations

from ..hyper_parameters import Rate, hyper_parameters
from ..kernels.rules.ftrl import FtrlScalars, PowerFtrlScalars
from ..optimizer import Optimizer
from ..parameters import check_number
from ..plan import Slot


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
        self, learning_rate: Rate = 0.001, learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1, l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0, l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
        global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    learning_rate_power: float
    initial_accumulator_value: float
    l1_regularization_strength: float
    l2_regularization_strength: float
    l2_shrinkage_regularization_strength: float
    beta: float

    def _check(self) -> None:
        check_number("learning_rate_power", self.learning_rate_power, high=0.0)
        for name in (
            "initial_accumulator_value",
            "l1_regularization_strength",
            "l2_regularization_strength",
            "l2_shrinkage_regularization_strength",
        ):
            check_number(name, getattr(self, name), low=0.0)
        check_number("beta", self.beta)

    def _rule_slots(self, branch: str) -> dict[str, Slot]:
        return {"accumulator": Slot(start=self.initial_accumulator_value), "linear": Slot()}

    _keeps_scalars = True

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        if learning_rate <= 0:
            raise ValueError(f"Ftrl divides by the learning rate, which must be positive, got {learning_rate}")
        kind = FtrlScalars if self.learning_rate_power == -0.5 else PowerFtrlScalars
        return kind(
            1.0 / learning_rate,
            -self.learning_rate_power,
            self.l1_regularization_strength,
            2.0 * self.l2_regularization_strength + self.beta / learning_rate,
            2.0 * self.l2_shrinkage_regularization_strength,
        )
