"""The state of bitsandbytes' optimizers, of 8 bits and of 32, as that of torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

WRAPPED = "__bnb_optimizer_quant_state__"
"""Under which newer versions of bitsandbytes save the tensors of a parameter's state, out of FSDP's sight."""

BLOCKS = 256, 2048
"""Numbers that share a scale: since version 0.44, and before."""

OWN = "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3"
"""Hyper-parameters that bitsandbytes has in every group, whatever the optimizer makes of them."""

Group = Mapping[str, Any]


class _Kind(NamedTuple):
    """What torch's class has where bitsandbytes' has ``state1``, ``state2`` and the hyper-parameters ``OWN``."""

    slots: tuple[str, ...]
    counts: bool  # whether it keeps the number of steps
    hyper_parameters: Callable[[Group], dict[str, Any]]


def _of_adam(group: Group) -> dict[str, Any]:
    decay = {"weight_decay": group["weight_decay"], "decoupled_weight_decay": True}
    return {"betas": tuple(group["betas"]), "eps": group["eps"], **decay}


def _of_lion(group: Group) -> dict[str, Any]:
    return {"betas": tuple(group["betas"]), "weight_decay": group["weight_decay"]}


def _of_sgd(group: Group) -> dict[str, Any]:
    return {"momentum": group["betas"][0], "dampening": 0.0, "weight_decay": group["weight_decay"]}


def _of_rmsprop(group: Group) -> dict[str, Any]:
    return {"alpha": group["betas"][0], "eps": group["eps"], "weight_decay": group["weight_decay"]}


def _of_adagrad(group: Group) -> dict[str, Any]:
    own = {"lr_decay": 0.0, "initial_accumulator_value": 0.0}
    return {"eps": group["eps"], "weight_decay": group["weight_decay"], **own}


_ADAM = _Kind(("exp_avg", "exp_avg_sq"), True, _of_adam)
KINDS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Lion": _Kind(("exp_avg",), False, _of_lion),
    "SGD": _Kind(("momentum_buffer",), False, _of_sgd),
    "RMSprop": _Kind(("square_avg",), True, _of_rmsprop),
    "Adagrad": _Kind(("sum",), True, _of_adagrad),
}


@torch.no_grad()
def from_bitsandbytes(state_dict: Mapping[str, Any], kind: str = "AdamW") -> dict[str, Any]:
    """Convert the state of one of bitsandbytes' optimizers to that of torch's class, which ours takes up, too.

    Numbers of 8 bits are decoded to float32: ``load_state_dict`` and the first step store them as ``slot_dtype`` says.
    Hyper-parameters come along, as in any ``load_state_dict``. bitsandbytes' Adam and AdamW are one rule, with
    decoupled weight decay; so it is in both results. The ``dampening`` of its SGD is 0, as its kernels ignore it.

    Parameters
    ----------
    state_dict : dict
        What ``state_dict()`` of a bitsandbytes optimizer returned, of 8 bits by blocks, of 32, paged or not. It stays
        as it is.
    kind : {"AdamW", "Adam", "Lion", "SGD", "RMSprop", "Adagrad"}
        Which optimizer it is of, as the dict does not say.

    Returns
    -------
    dict
        As of ``torch.optim``, for ``load_state_dict`` of that class. Tensors are new, on the devices of the old ones.

    Raises
    ------
    TypeError, ValueError
        If it is no such dict, its state is of another optimizer, or a part of it is missing or does not fit. The
        message names the parameter by its number.

    Notes
    -----
    The format is that of Dettmers et al. 2022, https://arxiv.org/abs/2110.02861: each number is an entry of a map of
    256 (``qmap1``, ``qmap2``) times the largest number of its block (``absmax1``, ``absmax2``).

    Examples
    --------
    >>> optimizer = fastopt.torch.AdamW(model.parameters(), slot_dtype="8bit")  # doctest: +SKIP
    >>> optimizer.load_state_dict(fastopt.torch.from_bitsandbytes(torch.load("optimizer.pt")))  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "expected what state_dict() of a bitsandbytes optimizer returns, a dict with 'state' and 'param_groups', "
            f"got {type(state_dict).__name__}"
        )
    state = {
        number: _state_of(f"state of parameter {number}", own, kind) for number, own in state_dict["state"].items()
    }
    groups = [_group_of(number, group, kind) for number, group in enumerate(state_dict["param_groups"])]
    return {"state": state, "param_groups": groups}


