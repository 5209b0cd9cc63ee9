"""torch's optimizers on the CPU: fused, foreach and in a loop over the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...kernels.launch import get_num_threads
from ..cases import Case
from ..memory import Array
from ..problem import Problem
from ..sides import OnArrays, decay_of, multiplier_of
from .base import Peer


class Equivalent(NamedTuple):
    """torch's class for a recipe: its arguments, and factors between its state and fastopt's slots."""

    name: str
    arguments: dict[str, Any]
    slots: dict[str, tuple[str, float]]
    fused: bool = False


def _adam_slots(velocity: str = "exp_avg_sq") -> dict[str, tuple[str, float]]:
    return {"momentum": ("exp_avg", 1.0), "velocity": (velocity, 1.0)}


def _adam(h: dict[str, Any]) -> Equivalent:
    arguments = {"betas": (h["beta_1"], h["beta_2"]), "eps": h["epsilon"], "amsgrad": h["amsgrad"]}
    slots = _adam_slots() | ({"velocity_hat": ("max_exp_avg_sq", 1.0)} if h["amsgrad"] else {})
    if "weight_decay" in h:
        return Equivalent("AdamW", arguments | {"weight_decay": h["weight_decay"]}, slots, fused=True)
    return Equivalent("Adam", arguments, slots, fused=True)


def _sgd(h: dict[str, Any]) -> Equivalent:
    arguments = {"momentum": h["momentum"], "nesterov": h["nesterov"]}
    slots = {"momentum": ("momentum_buffer", -h["learning_rate"])} if h["momentum"] else {}
    return Equivalent("SGD", arguments, slots, fused=True)


def _rmsprop(h: dict[str, Any]) -> Equivalent:
    arguments = {"alpha": h["rho"], "eps": h["epsilon"], "momentum": h["momentum"], "centered": h["centered"]}
    slots = {"velocity": ("square_avg", 1.0)}
    if h["momentum"]:
        slots["momentum"] = ("momentum_buffer", h["learning_rate"])
    if h["centered"]:
        slots["average_gradient"] = ("grad_avg", 1.0)
    return Equivalent("RMSprop", arguments, slots)


def _adagrad(h: dict[str, Any]) -> Equivalent:
    arguments = {"initial_accumulator_value": h["initial_accumulator_value"], "eps": h["epsilon"]}
    return Equivalent("Adagrad", arguments, {"accumulator": ("sum", 1.0)}, fused=True)


def _adadelta(h: dict[str, Any]) -> Equivalent:
    slots = {"accumulated_grad": ("square_avg", 1.0), "accumulated_delta_var": ("acc_delta", 1.0)}
    return Equivalent("Adadelta", {"rho": h["rho"], "eps": h["epsilon"]}, slots)


def _adamax(h: dict[str, Any]) -> Equivalent:
    slots = {"momentum": ("exp_avg", 1.0), "norm": ("exp_inf", 1.0)}
    return Equivalent("Adamax", {"betas": (h["beta_1"], h["beta_2"]), "eps": h["epsilon"]}, slots)


def _nadam(h: dict[str, Any]) -> Equivalent:
    betas = (h["beta_1"], h["beta_2"])
    return Equivalent("NAdam", {"betas": betas, "eps": h["epsilon"], "momentum_decay": 1.0}, _adam_slots())


EQUIVALENTS: dict[str, Callable[[dict[str, Any]], Equivalent]] = {
    "SGD": _sgd,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
    "Adam": _adam,
    "AdamW": _adam,
    "Adamax": _adamax,
    "Nadam": _nadam,
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
        self.tensors = [torch.from_numpy(param).requires_grad_() for param in self._params]
        for tensor, grad in zip(self.tensors, self._grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
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
        """As fastopt's, the average starts where the first step arrives."""
        if self._averages is None:
            self._averages = [tensor.detach().clone() for tensor in self.tensors]
        self.torch._foreach_lerp_(self._averages, self.tensors, 1 - keep)

    def slots(self) -> dict[str, list[Array]]:
        """See `Side`."""
        found = {name: [factor * array for array in self.state(key)] for name, (key, factor) in self.names().items()}
        return found | ({"average": [tensor.numpy() for tensor in self._averages]} if self._averages else {})

    def names(self) -> dict[str, tuple[str, float]]:
        """fastopt's name of a slot → the optimizer's, and the factor between them."""
        raise NotImplementedError

    def state(self, key: str) -> list[Array]:
        """The optimizer's state of one name, of all parameters."""
        return [self.optimizer.state[tensor][key].detach().numpy() for tensor in self.tensors]

    def groups(self) -> list[Any]:
        """Parameters, or groups of them where each has hyper-parameters of its own."""
        if not self.case.groups:
            return list(self.tensors)
        rate = self.case.rule.hyper["learning_rate"]
        return [
            {"params": [tensor], "lr": rate * multiplier_of(k), "weight_decay": decay_of(k)}
            for k, tensor in enumerate(self.tensors)
        ]


class Torch(OnTensors):
    """An optimizer of torch.optim, in one of its three implementations."""

    flags: dict[str, bool] = {}  # noqa: RUF012

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        """See `Peer`."""
        if case.rule.optimizer not in EQUIVALENTS:
            return f"torch has no {case.rule.optimizer} of the same formula"
        if cls.flags.get("fused") and not _equivalent(case).fused:
            return f"torch's {_equivalent(case).name} has no fused form"
        return None

    def make(self) -> Any:
        """See `OnTensors`."""
        chosen = _equivalent(self.case)
        kind = getattr(self.torch.optim, chosen.name)
        return kind(self.groups(), lr=self.case.rule.hyper["learning_rate"], **chosen.arguments, **self.flags)

    def names(self) -> dict[str, tuple[str, float]]:
        """See `OnTensors`."""
        return _equivalent(self.case).slots


def _equivalent(case: Case) -> Equivalent:
    return EQUIVALENTS[case.rule.optimizer](case.rule.hyper)


class Fused(Torch):
    """``fused=True``."""

    name = "torch fused"
    flags = {"fused": True}  # noqa: RUF012


class Foreach(Torch):
    """``foreach=True``."""

    name = "torch foreach"
    flags = {"foreach": True}  # noqa: RUF012
    arrays_beside = 1.0


class Loop(Torch):
    """Neither, which is torch's default on the CPU."""

    name = "torch for-loop"
    flags = {"foreach": False}  # noqa: RUF012
    foreach = False
    arrays_beside = 0.5
