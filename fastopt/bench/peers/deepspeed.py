"""DeepSpeed's optimizers for the CPU, which it compiles on first use: this takes a C++ compiler."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..cases import Case
from .torch import MOMENTS, OnTensors

KINDS = {"Adam": "Adam", "AdamW": "Adam", "Lion": "Lion"}
"""fastopt's name → DeepSpeed's, after ``DeepSpeedCPU``. Its Adagrad has no initial accumulator, which cases have."""


class DeepSpeed(OnTensors):
    """``DeepSpeedCPUAdam`` and its like."""

    name = "DeepSpeed"
    package = "deepspeed"

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or _why_not_built()

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        if case.rule.optimizer not in KINDS or case.rule.hyper.get("amsgrad"):
            return f"DeepSpeed has no {case.recipe} of the same formula for the CPU"
        return None if case.dtype == "float32" else "DeepSpeed steps in float32 on the CPU"

    def make(self) -> Any:
        kind, h = KINDS[self.case.rule.optimizer], self.case.rule.hyper
        options: dict[str, Any] = {"betas": (h["beta_1"], h["beta_2"]), "weight_decay": h.get("weight_decay", 0.0)}
        if kind == "Adam":
            options |= {"eps": h["epsilon"], "adamw_mode": True}
        with _tools_in_reach():
            return _class_of(kind)(self.groups(), lr=h["learning_rate"], **options)

    def names(self) -> dict[str, tuple[str, float]]:
        return {name: MOMENTS[name] for name in ("momentum", "velocity")}


def _class_of(kind: str) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it warns, on standard output, if it has to find that out
    import deepspeed.ops

    return getattr(getattr(deepspeed.ops, kind.lower()), f"DeepSpeedCPU{kind}")


@contextmanager
def _tools_in_reach() -> Iterator[None]:
    """Put this environment's programs, of which the compilation needs ninja, last on the path of the process."""
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([path, sysconfig.get_path("scripts")])
    try:
        yield
    finally:
        os.environ["PATH"] = path


@functools.cache
def _why_not_built() -> str | None:
    """Compile what is not compiled yet, which takes minutes; what went wrong."""
    import torch

    try:
        with _tools_in_reach():
            _class_of("Adam")([torch.zeros(8, requires_grad=True)])
    except Exception as error:
        cause = _first_cause(error)
        return f"DeepSpeed's kernels cannot be built here, which takes ninja and a C++ compiler: {cause}"
    return None


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
