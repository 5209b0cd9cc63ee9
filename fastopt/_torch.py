"""What fastopt uses of torch that torch does not document: all of it, each with the reason why.

`fastopt.keras` uses it too, on Keras's torch backend. Nothing else imports it, since it imports torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

KNOWN = "2.13"
"""Versions of torch that all of this was seen to work with; pyproject.toml says so too."""


def without_modes() -> AbstractContextManager[Any]:
    """Context in which torch's functions run no Python code, as they do under `torch.set_default_device`.

    `torch.overrides` has ways to add such modes, and none to leave them out. Where torch has lost this one, a signal
    may come between the parts of a step under a mode; without modes nothing is different.
    """
    disable = getattr(torch._C, "DisableTorchFunction", None)
    return contextlib.nullcontext() if disable is None else disable()


def versions_of(tensors: list[Any]) -> list[int] | None:
    """Return how often each has been written to, as autograd counts; None if that is not counted for one of them.

    It is not for tensors made under inference mode. What is public, `torch.autograd.graph.increment_version`, has torch
    count and does not tell the number.
    """
    try:
        return [tensor._version for tensor in tensors]
    except (AttributeError, RuntimeError):
        return None


def mark_of(number: torch.Tensor) -> Any:
    """Return what will be another once a tensor of one element is written to; None under inference mode.

    Where torch does not tell how often that was done, it is the number itself, for which a GPU has to be waited for.
    """
    if number.is_inference():
        return None
    return number._version if hasattr(number, "_version") else number.item()


def filling(tensors: list[torch.Tensor]) -> tuple[Any, list[Callable[[], Any]]]:
    """Return where to put a number for each tensor, ``values[:] = …``, and C functions that then fill the tensors.

    On a GPU they are a launch or two for all tensors: torch 2.14 makes that public, as `torch.foreach`. Where torch has
    neither that nor what it was before, there is a function for each.
    """
    public = getattr(torch, "foreach", None)
    zero = getattr(public, "zero_", None) or getattr(torch, "_foreach_zero_", None)
    add = getattr(public, "add_", None) or getattr(torch, "_foreach_add_", None)
    if zero is None or add is None:
        array = np.zeros(len(tensors))
        numbers = torch.from_numpy(array).unbind()
        return array, [partial(torch.Tensor.copy_, *each) for each in zip(tensors, numbers, strict=True)]
    values = [0.0] * len(tensors)
    return values, [partial(zero, tensors), partial(add, tensors, values)]


def rows_of(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and values of a sparse gradient as they are, indices repeated.

    `torch.Tensor.indices` and ``values`` are for those whose indices have been merged, which takes longer than a step.
    """
    try:
        return gradient._indices(), gradient._values()
    except AttributeError:
        merged = gradient.coalesce()
        return merged.indices(), merged.values()


def adding(tensors: list[torch.Tensor], number: torch.Tensor) -> None:
    """Add a number to all tensors: on a GPU by a launch, where torch has `filling`'s functions."""
    add = getattr(getattr(torch, "foreach", None), "add_", None) or getattr(torch, "_foreach_add_", None)
    if add is not None:
        add(tensors, [number] * len(tensors))
        return
    for tensor in tensors:
        tensor.add_(number)


class Scaled:
    """An optimizer as `torch.amp.GradScaler` sees it: nothing public has it hand over its scale.

    A scaler that asks for none of this unscales all gradients and leaves a step out itself, as for any optimizer.
    """

    fused_backward: Any
    param_groups: list[dict[str, Any]]
    _unscales_itself = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a ``GradScaler`` is to hand over its scale, by the attributes ``grad_scale`` and ``found_inf``.

        It passes over all gradients in any case, and unscales them in the same pass if this is False; Lightning clips
        only then. But it waits for the GPU then, and refuses gradients of float16: with ``fused=True`` CUDA tensors are
        not, and parameters of 16 bits are not, as in torch. A ``grad_scale`` that is there before is multiplied by the
        scaler's, as torch does.
        """
        asked = self._unscales_itself or self.fused_backward or scale_of(self) is not None
        return asked or is_fused_on_gpu(self) or is_fused_in_half(self)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self._unscales_itself = value


def is_fused_on_gpu(optimizer: Any) -> bool:
    """Whether ``fused=True`` was asked for, of CUDA tensors alone."""
    groups = optimizer.param_groups
    return any(group.get("fused") for group in groups) and all(
        p.device.type == "cuda" for group in groups for p in group["params"]
    )


def is_fused_in_half(optimizer: Any) -> bool:
    """Whether ``fused=True`` was asked for, of parameters of which some have 16 bits."""
    groups = optimizer.param_groups
    return any(group.get("fused") for group in groups) and any(
        p.dtype in (torch.float16, torch.bfloat16) for group in groups for p in group["params"]
    )


def scale_of(optimizer: Any) -> Any:
    """Return what gradients are to be divided by; None if they are as they should be."""
    return getattr(optimizer, "grad_scale", None)


def found_inf_of(optimizer: Any) -> Any:
    """Whether a scaler has found a gradient that is not finite, as a tensor; None without a scaler."""
    return getattr(optimizer, "found_inf", None)
