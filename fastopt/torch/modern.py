"""Optimizers that torch.optim lacks, and its youngest: Lion, Lamb, Adafactor, Muon, schedule-free AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from operator import setitem
from typing import Any, ClassVar

import torch

from .._torch import without_modes
from ..counts import Call
from ..kernels.cpu import adafactor  # noqa: F401  (registers the rule)
from ..kernels.cpu.launch import one_call
from ..kernels.cpu.muon import MuonScalars
from ..kernels.rules.adafactor import CoupledAdafactorSettings
from ..kernels.rules.lamb import CoupledLambSettings
from ..kernels.rules.lion import LionScalars
from ..kernels.rules.schedule_free_adamw import AuthorsScheduleFreeScalars
from .base import Fused
from .cohorts import Cohort
from .memory import few_threads, local
from .numbers import betas_of, check_hyper_parameters, number
from .rule import Rule
from .several import RESHARD, check_sharded


class LionRule(Rule):
    """The rule of `Lion`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "weight_decay", "decoupled_weight_decay", "maximize")
    counters = ()

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults

    names: ClassVar = {"momentum": "exp_avg"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        beta_1, beta_2 = betas_of(group)
        lr, decay = number(group["lr"]), number(group["weight_decay"])
        if group["decoupled_weight_decay"]:
            decay /= number(self._defaults["lr"])
        return LionScalars(lr, beta_1, 1.0 - beta_1, beta_2, 1.0 - beta_2), lr * decay


class Lion(Fused, torch.optim.Optimizer):
    """Lion, with the arguments of lion-pytorch. See `fastopt.kernels.rules.lion`.

    Parameters
    ----------
    lr : float
    betas : tuple of two floats in [0, 1)
    weight_decay : float >= 0
        Decoupled: the parameter first loses ``lr * weight_decay`` of itself.
    use_triton : bool
        Without effect.
    decoupled_weight_decay : bool
        Have the parameter lose ``lr / first * weight_decay`` of itself instead, where ``first`` is the argument ``lr``,
        whatever schedules and groups make of it.
    maximize : bool

    State: ``exp_avg``.
    """

    @property
    def rule(self) -> LionRule:  # type: ignore[override]
        """See `Fused`."""
        return LionRule(self.defaults)

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
        use_triton: bool = False, decoupled_weight_decay: bool = False, *, maximize: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        check_hyper_parameters(lr, betas, weight_decay)
        if decoupled_weight_decay and not lr > 0.0:
            raise ValueError(f"Invalid learning rate: {lr}; decoupled_weight_decay=True divides by it")
        defaults = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults, **options)


