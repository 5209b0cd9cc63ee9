"""The keywords that `fastopt.torch` adds to torch's: checked whenever they are set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..formats import check_compensation, check_masters, check_seed, check_ways
from ..parameters import check_flag, check_number, check_slot_dtype
from ..signatures import FORMAT


class Option:
    """An attribute that refuses, when it is set, what makes no sense alone or beside the other options."""

    def __init__(self, default: Any, check: Callable[[str, Any], None]) -> None:
        self._default, self._check = default, check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, kind: type | None = None) -> Any:
        if optimizer is None:
            return self
        value = self.read(optimizer)
        return MappingProxyType(value) if isinstance(value, dict) else value

    def read(self, optimizer: Any) -> Any:
        """Return the value as it is kept: a dict itself, which can be pickled and is not to be changed."""
        return optimizer.__dict__.get(self._name, self._default)

    def __set__(self, optimizer: Any, value: Any) -> None:
        self._check(self._name, value)
        value = dict(value) if isinstance(value, Mapping) else value
        wanted = {**options_of(optimizer), self._name: value}
        _check_together(wanted)
        optimizer.__dict__.update({self._name: value, "chosen": Chosen(**wanted)})


def _check_limit(name: str, value: Any) -> None:
    if value is None or value == math.inf:
        return
    check_number(name, value, low=0.0)
    if value == 0:
        raise ValueError(f"{name} must be positive, got 0")


def _check_momentum(name: str, value: Any) -> None:
    if value is not None:
        check_number(name, value, 0.0, 1.0, below=True)


def _check_nonfinite(name: str, value: Any) -> None:
    if value not in ("propagate", "skip", "raise"):
        raise ValueError(f'{name} must be "propagate", "skip" or "raise", got {value!r}')


def _check_sparse(name: str, value: Any) -> None:
    if value not in (None, "lazy"):
        raise ValueError(f'{name} must be None or "lazy", got {value!r}')


def _check_together(options: Mapping[str, Any]) -> None:
    check_ways(options)
    if not options["fused_backward"]:
        return
    if options["fused_zero_grad"]:
        raise ValueError("fused_backward=True frees gradients: there are none for fused_zero_grad to zero")
    if options["clip_norm"] is not None or options["nonfinite"] != "propagate":
        raise ValueError(
            "fused_backward=True updates each parameter before the other gradients are known: clip_norm and nonfinite "
            "need all of them; clip_value does not"
        )


class Chosen(NamedTuple):
    """The options of an optimizer, at a time."""

    clip_norm: float | None
    clip_value: float | None
    ema: float | None
    nonfinite: str
    fused_zero_grad: bool
    flat: bool
    fused_backward: bool
    sparse: str | None
    slot_dtype: str | Mapping[str, str | None] | None
    master_weights: str | None
    compensation: str | None
    stochastic_rounding: bool
    seed: int

    @property
    def formats(self) -> tuple[Any, ...]:
        """Those that say how numbers are kept."""
        return tuple(getattr(self, name) for name in FORMAT)


class Options:
    """Has the options as attributes, which can be set between steps. They are described in `base.Fused`."""

    clip_norm = Option(None, _check_limit)
    clip_value = Option(None, _check_limit)
    ema = Option(None, _check_momentum)
    nonfinite = Option("propagate", _check_nonfinite)
    fused_zero_grad = Option(False, check_flag)
    flat = Option(False, check_flag)
    fused_backward = Option(False, check_flag)
    sparse = Option(None, _check_sparse)
    slot_dtype = Option(None, check_slot_dtype)
    master_weights = Option(None, check_masters)
    compensation = Option(None, check_compensation)
    stochastic_rounding = Option(False, check_flag)
    seed = Option(0, check_seed)

    chosen: Chosen
    """All of them; another object whenever one is set."""


OPTIONS = {name: value for name, value in vars(Options).items() if isinstance(value, Option)}
NAMES = tuple(OPTIONS)


def options_of(optimizer: Any) -> dict[str, Any]:
    """Every option's value."""
    return {name: option.read(optimizer) for name, option in OPTIONS.items()}
