"""How Keras's variables keep parameters and state: see `fastopt.formats`.

A slot has the dtype of its variable, as Keras makes it, unless ``slot_dtype`` says otherwise, and so has a moving
average; those of 16 bits are rounded at random. But slots of float16 variables are in float32: squares of gradients are
mostly less than float16 holds, and what is divided by their root then is of any size. Sums of gradients
(``gradient_accumulation_steps``) are in float32, too. What is kept beside a variable of 16 bits, its ``master``,
``remainder`` or ``compensation``, is a variable of the optimizer's as well, so that it is saved with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats import AVERAGE, beside, check_options, format_of_parameter, said
from ..kernels.cpu.engines import takes_formats
from ..optimizer import Optimizer
from ..parameters import HALVES, Parameter, kept_as
from ..plan import ACCUMULATOR_SLOT
from ..signatures import FORMAT

DTYPES = "float32", *HALVES
"""Those that ``slot_dtype`` may name."""

REMAINDER = "int16"
"""Dtype of variables that hold bit patterns: Keras's torch backend makes int32 of uint16."""


@dataclass(frozen=True)
class FormatOptions:
    """What an optimizer was told of formats; the arguments are those of all fastopt optimizers.

    Raises
    ------
    ValueError
        If they make no sense, or Keras's variables cannot hold what they ask for.
    """

    slot_dtype: str | Mapping[str, str] | None = None
    master_weights: str | None = None
    compensation: str | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    use_ema: bool = False  # whether there is a moving average

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.slot_dtype, Mapping):
            object.__setattr__(self, "slot_dtype", dict(self.slot_dtype))
        for kind in self._kinds():
            if kind not in (None, *DTYPES):
                raise ValueError(
                    f"slot_dtype: Keras's variables hold a number for each element, and {kind!r} is more than that: "
                    f"choose {', '.join(map(repr, DTYPES))}, or the same optimizer of fastopt"
                )

    def _kinds(self) -> list[Any]:
        chosen = self.slot_dtype
        return list(chosen.values()) if isinstance(chosen, Mapping) else [chosen]

    @property
    def said(self) -> dict[str, Any]:
        """Those that are not as by default."""
        return said(self)

    @property
    def needed(self) -> list[str]:
        """What no update but the fused one does, as it was written."""
        return [f"{name}={value!r}" for name, value in self.said.items() if name != "seed"]

    def tell(self, core: Optimizer) -> None:
        """Have fastopt's optimizer keep parameters so; slots are as Keras's variables are, see `settings_of`."""
        for name in FORMAT:
            setattr(core, name, getattr(self, name))
        core.slot_dtype = None

    def dtype_of(self, name: str | None, dtype: str) -> str:
        """The dtype of a variable of state, by the name of its slot, where the parameter has ``dtype``."""
        if name == ACCUMULATOR_SLOT:
            return "float32" if dtype in HALVES else dtype
        chosen = self.slot_dtype
        if isinstance(chosen, Mapping):
            chosen = chosen.get(name or "")
        elif name == AVERAGE:
            chosen = None
        usual = "float32" if dtype == "float16" and name != AVERAGE else dtype
        return chosen or usual

    def beside(self, parameter: Parameter) -> dict[str, str]:
        """The dtype, by name, of the variable that is kept beside a parameter, if there is one."""
        kind = format_of_parameter(self, parameter)
        dtypes = {"master": "float32", "split": REMAINDER, "kahan": parameter.kept_as}
        return {name: dtypes[kind.rpartition(" ")[2]] for name in beside({"": kind})} if kind else {}

    def settings_of(self, core: Optimizer, parameter: Parameter) -> dict[str, Any]:
        """What is to be said to fastopt's optimizer of a parameter's state: ``slot_dtype``, if not all is usual.

        Raises
        ------
        TypeError, ValueError
            If the optimizer's rule keeps nothing in 16 bits, or there is no slot of a name.
        """
        scalars = type(core._scalars(core._branch(parameter), 1.0, 1))
        slots = [*core._slots_of(scalars), *([AVERAGE] if core.use_ema else [])]
        unknown = self.slot_dtype.keys() - {*slots, AVERAGE} if isinstance(self.slot_dtype, Mapping) else ()
        if unknown:
            raise ValueError(f"slot_dtype: there is no slot {min(unknown)!r}: the slots are {', '.join(slots)}")
        own = dtype_of(parameter)
        found = {name: self.dtype_of(name, own) for name in slots}
        found = {name: dtype for name, dtype in found.items() if dtype != parameter.dtype.name}
        if (found or parameter.kept_as) and not takes_formats(scalars):
            what = f"is {own}" if parameter.kept_as else f"was given slot_dtype={self.slot_dtype!r}"
            way = f'use the dtype policy "mixed_{own}"' if parameter.kept_as else "leave slot_dtype out"
            raise TypeError(
                f"{parameter.path} {what}, and {type(core).__name__} keeps parameters and state in float32 or "
                f"float64: {way}"
            )
        self.beside(parameter)
        return {"slot_dtype": found} if found else {}


class Told:
    """One of the arguments, as an attribute of the optimizer that was told it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else getattr(optimizer._formats, self._name)

    def __set__(self, optimizer: Any, value: Any) -> None:
        raise AttributeError(
            f"{self._name} says how state is made, and cannot be set later: give it to {type(optimizer).__name__}(...)"
        )


def dtype_of(parameter: Parameter) -> str:
    """The dtype of the variable that a parameter is."""
    return parameter.kept_as or parameter.array.dtype.name


def outline(variable: Any) -> Parameter:
    """A parameter like a variable, without its memory: what formats depend on."""
    kind = kept_as(variable)
    one = np.zeros((), np.uint16 if kind else variable.dtype)
    array = np.broadcast_to(one, variable.shape)
    return Parameter(variable.path, array, tuple(range(array.ndim)), True, 1.0, {}, kept_as=kind)