def _group_of(number: int, group: Group, kind: str) -> dict[str, Any]:
    missing = [name for name in ("params", "lr", "betas", "eps", "weight_decay") if name not in group]
    if missing or len(group["betas"]) != 2:
        what = f"lacks {missing[0]!r}" if missing else f"has betas={group['betas']!r}, as of AdEMAMix"
        raise ValueError(f"group {number} {what}: expected a group of bitsandbytes' {kind}")
    kept = {name: value for name, value in group.items() if name not in OWN}
    return {**kept, **KINDS[kind].hyper_parameters(group)}


def _state_of(called: str, own: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a parameter's state under torch's names."""
    slots, counts, _ = KINDS[kind]
    found = {**own, **own.get(WRAPPED, {})}
    if "max1" in found:
        raise ValueError(
            f"{called} is of 8 bits with one scale for all (block_wise=False), and expected are blocks: go on from the "
            "model without its optimizer's state"
        )
    there = [name for name in ("state1", "state2") if found.get(name) is not None]
    if len(there) != len(slots) or "step" not in found:
        raise ValueError(
            f"{called} has {', '.join(map(repr, found)) or 'nothing'}, and that of bitsandbytes' {kind} has 'step', "
            f"{', '.join(repr(f'state{k + 1}') for k in range(len(slots)))}: name its optimizer by kind="
        )
    numbers = {slot: _numbers(called, found, k) for k, slot in enumerate(slots, 1)}
    if len({each.shape for each in numbers.values()}) > 1:
        raise ValueError(f"{called}: state1 and state2 have different shapes, as of AdEMAMix, which has no class here")
    step = torch.tensor(float(found["step"]), dtype=torch.float32)
    return {"step": step, **numbers} if counts else numbers


def _numbers(called: str, found: Mapping[str, Any], k: int) -> torch.Tensor:
    """Return what is kept as ``state1`` or ``state2``, in float32 and memory of its own."""
    name, kept = f"state{k}", found[f"state{k}"]
    if not isinstance(kept, torch.Tensor) or kept.dtype not in (
        torch.uint8,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ):
        raise TypeError(f"{called}: {name} must be a tensor of uint8, or of floating-point numbers in at most 32 bits")
    if not kept.is_contiguous():
        raise ValueError(
            f"{called}: {name} has gaps or another order than C's, in which bitsandbytes' kernels do not read it: make "
            "the model's parameters contiguous, and let bitsandbytes begin anew"
        )
    if kept.dtype is not torch.uint8:
        return kept.to(torch.float32, copy=True)
    codes, entries, scales = kept.flatten(), found.get(f"qmap{k}"), found.get(f"absmax{k}")
    if not isinstance(entries, torch.Tensor) or entries.shape != (256,):
        raise ValueError(f"{called}: {name} is of 8 bits, and expected is a qmap{k} of 256 numbers beside it")
    size = codes.numel()
    blocks = {-(-size // block): block for block in reversed(BLOCKS)}
    if not isinstance(scales, torch.Tensor) or scales.ndim != 1 or len(scales) not in blocks:
        raise ValueError(
            f"{called}: {name} is of 8 bits, and expected is an absmax{k} beside it, a number for each 256 of {size}"
        )
    numbers = entries.float().index_select(0, codes.int())
    numbers *= scales.float().repeat_interleave(blocks[len(scales)])[:size]
    return numbers.reshape(kept.shape)
