"""torch.optim's family of Adam."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import torch

from ..kernels.registry import running_after
from ..kernels.rules.adam import AdamSettings, CoupledAdamSettings, CoupledAmsgradSettings
from ..kernels.rules.adamax import CoupledAdamaxSettings
from ..kernels.rules.nadam import CoupledNadamSettings
from ..kernels.rules.radam import CoupledRAdamSettings
from .base import Fused
from .cohorts import Cohort
from .numbers import betas_of, decays_of, number
from .rule import Rule

_MOMENTS = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}


class AdamRule(Rule):
    """The rule of `Adam`, in the terms of its parameter groups."""

    reads = (
        "lr", "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay", "maximize",
    )  # fmt: skip
    names: ClassVar = {**_MOMENTS, "velocity_hat": "max_exp_avg_sq"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        kind = CoupledAmsgradSettings if group["amsgrad"] else CoupledAdamSettings
        decay, share = decays_of(group)
        return kind(number(group["lr"]), *betas_of(group), number(group["eps"]), decay), share


class Adam(Fused, torch.optim.Adam):
    """`torch.optim.Adam` in one pass. See `fastopt.kernels.rules.adam`, the rules called coupled.

    State: ``step``, ``exp_avg``, ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``.
    """

    rule = AdamRule()


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW` in one pass: `Adam` with decoupled weight decay."""


class SparseAdamRule(Rule):
    """The rule of `SparseAdam`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "maximize")
    names = _MOMENTS
    needs_sparse = True

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        return AdamSettings(number(group["lr"]), *betas_of(group), number(group["eps"])), 0.0

    def takes_rows(self, group: Mapping[str, Any]) -> bool:
        return True


class IntSteps:
    """Placed before `Fused`: ``step`` is an int in what is saved, as the original class has it."""

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer.state_dict`; ``step`` is an int there."""
        saved = super().state_dict()  # type: ignore[misc]
        counted = {k: {**own, "step": int(own["step"])} if "step" in own else own for k, own in saved["state"].items()}
        return {**saved, "state": counted}


class SparseAdam(IntSteps, Fused, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam` in one pass over the rows that have a gradient, without merging their indices first.

    Rows without a gradient stay as they are, and their moments; bias correction goes by all steps. See
    `fastopt.kernels.rules.adam.adam`, whose ε is torch's here.

    State: ``step``, ``exp_avg``, ``exp_avg_sq``.
    """

    rule = SparseAdamRule()


class RAdamRule(Rule):
    """The rule of `RAdam`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize")
    names = _MOMENTS

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        decay, share = decays_of(group)
        return CoupledRAdamSettings(number(group["lr"]), *betas_of(group), number(group["eps"]), decay), share


class RAdam(Fused, torch.optim.RAdam):
    """`torch.optim.RAdam` in one pass. See `fastopt.kernels.rules.radam.coupled_radam`.

    State: ``step``, ``exp_avg``, ``exp_avg_sq``.
    """

    rule = RAdamRule()


class AdamaxRule(Rule):
    """The rule of `Adamax`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "maximize")

    names: ClassVar = {"momentum": "exp_avg", "norm": "exp_inf"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        eps, decay = number(group["eps"]), number(group["weight_decay"])
        return CoupledAdamaxSettings(number(group["lr"]), *betas_of(group), eps, decay), 0.0


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
    names = _MOMENTS

    def start(self, name: str, group: Mapping[str, Any]) -> float:
        return 1.0 if name == "mu_product" else 0.0

    def counted_apart(self, group: int) -> Hashable:
        return group  # whose hyper-parameters the product depends on

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        decay, share = decays_of(group)
        own = number(group["lr"]), *betas_of(group), number(group["eps"]), decay, number(group["momentum_decay"])
        return CoupledNadamSettings(*own, cohort.counters["mu_product"]), share

    def counted(self, cohort: Cohort) -> tuple[int, dict[str, float]]:
        count, counters = super().counted(cohort)
        settings, _ = self.settings(cohort.group, cohort, None)
        return count, {**counters, "mu_product": running_after(settings, count)}


class NAdam(Fused, torch.optim.NAdam):
    """`torch.optim.NAdam` in one pass. See `fastopt.kernels.rules.nadam.coupled_nadam`.

    State: ``step``, ``mu_product``, ``exp_avg``, ``exp_avg_sq``.
    """

    rule = NAdamRule()
