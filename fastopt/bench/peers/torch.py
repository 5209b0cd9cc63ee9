"""torch's optimizers on the CPU: fused, foreach and in a loop over the parameters."""

from __future__ import annotations

import shutil
from typing import Any, NamedTuple

from ...kernels.cpu.launch import get_num_threads
from ..cases import LARGE, Case
from ..memory import Array
from ..problem import Problem
from ..recipes import RATE
from ..sides import OnArrays, own_of
from .base import Peer

RENAMED = {"learning_rate": "lr", "epsilon": "eps"}


class Equivalent(NamedTuple):
    """torch's class for one of fastopt's: what is called otherwise, and factors between its state and slots."""

    name: str
    slots: dict[str, tuple[str, float]]
    fused: bool = False
    renamed: dict[str, str] = {}  # noqa: RUF012
    more: dict[str, Any] = {}  # noqa: RUF012


MOMENTS = {"momentum": ("exp_avg", 1.0), "velocity": ("exp_avg_sq", 1.0), "velocity_hat": ("max_exp_avg_sq", 1.0)}
RMSPROP = {
    "velocity": ("square_avg", 1.0),
    "momentum": ("momentum_buffer", RATE),
    "average_gradient": ("grad_avg", 1.0),
}
ADADELTA = {"accumulated_grad": ("square_avg", 1.0), "accumulated_delta_var": ("acc_delta", 1.0)}
EQUIVALENTS = {
    "SGD": Equivalent("SGD", {"momentum": ("momentum_buffer", -RATE)}, fused=True),
    "RMSprop": Equivalent("RMSprop", RMSPROP, renamed={"rho": "alpha"}),
    "Adagrad": Equivalent("Adagrad", {"accumulator": ("sum", 1.0)}, fused=True),
    "Adadelta": Equivalent("Adadelta", ADADELTA),
    "Adam": Equivalent("Adam", MOMENTS, fused=True),
    "AdamW": Equivalent("AdamW", MOMENTS, fused=True),
    "Adamax": Equivalent("Adamax", {"momentum": ("exp_avg", 1.0), "norm": ("exp_inf", 1.0)}),
    "Nadam": Equivalent("NAdam", MOMENTS, more={"momentum_decay": 1.0}),
    "RAdam": Equivalent("RAdam", MOMENTS),
}
"""By fastopt's names. What is not here torch does not have, or with another formula."""


class OnTensors(OnArrays, Peer):
    """torch tensors over NumPy's memory, and what surrounds an optimizer's step, by torch's fastest functions."""

    package = "torch"
    foreach = True

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        self.torch = torch
        torch.set_num_threads(get_num_threads())
        self.tensors = [torch.as_tensor(param).requires_grad_() for param in self._params]
        for tensor, grad in zip(self.tensors, self._grads, strict=True):
            tensor.grad = torch.as_tensor(grad)
        self.grads: list[Any] = [tensor.grad for tensor in self.tensors]
        self._averages: list[Any] | None = None
        self.optimizer = self.make()

    def make(self) -> Any:
        """An optimizer over `tensors`."""
        raise NotImplementedError

    def step(self) -> None:
        """Unscale, clip, step, average, zero: what the case asks for."""
        stack = self.case.options
        with self.torch.no_grad():
            if stack.scale is not None:
                self.torch._foreach_mul_(self.grads, 1 / stack.scale)
            if stack.clip is not None:
                self.torch.nn.utils.clip_grad_norm_(self.tensors, stack.clip, foreach=self.foreach)
            self.optimizer.step()
            if stack.ema is not None:
                self._average(stack.ema)
            if stack.zero_grads:
                self.torch._foreach_zero_(self.grads)

    def _average(self, keep: float) -> None:
        """Follow the parameters as fastopt does: the average starts where the first step arrives."""
        if self._averages is None:
            self._averages = [tensor.detach().clone() for tensor in self.tensors]
        self.torch._foreach_lerp_(self._averages, self.tensors, 1 - keep)

    def slots(self) -> dict[str, list[Array]]:
        found = {}
        for name, (key, factor) in self.names().items():
            state = [self.optimizer.state[tensor].get(key) for tensor in self.tensors]
            if all(each is not None for each in state):
                found[name] = [factor * array_of(each) for each in state]
        return found | ({"average": [array_of(tensor) for tensor in self._averages]} if self._averages else {})

    def names(self) -> dict[str, tuple[str, float]]:
        """fastopt's name of a slot → the optimizer's, and the factor between them."""
        raise NotImplementedError

    def groups(self) -> list[Any]:
        """Return parameters, or groups of them where each has hyper-parameters of its own."""
        if not self.case.groups:
            return list(self.tensors)
        own = [own_of(self.case, k) for k in range(len(self.tensors))]
        return [
            {"params": [tensor], "lr": each["learning_rate"], "weight_decay": each["weight_decay"]}
            for tensor, each in zip(self.tensors, own, strict=True)
        ]


def array_of(tensor: Any) -> Any:
    """Return NumPy's view of a tensor, or the tensor where it lies on a GPU."""
    tensor = tensor.detach()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


class Torch(OnTensors):
    """An optimizer of torch.optim, in one of its three implementations."""

    flags: dict[str, bool] = {}  # noqa: RUF012

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        if case.rule.optimizer not in EQUIVALENTS:
            return f"torch has no {case.rule.optimizer} of the same formula"
        chosen = EQUIVALENTS[case.rule.optimizer]
        return None if chosen.fused or not cls.flags.get("fused") else f"torch's {chosen.name} has no fused form"

    def make(self) -> Any:
        chosen, h = EQUIVALENTS[self.case.rule.optimizer], dict(self.case.rule.hyper)
        betas = {"betas": (h.pop("beta_1"), h.pop("beta_2"))} if "beta_1" in h else {}
        names = RENAMED | chosen.renamed
        arguments = {names.get(name, name): value for name, value in h.items()} | betas | chosen.more
        return getattr(self.torch.optim, chosen.name)(self.groups(), **arguments, **self.flags)

    def names(self) -> dict[str, tuple[str, float]]:
        return EQUIVALENTS[self.case.rule.optimizer].slots


class Fused(Torch):
    """``fused=True``."""

    name = "torch fused"
    flags = {"fused": True}  # noqa: RUF012


class Foreach(Torch):
    """``foreach=True``."""

    name = "torch foreach"
    flags = {"foreach": True}  # noqa: RUF012
    arrays_beside = 1.0


class Compiled(Foreach):
    """``foreach=True``, its step compiled by torch."""

    name = "torch compiled"
    models = "1e6", LARGE
    """One array each: it takes 5 to 8 seconds to compile, and a minute for hundreds of arrays."""

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or (None if shutil.which("g++") else "torch.compile needs a C++ compiler")

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        if case.dtype != "float32":
            return "torch.compile works its bias corrections out in float32"
        if case.rule.optimizer == "AdamW" and case.model in cls.models and case.stack == "plain":
            return super().lacks(case)
        return "compiled for AdamW on one large array only: it takes seconds, with many arrays a minute"

    def make(self) -> Any:
        optimizer = super().make()
        self._compiled = self.torch.compile(optimizer.step)
        return optimizer

    def step(self) -> None:
        with self.torch.no_grad():
            self._compiled()


class Loop(Torch):
    """Neither, which is torch's default on the CPU."""

    name = "torch for-loop"
    flags = {"foreach": False}  # noqa: RUF012
    foreach = False
    arrays_beside = 0.5