class LambRule(Rule):
    """The rule of `Lamb`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "bias_correction", "maximize")
    needs_whole = True

    names: ClassVar = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        own = (number(group[name]) for name in ("eps", "weight_decay", "bias_correction"))
        return CoupledLambSettings(number(group["lr"]), *betas_of(group), *own), 0.0


class Lamb(Fused, torch.optim.Optimizer):
    """Lamb, as in the paper: decay inside the update, every parameter scaled by its trust ratio.

    See `fastopt.kernels.rules.lamb.coupled_lamb`. The packages around PyTorch agree on the arguments, and differ: timm
    and apex clip the global norm to 1 by default (``clip_norm=1.0``) and scale no parameter without decay.

    Parameters
    ----------
    lr : float
    betas : tuple of two floats in [0, 1)
    eps : float >= 0
    weight_decay : float >= 0
    bias_correction : bool
    maximize : bool

    State: ``step``, ``exp_avg``, ``exp_avg_sq``.
    """

    rule = LambRule()

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0, bias_correction: bool = True, *, maximize: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        check_hyper_parameters(lr, betas, weight_decay, eps)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults, **options)


class AdafactorRule(Rule):
    """The rule of `Adafactor`, in the terms of its parameter groups."""

    reads = ("lr", "beta2_decay", "eps", "d", "weight_decay", "maximize")
    needs_whole = True

    names: ClassVar = {"row": "row_var", "column": "col_var", "velocity": "variance"}

    def needs_c_order(self, axes: tuple[int, ...]) -> bool:
        return axes[:-2] != tuple(range(len(axes)))[:-2]

    def extra(self, tensor: torch.Tensor) -> Hashable:
        return torch.finfo(tensor.dtype).eps

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        lr, (eps_1, eps_2) = number(group["lr"]), group["eps"]
        least = extra if eps_1 is None else number(eps_1)
        own = number(group["beta2_decay"]), least, number(eps_2), number(group["d"])
        return CoupledAdafactorSettings(lr, *own), lr * number(group["weight_decay"])


class Adafactor(Fused, torch.optim.Adafactor):
    """`torch.optim.Adafactor` in three passes. See `fastopt.kernels.rules.adafactor`.

    State: ``step``, ``row_var`` and ``col_var``, or ``variance`` for parameters of fewer than two axes.
    """

    rule = AdafactorRule()


class MuonRule(Rule):
    """The rule of `Muon`, in the terms of its parameter groups."""

    reads = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    counters = ()
    needs_whole = True

    names: ClassVar = {"momentum": "momentum_buffer"}

    def extra(self, tensor: torch.Tensor) -> Hashable:
        return tuple(tensor.shape)

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        lr, momentum = number(group["lr"]), number(group["momentum"])
        rows, columns = extra
        take = 1.0 - momentum
        ratio = math.sqrt(max(1.0, rows / columns)) if columns else 1.0
        if group["adjust_lr_fn"] == "match_rms_adamw":
            ratio = 0.2 * math.sqrt(max(rows, columns))
        ahead = (take, momentum) if group["nesterov"] else (0.0, 1.0)
        a, b, c = map(number, group["ns_coefficients"])
        steps = number(group["ns_steps"])
        scalars = MuonScalars(lr * ratio, take, take, *ahead, -1.0, a, b, c, steps, number(group["eps"]), 0.0)
        return scalars, lr * number(group["weight_decay"])


class Muon(Fused, torch.optim.Muon):
    """`torch.optim.Muon`, a pass before and after the matrix products. See `fastopt.kernels.cpu.muon`.

    torch multiplies in bfloat16; here the products are in the parameter's own dtype.

    State: ``momentum_buffer``.
    """

    rule = MuonRule()


class ScheduleFreeAdamWRule(Rule):
    """The rule of `ScheduleFreeAdamW`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power", "k", "weight_sum", "lr_max")
    counters = ()

    names: ClassVar = {"momentum": "z", "velocity": "exp_avg_sq"}

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        beta_1, beta_2 = betas_of(group)
        lr, _, weight, weight_sum = self.weights(group)
        share = weight / weight_sum if weight_sum else 0.0
        scalars = AuthorsScheduleFreeScalars(
            lr,
            1.0 - beta_2,
            1.0 / (1.0 - beta_2 ** (group["k"] + 1)),
            share,
            lr * (1.0 - beta_1 * (1.0 - share)),
            number(group["eps"]),
            number(group["weight_decay"]),
        )
        return scalars, 0.0

    @staticmethod
    def weights(group: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """Rate of the coming step, greatest rate, weight of the step in the average, and of all steps."""
        t = group["k"] + 1
        warmup = group["warmup_steps"]
        lr = number(group["lr"]) * (t / warmup if t <= warmup else 1.0)
        greatest = max(lr, group["lr_max"])
        weight = t ** group["r"] * greatest ** group["weight_lr_power"]
        return lr, greatest, weight, group["weight_sum"] + weight


class ScheduleFreeAdamW(Fused, torch.optim.Optimizer):
    """``schedulefree.AdamWScheduleFree``: its arguments, state, ``train()`` and ``eval()``.

    See `fastopt.kernels.rules.schedule_free_adamw.authors_schedule_free_adamw`. Call ``train()`` before training and
    ``eval()`` before evaluating or saving the model, as the package asks for.

    Parameters
    ----------
    lr : float
    betas : tuple of two floats in [0, 1), the first not 0
    eps : float >= 0
    weight_decay : float >= 0
    warmup_steps : int >= 0
        Steps over which the rate grows linearly.
    r : float
        Step number t weighs as t ** r in the average,
    weight_lr_power : float
        and by the greatest rate so far to this power.
    foreach : bool, optional
        Without effect.

    State: ``z``, ``exp_avg_sq``; in the parameter groups ``k`` and what the averages weigh.
    """

    rule = ScheduleFreeAdamWRule()

    def __init__(
        self, params: Any, lr: float = 0.0025, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
        foreach: bool | None = None, **options: Any,
    ) -> None:  # fmt: skip
        check_hyper_parameters(lr, betas, weight_decay, eps)
        if not betas[0] > 0.0:
            raise ValueError(f"Invalid beta parameter at index 0: {betas[0]}; the average is divided by it")
        if not warmup_steps >= 0:
            raise ValueError(f"Invalid warmup_steps value: {warmup_steps}")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "r": r, "k": 0, "warmup_steps": warmup_steps, "train_mode": False,
            "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0, "weight_lr_power": weight_lr_power,
            "weight_decay": weight_decay, "foreach": foreach,
        }  # fmt: skip
        super().__init__(params, defaults, **options)

    def _ends(self) -> list[Call]:
        return [partial(group.update, self._after_step(group)) for group in self.param_groups]

    def _after_step(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a group holds after the coming step."""
        lr, greatest, _, weight_sum = self.rule.weights(group)
        return {"scheduled_lr": lr, "lr_max": greatest, "weight_sum": weight_sum, "k": group["k"] + 1}

    def _check_ready(self) -> None:
        super()._check_ready()
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError(
                "Optimizer was not in train mode when step is called. Please insert .train() and .eval() calls on the "
                "optimizer. See the documentation of ScheduleFreeAdamW for details."
            )

    def train(self) -> None:
        """Have the parameters hold the points where gradients are taken.

        Raises
        ------
        RuntimeError
            With FSDP2, if the model would go on with the other weights: call its ``reshard()`` first. So for `eval`.
        """
        self._set_mode(True, lambda beta_1: 1.0 - beta_1)

    def eval(self) -> None:
        """Have the parameters hold the average."""
        self._set_mode(False, lambda beta_1: 1.0 - 1.0 / beta_1)

    @few_threads()
    @torch.no_grad()
    def _set_mode(self, train: bool, weight: Callable[[float], float]) -> None:
        changing = [group for group in self.param_groups if group["train_mode"] != train]
        states = [(p, self.state.get(p, {}).get("z"), group) for group in changing for p in group["params"]]
        begun = [(p, z, weight(betas_of(group)[0])) for p, z, group in states if z is not None]
        way_out = RESHARD.format(f"{'train' if train else 'eval'}() of the optimizer")
        check_sharded([p for p, *_ in begun], way_out)
        calls: list[Call] = [partial(setitem, group, "train_mode", train) for group in changing]
        for p, z, share in begun:
            own = local(p).detach()
            calls.append(partial(torch.Tensor.lerp_, own, local(z).to(own), share))
        with without_modes():  # see `device_optimizer.DeviceOptimizer.run`
            one_call(calls)()
