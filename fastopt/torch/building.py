"""From a torch optimizer's parameters to the device optimizers that step them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from . import flat
from .cohorts import Cohort, Member, path_of
from .counters import counter_of
from .device_optimizer import DeviceOptimizer
from .memory import DTYPES, check_class, check_memory, device_of, few_threads, is_distributed, is_updatable, local
from .meta import MetaOptimizer
from .rule import Owner
from .several import check_distribution
from .snapshot import Snapshot
from .verdict import is_on_gpu, may_leave_out

AnyOptimizer = DeviceOptimizer | MetaOptimizer

Known = Mapping[Any, Cohort]
"""Parameter → the cohort that it was in."""


def members_of(owner: Owner, params: list[Any], grads: list[Any], known: Known) -> dict[int, Member]:
    """The parameters that are to be stepped, by their number, in cohorts.

    Those that were divided before stay so: what comes without a gradient at one step is likely to do so again.
    """
    places = [(g, k) for g, group in enumerate(owner.param_groups) for k in range(len(group["params"]))]
    cohorts: dict[Any, Cohort] = {}
    return {
        number: member_of(owner, tensor, grad, *places[number], cohorts, known)
        for number, (tensor, grad) in enumerate(zip(params, grads, strict=True))
        if _is_member(owner, tensor, grad, known)
    }


def member_of(owner: Owner, tensor: Any, grad: Any, g: int, k: int, cohorts: dict[Any, Cohort], known: Known) -> Member:
    """Parameter ``k`` of group ``g``; its cohort is one of ``cohorts``, or is added to them."""
    group, state = owner.param_groups[g], dict(owner.state.get(tensor, ()))
    names = owner.rule.counters
    gpu_of = local(tensor) if names == ("step",) and is_on_gpu(local(tensor)) and may_leave_out(owner) else None
    tensors = {name: counter_of(name, state.pop(name, owner.rule.start(name, group)), gpu_of) for name in names}
    counters = {name: float(tensor) for name, tensor in tensors.items()}
    count = owner.rule.count_of({**counters, **state})
    averages = "ema" in state
    key = (
        known.get(tensor),
        device_of(tensor),
        *counters.values(),
        *(tensor.dtype for tensor in tensors.values()),  # each rounds in its own way
        count,
        averages,
        grad is None,
        owner.rule.counted_apart(g),
    )
    cohort = cohorts.get(key) or cohorts.setdefault(key, Cohort(group, counters, count, averages))
    return Member(path_of(group, g, k), tensor, g, state, cohort, tensors)


def _is_member(owner: Owner, tensor: Any, grad: Any, known: Known) -> bool:
    if grad is not None:
        return True
    return bool(owner.state.get(tensor) or tensor in known) and is_updatable(tensor)


class Built(NamedTuple):
    """Device optimizers, and what they were made for."""

    waiting: list[int]  # parameters without an optimizer: they never had a gradient
    optimizers: list[tuple[AnyOptimizer, list[int] | None]]  # with the numbers of their parameters; None: all of them
    cohorts: dict[Any, Cohort]  # of each parameter
    snapshot: Snapshot  # of what they are for
    is_divided: bool  # over devices or processes

    def is_current(self, owner: Owner, params: list[Any], grads: list[Any]) -> bool:
        """Whether these are for what the owner consists of now; reads gradients, if that is quick."""
        if not self.snapshot.matches(owner, params) or any(grads[k] is not None for k in self.waiting):
            return False
        return all(optimizer.is_current(own(grads, numbers)) for optimizer, numbers in self.optimizers)

    def prepare_step(self, grads: list[Any]) -> bool:
        """See `DeviceOptimizer.prepare_step`."""
        return all(optimizer.prepare_step(own(grads, numbers)) for optimizer, numbers in self.optimizers)

    def after_step(self, owner: Owner, params: list[Any]) -> Built:
        """The same for the next step, which finds the state that this one has added."""
        for optimizer, _ in self.optimizers:
            if optimizer.has_recorded:
                return self._replace(snapshot=Snapshot(owner, params, self.cohorts))
        return self

    def check_options(self, owner: Owner) -> None:
        """Refuse options that have been set since, and do not go with what these are for."""
        if self.is_divided:
            tensors = [member.tensor for optimizer, _ in self.optimizers for member in optimizer.members]
            check_distribution(owner, tensors)
            _check_devices(owner, list(dict.fromkeys(map(device_of, tensors))))


def own(grads: list[Any], numbers: list[int] | None) -> list[Any]:
    """Select a device optimizer's gradients by the numbers of its parameters; None: all."""
    return grads if numbers is None else [grads[k] for k in numbers]


@few_threads()
def build(owner: Owner, params: list[Any], grads: list[Any], known: Known) -> Built:
    """Make device optimizers, one per device, for all parameters that have state or a gradient.

    ``known`` are the cohorts of the last build. The optimizer itself stays as it is.
    """
    check_distribution(owner, params)
    members = members_of(owner, params, grads, known)
    check_members(members.values())
    pack(owner, params)
    devices: dict[Any, list[int]] = {}
    for number, member in members.items():
        devices.setdefault(device_of(member.tensor), []).append(number)
    _check_devices(owner, list(devices))
    optimizers = [
        (optimizer_of(owner, [members[k] for k in numbers]), None if len(numbers) == len(params) else numbers)
        for numbers in devices.values()
    ]
    waiting = [k for k in range(len(params)) if k not in members]
    cohorts = {member.tensor: member.cohort for member in members.values()}
    is_divided = len(optimizers) > 1 or any(optimizer.distributed for optimizer, _ in optimizers)
    return Built(waiting, optimizers, cohorts, Snapshot(owner, params, cohorts), is_divided)


def check_members(members: Iterable[Member]) -> None:
    """Refuse parameters without memory, before any is written."""
    for member in members:
        tensor = local(member.tensor).detach()  # under FakeTensorMode, of its class
        (check_class if tensor.is_meta else check_memory)(member.path, tensor)


def optimizer_of(owner: Owner, members: list[Member]) -> AnyOptimizer:
    """Make the optimizer for parameters on one device."""
    return (MetaOptimizer if local(members[0].tensor).is_meta else DeviceOptimizer)(owner, members)


def _check_devices(owner: Owner, devices: list[Any]) -> None:
    if owner.rule.needs_cpu and (elsewhere := [device for device in devices if device.type != "cpu"]):
        raise ValueError(
            f"{type(owner).__name__} steps parameters on the CPU, and there are some on {elsewhere[0]}: under ZeRO set "
            '"offload_optimizer": {"device": "cpu"}, which puts them there, or use another class'
        )
    if len(devices) > 1 and (owner.clip_norm is not None or owner.nonfinite != "propagate"):
        raise ValueError(
            f"clip_norm and nonfinite look at all gradients together, and the parameters are on {devices}: "
            "use an optimizer per device"
        )


def pack(owner: Owner, params: list[Any]) -> None:
    """Move what is trained into flat tensors, if ``flat`` asks for it and it is not there."""
    if owner.flat:
        has_memory = [p for p in params if is_updatable(p) and p.dtype in DTYPES and not p.is_meta]
        flat.pack([p for p in has_memory if p.requires_grad], owner.buffers)


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
