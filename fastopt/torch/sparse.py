"""Which optimizers take sparse gradients, and which take nothing else."""

from __future__ import annotations

from typing import Any

from .cohorts import Member
from .memory import HALVES
from .rule import Owner


def check_kind(owner: Owner, member: Member, grad: Any, on_gpu: bool) -> None:
    """Refuse a dense gradient where only sparse ones are taken; or a sparse one that the optimizer cannot step.

    Where rows without a gradient would change, too, a sparse one is refused, unless ``owner.sparse`` is "lazy".

    Raises
    ------
    RuntimeError
        If a dense one is refused, as torch does.
    TypeError, ValueError
        If a sparse one is refused.
    """
    if grad is None:
        return
    if grad.is_sparse:
        _check_sparse(owner, member, on_gpu)
    elif owner.rule.needs_sparse:
        raise RuntimeError(f"{_name_of(owner)} does not support dense gradients, please consider Adam instead")


def _check_sparse(owner: Owner, member: Member, on_gpu: bool) -> None:
    if owner.rule.needs_whole or on_gpu:
        why = "it is on a GPU" if on_gpu else f"{_name_of(owner)} looks at whole parameters"
        raise TypeError(
            f"the gradient of {member.path} is sparse, and {why}: build the embedding with sparse=False, or give it "
            "another optimizer"
        )
    if member.tensor.dtype in HALVES or owner.chosen.slot_dtype:
        raise TypeError(
            f"the gradient of {member.path} is sparse, and what is kept in a storage format takes dense ones: build "
            "the embedding with sparse=False, or in float32 and without slot_dtype"
        )
    if owner.chosen.ema is not None:
        raise ValueError(
            f"the gradient of {member.path} is sparse, and ema follows all rows: build the embedding with "
            "sparse=False, or give it an optimizer without ema"
        )
    if owner.chosen.sparse is None and not owner.rule.takes_rows(owner.param_groups[member.group]):
        raise ValueError(
            f"the gradient of {member.path} is sparse, and by momentum, moments or weight decay rows without a "
            'gradient would change, too: pass sparse="lazy" to leave them alone, as torch.optim.SparseAdam does, or '
            "build the embedding with sparse=False"
        )


def _name_of(owner: Owner) -> str:
    return owner.__class__.__name__  # of a weak reference to it, too
