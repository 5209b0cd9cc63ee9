"""Hyper-parameters as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float:
    """A hyper-parameter as a float: torch takes tensors of one element, too."""
    return value if type(value) is float else float(value)


def betas_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Both betas of a parameter group."""
    beta_1, beta_2 = group["betas"]
    return number(beta_1), number(beta_2)


def decays_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Weight decay in the gradient, and the share that the parameter loses instead where decay is decoupled."""
    decay = number(group["weight_decay"])
    return (0.0, decay * number(group["lr"])) if group["decoupled_weight_decay"] else (decay, 0.0)
