"""From a torch optimizer's parameters to the engines that step them."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import flat
from .cohorts import Cohort, Known, Member, members_of
from .engine import Engine
from .memory import device_of, is_distributed, is_updatable, local
from .watch import Watch

if TYPE_CHECKING:
    from .base import Fused


class Built(NamedTuple):
    """Engines, and what they were made for."""

    params: list[Any]
    groups: list[Any]
    waiting: list[int]  # parameters without an engine: they never had a gradient
    engines: list[tuple[Engine, list[int] | None]]  # with the numbers of their parameters; None: all of them
    cohorts: dict[Any, Cohort]  # of each parameter
    seen: Seen  # with which they were last found to be current

    def is_current(self, owner: Fused, params: list[Any], grads: list[Any]) -> bool:
        """Whether these are the engines for what the optimizer consists of now.

        ``params`` are its parameters; this class's own list of them says that `Seen.again` has found nothing new.
        """
        seen_again = params is self.params
        return (
            (
                seen_again
                or (
                    _are_same(params, self.params)
                    and _are_same(owner.param_groups, self.groups)
                    and _are_same(owner.state.values(), self.seen.states)
                )
            )
            and all(grads[k] is None for k in self.waiting)
            and all(engine.is_current(own(grads, numbers), seen_again) for engine, numbers in self.engines)
        )

    def prepare_step(self, grads: list[Any], same_settings: bool) -> bool:
        """See `Engine.prepare_step`."""
        return all(engine.prepare_step(own(grads, numbers), same_settings) for engine, numbers in self.engines)


class Seen:
    """Groups and state of an optimizer at the end of a step, to be recognised at a glance."""

    def __init__(self, owner: Fused) -> None:
        groups, self._state = owner.param_groups, owner.state
        self._groups, self._lists = groups, [group["params"] for group in groups]
        self.states = list(owner.state.values())
        self._structure = Watch([self._state, *self.states], [groups, *self._lists])
        self._settings = Watch(groups)

    def again(self, owner: Fused) -> bool:
        """Whether groups, parameters and state certainly are the same objects; tensors may have changed."""
        return (
            owner.param_groups is self._groups
            and owner.state is self._state
            and self._structure.sees_no_change()
            and (self.same_settings() or _are_same([group["params"] for group in self._groups], self._lists))
        )

    def same_settings(self) -> bool:
        """After `again`: whether hyper-parameters certainly are the same objects, too."""
        return self._settings.sees_no_change()

    def accept_settings(self) -> None:
        """See those that there are now again."""
        self._settings.accept()


def _are_same(found: Any, known: list[Any]) -> bool:
    return len(found) == len(known) and all(map(is_, found, known))


def own(grads: list[Any], numbers: list[int] | None) -> list[Any]:
    """An engine's gradients out of all."""
    return grads if numbers is None else [grads[k] for k in numbers]


def build(owner: Fused, params: list[Any], grads: list[Any], known: Known) -> Built:
    """Make engines, one per device, for all parameters that have state or a gradient.

    ``known`` are the cohorts of the last build. The optimizer itself stays as it is.
    """
    check_distribution(owner, params)
    pack(owner, params)
    members = members_of(owner, params, grads, known)
    devices: dict[Any, list[int]] = {}
    for number, member in members.items():
        devices.setdefault(device_of(member.tensor), []).append(number)
    if len(devices) > 1 and (owner.clip_norm is not None or owner.nonfinite != "propagate"):
        raise ValueError(
            f"clip_norm and nonfinite look at all gradients together, and the parameters are on {list(devices)}: "
            "use an optimizer per device"
        )
    engines = [
        (Engine(owner, [members[k] for k in numbers]), None if len(numbers) == len(params) else numbers)
        for numbers in devices.values()
    ]
    waiting = [k for k in range(len(params)) if k not in members]
    cohorts = {member.tensor: member.cohort for member in members.values()}
    return Built(params, list(owner.param_groups), waiting, engines, cohorts, Seen(owner))


def pack(owner: Fused, params: list[Any]) -> None:
    """With ``flat``, move what is trained into flat tensors, if it is not there."""
    if owner.flat:
        flat.pack([p for p in params if p.requires_grad and is_updatable(p)], owner._buffers)


def check_distribution(owner: Fused, params: list[Any]) -> None:
    """Refuse distributed tensors where whole ones are needed."""
    if not any(map(is_distributed, params)):
        return
    if owner.flat:
        raise TypeError("flat=True cannot move distributed tensors (FSDP2, tensor parallel): leave it out")
    if owner._needs_whole or owner.clip_norm is not None:
        what = type(owner).__name__ if owner._needs_whole else "clip_norm"
        raise TypeError(
            f"{what} needs whole parameters, and these are distributed tensors (FSDP2, tensor parallel), of which "
            "this process has a part: use an elementwise rule, and torch.nn.utils.clip_grad_norm_"
        )


def local_gradient(member: Member, grad: Any) -> torch.Tensor | None:
    """This process's part of a gradient."""
    if grad is None:
        return None
    parameter = member.tensor
    if is_distributed(parameter) != is_distributed(grad) or (
        is_distributed(grad) and tuple(grad.placements) != tuple(parameter.placements)
    ):
        raise ValueError(f"the gradient of {member.path} is not distributed as the parameter is: redistribute it")
    return local(grad)
