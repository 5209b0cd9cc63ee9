"""torch.optim's family of Adam."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from ..kernels.registry import Slot
from ..kernels.rules.adam import CoupledAdamScalars, CoupledAmsgradScalars
from ..kernels.rules.adamax import CoupledAdamaxScalars
from ..kernels.rules.nadam import CoupledNadamScalars
from .base import Fused
from .cohorts import Cohort
from .numbers import betas_of, decays_of, number
from .rule import Rule, Slots

_MOMENTS: Slots = (("exp_avg", Slot()), ("exp_avg_sq", Slot()))


class AdamRule(Rule):
    """The rule of `Adam`, in the terms of its parameter groups."""

    reads = (
        "lr", "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay", "maximize",
    )  # fmt: skip

    def slots(self, group: Mapping[str, Any]) -> Slots:
        return (*_MOMENTS, ("max_exp_avg_sq", Slot())) if group["amsgrad"] else _MOMENTS

    def scalars(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> Any:
        kind = CoupledAmsgradScalars if group["amsgrad"] else CoupledAdamScalars
        beta_1, beta_2 = betas_of(group)
        decay, share = decays_of(group)
        root = math.sqrt(1.0 - beta_2**t)
        alpha = number(group["lr"]) * root / (1.0 - beta_1**t)
        return kind(alpha, 1.0 - beta_1, 1.0 - beta_2, number(group["eps"]) * root, decay), share


class Adam(Fused, torch.optim.Adam):
    """`torch.optim.Adam` in one pass. See `fastopt.kernels.rules.adam`, the rules called coupled.

    State: ``step``, ``exp_avg``, ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``.
    """

    rule = AdamRule()


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW` in one pass: `Adam` with decoupled weight decay."""


class AdamaxRule(Rule):
    """The rule of `Adamax`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "maximize")

    def slots(self, group: Mapping[str, Any]) -> Slots:
        return ("exp_avg", Slot()), ("exp_inf", Slot())

    def scalars(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> Any:
        beta_1, beta_2 = betas_of(group)
        alpha = number(group["lr"]) / (1.0 - beta_1**t)
        eps, decay = number(group["eps"]), number(group["weight_decay"])
        return CoupledAdamaxScalars(alpha, 1.0 - beta_1, beta_2, eps, decay), 0.0


class Adamax(Fused, torch.optim.Adamax):
    """`torch.optim.Adamax` in one pass. See `fastopt.kernels.rules.adamax.coupled_adamax`.

    State: ``step``, ``exp_avg``, ``exp_inf``.
    """

    rule = AdamaxRule()


class NAdamRule(Rule):
    """The rule of `NAdam`, in the terms of its parameter groups."""

    reads = (
        "lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", "maximize",
    )  # fmt: skip
    counters = ("step", "mu_product")

    def slots(self, group: Mapping[str, Any]) -> Slots:
        return _MOMENTS

    def start(self, name: str, group: Mapping[str, Any]) -> float:
        return 1.0 if name == "mu_product" else 0.0

    def counted_apart(self, group: int) -> Hashable:
        return group  # whose hyper-parameters the product depends on

    def scalars(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> Any:
        beta_1, beta_2 = betas_of(group)
        decay, share = decays_of(group)
        mu, ahead = self._momentum(group, t), self._momentum(group, t + 1)
        product = cohort.counters["mu_product"] * mu
        scalars = CoupledNadamScalars(
            number(group["lr"]),
            1.0 - beta_1,
            1.0 - beta_2,
            ahead / (1.0 - product * ahead),
            (1.0 - mu) / (1.0 - product),
            1.0 / (1.0 - beta_2**t),
            number(group["eps"]),
            decay,
        )
        return scalars, share

    def counted(self, cohort: Cohort) -> tuple[int, dict[str, float]]:
        count, counters = super().counted(cohort)
        product = cohort.counters["mu_product"] * self._momentum(cohort.group, count)
        return count, {**counters, "mu_product": product}

    @staticmethod
    def _momentum(group: Mapping[str, Any], t: int) -> float:
        return betas_of(group)[0] * (1.0 - 0.5 * 0.96 ** (t * number(group["momentum_decay"])))


class NAdam(Fused, torch.optim.NAdam):
    """`torch.optim.NAdam` in one pass. See `fastopt.kernels.rules.nadam.coupled_nadam`.

    State: ``step``, ``mu_product``, ``exp_avg``, ``exp_avg_sq``.
    """

    rule = NAdamRule()
