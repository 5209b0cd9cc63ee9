"""Whether a GPU does a step: said to it, and by it, in its own memory. Nothing here waits for it."""

from __future__ import annotations

from typing import Any

import torch

from .._torch import adding, found_inf_of
from ..steps.gpu import GpuSteps
from .rule import Owner


class Verdict:
    """A GPU's word on its present step, and on its last one.

    Parameters
    ----------
    gpu : GpuSteps
    device : torch.device
    """

    def __init__(self, gpu: GpuSteps, device: torch.device) -> None:
        self._stopped, self._skipped = (torch.as_tensor(number, device=device) for number in (gpu.stopped, gpu.skipped))

    def leave_out_if(self, found_inf: torch.Tensor) -> None:
        """Have the GPU leave the present step out if a number is not zero."""
        self._stopped.bitwise_or_((found_inf != 0).reshape(()))

    def count(self, counters: list[torch.Tensor]) -> None:
        """Add one to each tensor, unless the last step was left out."""
        if counters:
            adding(counters, (self._skipped == 0).to(counters[0].dtype))  # as many launches, whatever their number


def is_on_gpu(number: Any) -> bool:
    """Whether it is a CUDA tensor: reading it on the host would wait."""
    return isinstance(number, torch.Tensor) and number.device.type == "cuda"


def may_leave_out(owner: Owner) -> bool:
    """Whether the next step is one that a GPU may leave out without the host."""
    return owner.nonfinite == "skip" or is_on_gpu(found_inf_of(owner))
