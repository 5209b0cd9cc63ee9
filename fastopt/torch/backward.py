"""Steps during ``backward``: each parameter is updated when its gradient is complete, and the gradient freed."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from .._torch import found_inf_of, scale_of
from ..kernels.locks import Lock
from ..steps.alone import alone
from .arrivals import Arrivals
from .building import AnyOptimizer, check_members, local_gradient, member_of, optimizer_of, pack
from .cohorts import Cohort
from .memory import few_threads
from .rule import Owner
from .several import check_distribution, check_reduction, has_processes, later_reduction
from .snapshot import Contents
from .versions import note_writing


class _Single(NamedTuple):
    """The optimizer of one parameter, and what it was made for."""

    optimizer: AnyOptimizer
    contents: Contents  # of its state
    group: dict[str, Any]
    cohort: Cohort
    place: tuple[int, int]
    stepping: Lock


class BackwardSteps:
    """What ``fused_backward=True`` adds to an optimizer.

    Parameters
    ----------
    owner : Owner
        Referred to weakly: hooks on parameters outlive it.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner: Any = weakref.proxy(owner)
        self._reference = weakref.ref(owner)
        self._hooked: set[int] = set()
        self._singles: dict[Any, _Single] = {}
        self._places: dict[Any, tuple[int, int]] = {}
        self._stepped: set[int] = set()  # since `finish`
        self._arrivals = Arrivals()

    def forget(self) -> None:
        """Let go of optimizers: state was exchanged."""
        self._singles, self._places = {}, {}

    def await_gradients(self) -> None:
        """Have each parameter that is trained call back when its gradient is complete."""
        reference: Any = self._reference

        def arrived(parameter: torch.Tensor) -> None:
            owner = reference()
            if owner is not None and owner.fused_backward:
                owner._backward.step_early(parameter)

        for p in self._params():
            if p.requires_grad and id(p) not in self._hooked:
                self._hooked.add(id(p))
                p.register_post_accumulate_grad_hook(arrived)

    @torch.compiler.disable
    def step_early(self, parameter: torch.Tensor) -> None:
        """`step` during ``backward``, unless gradients are reduced after that, or not complete yet."""
        if not self._singles:
            check_reduction(self._params())
        if self._arrivals.waits(id(parameter)):
            return
        self.step(parameter)
        self._stepped.add(id(parameter))

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, parameter: torch.Tensor) -> None:
        """Step a parameter whose gradient is complete, and free the gradient; one that is in no group stays."""
        owner = self._owner
        place = self._place_of(parameter)
        if place is None:
            return
        owner._check_ready()
        single = self._singles.get(parameter)
        if single is None or not self._prepare(single, parameter, place):
            single = self._build(parameter, *place)
            single.optimizer.is_current([parameter.grad])
            single.optimizer.prepare_step(_own_gradient(single, parameter))
        optimizer = single.optimizer
        with alone(single.stepping):
            optimizer.run(_own_gradient(single, parameter), False)
        note_writing([parameter])
        parameter.grad = None
        if optimizer.has_recorded:
            single = single._replace(contents=_contents(owner, parameter))
        self._singles[parameter] = single

    def finish(self) -> None:
        """Step what still has a gradient: parameters that were frozen when hooks were last placed, shared by segments.

        Raises
        ------
        RuntimeError
            If the gradients that were stepped with were scaled, or not reduced yet over processes.
        """
        owner = self._owner
        if found_inf_of(owner) is not None or scale_of(owner) is not None:
            raise RuntimeError(
                "fused_backward=True has updated the parameters during backward, with scaled gradients: use it without "
                "a GradScaler, or the scaler without fused_backward"
            )
        self.await_gradients()
        self._arrivals.end()
        left = [p for p in self._params() if p.grad is not None]
        stepped, self._stepped = self._stepped, set()
        if has_processes() and not stepped.isdisjoint(map(id, left)):
            raise RuntimeError(later_reduction("DistributedDataParallel"))
        for p in left:
            self.step(p)

    def _params(self) -> list[Any]:
        return [p for group in self._owner.param_groups for p in group["params"]]

    def _prepare(self, single: _Single, parameter: Any, place: tuple[int, int]) -> bool:
        """Whether the optimizer fits what there is now, and is ready to run."""
        owner, optimizer = self._owner, single.optimizer
        return (
            single.place == place
            and owner.param_groups[place[0]] is single.group
            and single.contents.are_in((owner.state.get(parameter, {}),))
            and optimizer.is_current([parameter.grad])
            and optimizer.prepare_step(_own_gradient(single, parameter))
        )

    @few_threads()
    def _build(self, parameter: Any, g: int, k: int) -> _Single:
        owner = self._owner
        check_distribution(owner, [parameter])
        member = member_of(owner, parameter, parameter.grad, g, k, {}, {})
        check_members([member])
        pack(owner, self._params())
        contents = _contents(owner, parameter)
        return _Single(optimizer_of(owner, [member]), contents, owner.param_groups[g], member.cohort, (g, k), Lock())

    def _place_of(self, parameter: Any) -> tuple[int, int] | None:
        """Number of the group, and number in it."""
        groups = self._owner.param_groups
        place = self._places.get(parameter)
        if place is not None and place[0] < len(groups):
            params = groups[place[0]]["params"]
            if place[1] < len(params) and params[place[1]] is parameter:
                return place
        self._places = {p: (g, k) for g, group in enumerate(groups) for k, p in enumerate(group["params"])}
        return self._places.get(parameter)


def _contents(owner: Owner, parameter: Any) -> Contents:
    return Contents([owner.state.get(parameter, {})], [0])


def _own_gradient(single: _Single, parameter: Any) -> list[Any]:
    if not single.optimizer.distributed:
        return [parameter.grad]
    (member,) = single.optimizer.members
    return [local_gradient(member, parameter.grad)]
