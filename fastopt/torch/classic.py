"""torch.optim's gradient descent, and what scales it by sums or means of squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..kernels.cpu import per_row  # noqa: F401  (the engine of rules per row)
from ..kernels.rules.adadelta import CoupledAdadeltaScalars
from ..kernels.rules.adagrad import CoupledAdagradSettings, CoupledRowwiseAdagradSettings
from ..kernels.rules.rmsprop import (
    CoupledCenteredMomentumRMSpropScalars,
    CoupledCenteredRMSpropScalars,
    CoupledMomentumRMSpropScalars,
    CoupledRMSpropScalars,
)
from ..kernels.rules.sgd import CoupledMomentumSettings, CoupledNesterovSettings, CoupledSgdSettings
from .base import Fused
from .cohorts import Cohort
from .numbers import number
from .rule import Rule


class SGDRule(Rule):
    """The rule of `SGD`, in the terms of its parameter groups."""

    reads = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    counters = ()

    names: ClassVar = {"momentum": "momentum_buffer"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        kind: Any = CoupledSgdSettings
        if group["momentum"]:
            kind = CoupledNesterovSettings if group["nesterov"] else CoupledMomentumSettings
        return kind(*(number(group[name]) for name in ("lr", "momentum", "dampening", "weight_decay"))), 0.0

    def takes_rows(self, group: Mapping[str, Any]) -> bool:
        return not (group["momentum"] or group["weight_decay"])

    def count_of(self, state: Mapping[str, Any]) -> int:
        return int(state.get("momentum_buffer") is not None)

    def counted(self, cohort: Cohort) -> tuple[int, dict[str, float]]:
        return 1, {}  # the second update is like all later ones


class SGD(Fused, torch.optim.SGD):
    """`torch.optim.SGD` in one pass. See `fastopt.kernels.rules.sgd`, the rules called coupled.

    State: with momentum ``momentum_buffer``.
    """

    rule = SGDRule()


class RMSpropRule(Rule):
    """The rule of `RMSprop`, in the terms of its parameter groups."""

    reads = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
    _KINDS: ClassVar = {
        (False, False): CoupledRMSpropScalars,
        (True, False): CoupledMomentumRMSpropScalars,
        (False, True): CoupledCenteredRMSpropScalars,
        (True, True): CoupledCenteredMomentumRMSpropScalars,
    }

    names: ClassVar = {"velocity": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        kind: Any = self._KINDS[group["momentum"] > 0, bool(group["centered"])]
        alpha, momentum = number(group["alpha"]), number(group["momentum"])
        eps, decay = number(group["eps"]), number(group["weight_decay"])
        return kind(number(group["lr"]), alpha, 1.0 - alpha, momentum, eps, decay), 0.0


class RMSprop(Fused, torch.optim.RMSprop):
    """`torch.optim.RMSprop` in one pass. See `fastopt.kernels.rules.rmsprop`, the rules called coupled.

    State: ``square_avg``, with momentum ``momentum_buffer``, centered ``grad_avg``.
    """

    rule = RMSpropRule()


class AdagradRule(Rule):
    """The rule of `Adagrad`, in the terms of its parameter groups."""

    reads = ("lr", "lr_decay", "eps", "weight_decay", "maximize")

    names: ClassVar = {"accumulator": "sum"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        own = (number(group[name]) for name in ("lr", "lr_decay", "eps", "weight_decay"))
        return self._settings(*own), 0.0

    _settings: ClassVar[type] = CoupledAdagradSettings

    def takes_rows(self, group: Mapping[str, Any]) -> bool:
        return not group["weight_decay"]


class Adagrad(Fused, torch.optim.Adagrad):
    """`torch.optim.Adagrad` in one pass. See `fastopt.kernels.rules.adagrad.coupled_adagrad`.

    State: ``sum``, there from the start as in torch.
    """

    rule = AdagradRule()


class RowwiseAdagradRule(AdagradRule):
    """The rule of `RowwiseAdagrad`, in the terms of its parameter groups."""

    _settings = CoupledRowwiseAdagradSettings

    def needs_c_order(self, axes: tuple[int, ...]) -> bool:
        return axes[:1] not in ((), (0,))


class RowwiseAdagrad(Fused, torch.optim.Optimizer):
    """Adagrad with one number of state per row, for embeddings, with the arguments of torchrec's RowWiseAdagrad.

    See `fastopt.kernels.rules.adagrad.coupled_rowwise_adagrad`. torchrec takes dense gradients only.

    Parameters
    ----------
    lr : float
    lr_decay : float >= 0
    weight_decay : float >= 0
        Added to the gradient, times the parameter.
    initial_accumulator_value : float >= 0
    eps : float >= 0
    maximize : bool

    State: ``step``, ``sum`` with a number per row.
    """

    rule = RowwiseAdagradRule()

    def __init__(
        self, params: Any, lr: float = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0, eps: float = 1e-10, *, maximize: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps,
        }  # fmt: skip
        for name, value in defaults.items():
            if not value >= 0.0:
                raise ValueError(f"Invalid {name} value: {value}")
        super().__init__(params, {**defaults, "maximize": maximize}, **options)


class AdadeltaRule(Rule):
    """The rule of `Adadelta`, in the terms of its parameter groups."""

    reads = ("lr", "rho", "eps", "weight_decay", "maximize")

    names: ClassVar = {"accumulated_grad": "square_avg", "accumulated_delta_var": "acc_delta"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        rho, eps, decay = number(group["rho"]), number(group["eps"]), number(group["weight_decay"])
        return CoupledAdadeltaScalars(number(group["lr"]), rho, 1.0 - rho, eps, decay), 0.0


class Adadelta(Fused, torch.optim.Adadelta):
    """`torch.optim.Adadelta` in one pass. See `fastopt.kernels.rules.adadelta.coupled_adadelta`.

    State: ``square_avg``, ``acc_delta``.
    """

    rule = AdadeltaRule()
