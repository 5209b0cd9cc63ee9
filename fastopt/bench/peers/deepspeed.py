"""DeepSpeed's optimizers for the CPU, which it compiles on first use: this takes a C++ compiler."""

from __future__ import annotations

import functools
from typing import Any

from ..cases import Case
from .torch import OnTensors

KINDS = {"Adam": "Adam", "AdamW": "Adam", "Lion": "Lion", "Adagrad": "Adagrad"}
"""fastopt's name → DeepSpeed's, after ``DeepSpeedCPU``."""


class DeepSpeed(OnTensors):
    """``DeepSpeedCPUAdam`` and its like."""

    name = "DeepSpeed"
    package = "deepspeed"

    @classmethod
    def missing(cls) -> str | None:
        """See `Peer`."""
        return super().missing() or _why_not_built()

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        """See `Peer`."""
        if case.rule.optimizer not in KINDS or case.rule.hyper.get("amsgrad"):
            return f"DeepSpeed has no {case.recipe} for the CPU"
        if case.dtype != "float32":
            return "DeepSpeed steps in float32 on the CPU"
        if case.rule.hyper.get("initial_accumulator_value"):
            return "DeepSpeed's Adagrad starts at zero"
        return None

    def make(self) -> Any:
        """See `OnTensors`."""
        kind, h = KINDS[self.case.rule.optimizer], self.case.rule.hyper
        options: dict[str, Any] = {"betas": (h["beta_1"], h["beta_2"]), "weight_decay": h.get("weight_decay", 0.0)}
        if kind == "Adam":
            options |= {"eps": h["epsilon"], "adamw_mode": True}
        return _class_of(kind)(self.groups(), lr=h["learning_rate"], **options)

    def names(self) -> dict[str, tuple[str, float]]:
        """See `OnTensors`."""
        velocity = {} if KINDS[self.case.rule.optimizer] == "Lion" else {"velocity": ("exp_avg_sq", 1.0)}
        return {"momentum": ("exp_avg", 1.0), **velocity}


def _class_of(kind: str) -> Any:
    import deepspeed.ops

    return getattr(getattr(deepspeed.ops, kind.lower()), f"DeepSpeedCPU{kind}")


@functools.cache
def _why_not_built() -> str | None:
    """Compile what is not compiled yet; what went wrong."""
    import torch

    try:
        _class_of("Adam")([torch.zeros(8, requires_grad=True)])
    except Exception as error:
        return f"DeepSpeed's kernels cannot be built here ({type(error).__name__})"
    return None
