"""DeepSpeed's Adam for the CPU without a compiler: nothing here needs DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..kernels.rules.adam import CoupledAdamScalars, CoupledAdamSettings
from .adam import IntSteps
from .base import Fused
from .building import Built
from .cohorts import Cohort
from .numbers import betas_of, check_hyper_parameters, number
from .rule import Rule


class DeepSpeedAdamRule(Rule):
    """The rule of `DeepSpeedCPUAdam`, in the terms of its parameter groups."""

    reads = ("lr", "betas", "eps", "weight_decay", "bias_correction")
    names: ClassVar = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}
    needs_cpu = True

    def __init__(self, decoupled: bool) -> None:
        self._decoupled = decoupled

    def settings(self, group: Mapping[str, Any], cohort: Cohort, extra: Any) -> tuple[Any, float]:
        lr, decay, eps = (number(group[name]) for name in ("lr", "weight_decay", "eps"))
        (beta_1, beta_2), coupled = betas_of(group), 0.0 if self._decoupled else decay
        share = lr * decay if self._decoupled else 0.0
        if group["bias_correction"]:
            return CoupledAdamSettings(lr, beta_1, beta_2, eps, coupled), share
        return CoupledAdamScalars(lr, 1.0 - beta_1, 1.0 - beta_2, eps, coupled), share


class DeepSpeedCPUAdam(IntSteps, Fused, torch.optim.Optimizer):
    """``deepspeed.ops.adam.DeepSpeedCPUAdam`` (DeepSpeed 0.19) in one pass over all parameters, without compiling C++.

    See `fastopt.kernels.rules.adam.coupled_adam`. DeepSpeed works its scalars out in float32, which makes 1e-5 of
    ``exp_avg_sq``, and hardly anything of a step. Its ``ZeRO-Offload`` takes this class as one that it does not know:
    with ``"zero_force_ds_cpu_optimizer": false`` and ``"zero_allow_untested_optimizer": true`` in the configuration.

    Parameters
    ----------
    model_params : iterable of torch.Tensor, or of dict
        Parameters, or groups of them: float32, float64, bfloat16 or float16, of any shape. They may lie on any device
        as long as others, on the CPU, take their places before a step, which ZeRO-Offload sees to.
    lr : float
    bias_correction : bool
        Whether the means are divided by what they lack at first.
    betas : tuple of two floats in [0, 1)
    eps : float >= 0
    weight_decay : float >= 0
    amsgrad : bool
        False: there is no such variant. `AdamW` has it.
    adamw_mode : bool
        Whether the parameter first loses ``lr * weight_decay`` of itself; if not, the decay is part of the gradient.
        Kept as ``adam_w_mode``.
    fp32_optimizer_states : bool
        Whether state is float32 whatever the parameters are; if not, it is in their dtype, rounded to the nearest
        number. ``slot_dtype`` chooses among more, and counts if it is given.
    **options
        The keywords of `Fused`. Under ZeRO each process and group is stepped by itself, so ``clip_norm`` and
        ``nonfinite`` would each look at a part: use ``"gradient_clipping"`` of DeepSpeed's configuration.

    Raises
    ------
    RuntimeError
        With ``amsgrad``, of a group too.
    ValueError
        If a hyper-parameter is out of range; by `step`, if a parameter that has a gradient is not on the CPU.

    State: ``step``, an int in ``state_dict()``; ``exp_avg``, ``exp_avg_sq``.
    """

    def __init__(
        self, model_params: Any, lr: float = 1e-3, bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False,
        adamw_mode: bool = True, fp32_optimizer_states: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        check_hyper_parameters(lr, betas, weight_decay, eps)
        self.adam_w_mode, self.fp32_optimizer_states = adamw_mode, fp32_optimizer_states
        if fp32_optimizer_states:
            options.setdefault("slot_dtype", "float32")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction,
            "amsgrad": amsgrad,
        }  # fmt: skip
        super().__init__(model_params, defaults, **options)

    @property
    def rule(self) -> DeepSpeedAdamRule:  # type: ignore[override]
        """See `Fused`."""
        return DeepSpeedAdamRule(bool(self.adam_w_mode))

    def _begin(self) -> None:
        super()._begin()
        self._built_for: dict[tuple[int, ...], Built | None] = {}

    def _step(self, unscale: float = 1.0) -> None:
        """Keep what was built for each part that is stepped by itself: ZeRO has one group at a time, or one's part, in
        ``param_groups``. Their first parameters tell them apart; whether it fits is asked in any case.
        """
        part = tuple(id(next(iter(group["params"]), None)) for group in self.param_groups)
        self._built = self._built_for.get(part, self._built)
        super()._step(unscale)
        self._built_for[part] = self._built

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `Fused.add_param_group`. A group with ``amsgrad`` is a RuntimeError."""
        if param_group.get("amsgrad", self.defaults["amsgrad"]):
            raise RuntimeError(
                "DeepSpeedCPUAdam does not support the AMSGrad variant: leave amsgrad out, or use fastopt.torch.AdamW"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        own = {"adam_w_mode": self.adam_w_mode, "fp32_optimizer_states": self.fp32_optimizer_states}
        return {**super().__getstate__(), **own}
