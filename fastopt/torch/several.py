"""Models that several processes train: what would have these part, and is refused."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch

from .distributed import check_agreement, goes_by_all
from .memory import is_distributed
from .rule import Owner


def check_distribution(owner: Owner, params: list[Any]) -> None:
    """Refuse parts of parameters, or of all parameters, where they do not do."""
    check_parts(owner, params)
    if not any(map(is_distributed, params)):
        return
    if owner.flat:
        raise TypeError("flat=True cannot move distributed tensors (FSDP2, tensor parallel): leave it out")
    if owner.rule.needs_whole:
        raise TypeError(
            f"{type(owner).__name__} needs whole parameters, and these are distributed tensors (FSDP2, tensor "
            "parallel), of which this process has a part: use an elementwise rule"
        )
    check_agreement(owner, params)


def has_processes() -> bool:
    """Whether `torch.distributed` has been initialised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def check_parts(owner: Owner, params: list[Any]) -> None:
    """Refuse to go by all gradients where this process has some of them, and nothing tells which others have the rest.

    Raises
    ------
    RuntimeError
        If the optimizer is that of a ZeroRedundancyOptimizer, or the model a FullyShardedDataParallel.
    """
    if not (goes_by_all(owner) and has_processes() and torch.distributed.get_world_size() > 1):
        return
    what = "clip_norm" if owner.clip_norm is not None else f"nonfinite={owner.nonfinite!r}"
    check_zero(
        owner, f"{what} would see the gradients of", "call torch.nn.utils.clip_grad_norm_ of all of them before step()"
    )
    fsdp = sys.modules.get("torch.distributed.fsdp")
    own = set(map(id, params))
    if fsdp and any(not own.isdisjoint(_ids_in(each, True)) for each in _modules(fsdp.FullyShardedDataParallel)):
        raise RuntimeError(
            f"{what} would see this process's part of the gradients of FullyShardedDataParallel: call "
            "model.clip_grad_norm_(limit) before step(), or shard the model by torch.distributed.fsdp.fully_shard"
        )


def check_zero(owner: Owner, what: str, way_out: str) -> None:
    """Refuse what takes all parameters to an optimizer that ZeroRedundancyOptimizer has made for some of them.

    Raises
    ------
    RuntimeError
        If there are other processes.
    """
    zero = sys.modules.get("torch.distributed.optim")
    if not (zero and has_processes() and torch.distributed.get_world_size() > 1):
        return
    if any(vars(each).get("optim") is owner for each in _modules(zero.ZeroRedundancyOptimizer)):
        raise RuntimeError(
            f"{what} those parameters alone that ZeroRedundancyOptimizer has this process step: {way_out}, or shard "
            "the model by torch.distributed.fsdp.fully_shard"
        )


def check_reduction(params: list[Any]) -> None:
    """Refuse to step during ``backward`` parameters whose gradients are reduced over processes after that.

    Raises
    ------
    RuntimeError
        If one belongs to a DistributedDataParallel or FullyShardedDataParallel module.
    """
    if not has_processes():
        return
    fsdp = sys.modules.get(
        "torch.distributed.fsdp"
    )  # which takes seconds to import, and must have been for its modules
    kinds = (torch.nn.parallel.DistributedDataParallel, *((fsdp.FullyShardedDataParallel,) if fsdp else ()))
    own = set(map(id, params))
    for wrapper in _modules(kinds):
        if not own.isdisjoint(_ids_in(wrapper, recurse=True)):
            raise RuntimeError(later_reduction(type(wrapper).__name__))


def later_reduction(wrapper: str) -> str:
    """The message of a step that came too early."""
    return (
        f"fused_backward=True steps with each process's own gradients, before {wrapper} has reduced them over the "
        "processes, and these would train apart: leave fused_backward out, or shard the model by "
        "torch.distributed.fsdp.fully_shard, which reduces first"
    )


RESHARD = "model.reshard() before {}, or make it by fully_shard(model, reshard_after_forward=True)"


def check_sharded(params: list[Any], way_out: str) -> list[Any]:
    """Refuse to write to parameters of FSDP2 whose modules would not notice; the modules of FSDP2 that have some.

    Each forward has the processes gather parameters in the place of those that the optimizer has. The outermost module
    keeps what it has gathered until a ``backward``, or `torch.distributed.fsdp.FSDPModule.reshard`.

    Raises
    ------
    RuntimeError
        With a way out.
    """
    fsdp, own = sys.modules.get("torch.distributed.fsdp"), set(map(id, filter(is_distributed, params)))
    if not (fsdp and own):
        return []
    modules, left = _modules(torch.nn.Module), set(own)
    sharded = [module for module in modules if isinstance(module, fsdp.FSDPModule)]
    if sharded:
        for module in modules:
            left.difference_update(_ids_in(module, recurse=False))
        if left:
            raise RuntimeError(
                "the model uses weights that FSDP2 has gathered in a forward pass, and would not notice others: call "
                + way_out
            )
    return [module for module in sharded if not own.isdisjoint(_ids_in(module, recurse=True))]


def _modules(kinds: type | tuple[type, ...]) -> list[Any]:
    """Those that the process has; no parameter tells in which it is."""
    return [each for each in gc.get_objects() if issubclass(type(each), kinds)]


def _ids_in(module: Any, recurse: bool) -> list[int]:
    """Return the ids of a module's parameters; it has none while it is being made."""
    try:
        return list(map(id, module.parameters(recurse=recurse)))
    except AttributeError:
        return []
