"""Hyper-parameters as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


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


def check_hyper_parameters(lr: Any, betas: tuple[Any, Any], weight_decay: float, eps: float = 0.0) -> None:
    """Refuse hyper-parameters in torch's words."""
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for index, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
