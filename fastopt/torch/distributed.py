"""What the processes that hold distributed tensors decide together: by the gradients of all of them, and alike."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from ..steps.host import ELSEWHERE
from .memory import device_of, is_distributed
from .rule import Owner

Kind = tuple[Any, tuple[int, ...]]
"""How a parameter is spread: its mesh, and the dimensions of the mesh over which it is divided."""

WHOLE: Kind = (None, ())
"""Of parameters that every process has whole."""


def kind_of(tensor: Any) -> Kind:
    """Return how a parameter is spread."""
    if not is_distributed(tensor):
        return WHOLE
    divided = tuple(dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return (tensor.device_mesh, divided) if divided else WHOLE


def add_up_parts(params: list[Any]) -> None:
    """Have gradients of which each process has a summand, as of norms under sequence parallelism, be the sums."""
    for p in params:
        grad = p.grad
        if is_distributed(grad) and any(placement.is_partial() for placement in grad.placements) and is_distributed(p):
            p.grad = grad.redistribute(p.device_mesh, p.placements)


class _Round(NamedTuple):
    """One exchange, along a dimension of a mesh."""

    group: Any  # the process group
    size: int
    summed: (
        Any  # bool array [kinds + 1]: whether numbers of a kind are parts of a sum; else they are the same everywhere
    )


class Agreement:
    """Adds up what processes have found of their parts of gradients: the same bits in all of them.

    The groups are those that the parameters' meshes name. In each, a vector of float64 is gathered: the sum of squares
    of the parameters of each kind, and whether all are finite. Of what is divided over the group the numbers are added
    in the order of ranks; of what every process has, the greatest is taken.

    Parameters
    ----------
    params : list
        All of an optimizer's, in every process as many and spread alike.
    """

    def __init__(self, params: list[Any]) -> None:
        spread = list(dict.fromkeys(p.device_mesh for p in params if is_distributed(p)))
        self.kinds: list[Kind] = list(dict.fromkeys([WHOLE, *map(kind_of, params)]))
        self._rounds: list[_Round] = []
        groups: dict[tuple[int, ...], Any] = {}
        for mesh in spread:
            if _is_in(mesh):
                for dim in range(mesh.ndim):
                    groups.setdefault(_ranks(mesh, dim), mesh.get_group(dim))
        for ranks, group in groups.items():
            if len(ranks) > 1:
                summed = [_is_divided(kind, ranks) for kind in self.kinds]
                self._rounds.append(_Round(group, len(ranks), np.array([*summed, False])))

    def agree(self, found: list[tuple[float, bool]], kinds: list[Kind]) -> tuple[float, bool]:
        """Return the sum of the squares of all gradients, and whether all are finite.

        Parameters
        ----------
        found : list of (float, bool)
            The same of parts of this process's gradients,
        kinds : list of Kind
            and how the parameters of each are spread.
        """
        numbers = np.zeros(len(self.kinds) + 1)
        for (squares, finite), kind in zip(found, kinds, strict=True):
            numbers[self.kinds.index(kind)] += squares
            numbers[-1] += not finite
        for each in self._rounds:
            rows = _gathered(numbers, each)
            numbers = np.where(each.summed, rows.sum(0), rows.max(0))
        return float(numbers[:-1].sum()), numbers[-1] == 0

    def is_any(self, found: bool) -> bool:
        """Whether one of the processes has found something."""
        return not self.agree([(0.0, not found)], [WHOLE])[1]


def _is_divided(kind: Kind, ranks: tuple[int, ...]) -> bool:
    """Whether parameters are divided over a group."""
    mesh, dims = kind
    return any(_ranks(mesh, dim) == ranks for dim in dims if _is_in(mesh))


def _is_in(mesh: Any) -> bool:
    """Whether this process is one of a mesh."""
    return mesh.get_coordinate() is not None


def _ranks(mesh: Any, dim: int) -> tuple[int, ...]:
    """The processes with which this one shares a group of a mesh it is in."""
    return tuple(torch.distributed.get_process_group_ranks(mesh.get_group(dim)))


def _gathered(numbers: Any, each: _Round) -> Any:
    """The vectors of all processes of a group, float64 [processes, numbers], in the order of ranks."""
    rows = torch.empty(each.size, len(numbers), dtype=torch.float64)
    torch.distributed.all_gather(list(rows.unbind()), torch.from_numpy(numbers), group=each.group)
    return rows.numpy()


def agreement_of(owner: Owner) -> Agreement | None:
    """Return what the owner's processes agree by; None where each has all parameters, and nothing is sent."""
    params = [p for group in owner.param_groups for p in group["params"]]
    return Agreement(params) if any(map(is_distributed, params)) else None


def goes_by_all(owner: Owner) -> bool:
    """Whether steps go by all gradients together."""
    return owner.clip_norm is not None or owner.nonfinite != "propagate"


def is_found_anywhere(owner: Owner, found: bool) -> bool:
    """Whether a scaler has found a gradient that is not finite, here or in a process with other parts of it."""
    agreement = agreement_of(owner)
    return found if agreement is None else agreement.is_any(found)


def goes_on_without_gradients(owner: Owner) -> bool:
    """Whether the step of a process that has no gradient is done where others have some.

    Raises
    ------
    FloatingPointError
        If one of these is not finite and ``nonfinite="raise"``.
    """
    agreement = agreement_of(owner) if goes_by_all(owner) else None
    if agreement is None:
        return True
    squares, finite = agreement.agree([], [])
    finite = finite and (owner.clip_norm is None or math.isfinite(squares))
    if owner.nonfinite == "raise" and not finite:
        raise FloatingPointError(ELSEWHERE)
    return finite or owner.nonfinite == "propagate"


def check_agreement(owner: Owner, params: list[Any]) -> None:
    """Refuse to decide by gradients that no process group can be asked about.

    Raises
    ------
    TypeError
        If they are on a GPU, are summands, or processes have no way to send what is on a CPU.
    """
    spread = [p for p in params if is_distributed(p)]
    if not (spread and goes_by_all(owner)):
        return
    what = "clip_norm" if owner.clip_norm is not None else f"nonfinite={owner.nonfinite!r}"
    if any(device_of(p).type == "cuda" for p in spread):
        raise TypeError(
            f"{what} sees this process's part of distributed tensors (FSDP2, tensor parallel) on a GPU: there use "
            "torch.nn.utils.clip_grad_norm_, and step only where the norm that it returns is finite"
        )
    if any(placement.is_partial() for p in spread for placement in p.placements):
        raise TypeError(
            f"{what} takes parameters that are divided or replicated, and one is the sum of its parts (Partial): "
            "redistribute it"
        )
    for mesh in dict.fromkeys(p.device_mesh for p in spread):
        for dim in range(mesh.ndim) if _is_in(mesh) else ():
            if "cpu" not in torch.distributed.get_backend_config(mesh.get_group(dim)):
                raise TypeError(
                    f"{what} has the processes exchange numbers on the CPU, which their group cannot: start it by "
                    'torch.distributed.init_process_group("cpu:gloo,cuda:nccl")'
                )
