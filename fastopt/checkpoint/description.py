"""What a checkpoint says beside its arrays, as JSON: read with the mistrust that a file deserves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .header import is_shape, parsed

FORMAT = 1
"""Version of what our files hold. Whoever raises it keeps reading the older ones: tests/data has some of each."""

NEEDS = "0.1.0"
"""The first fastopt that reads this version; files say it, for those that are older."""

CODES = {
    "float32": ("F32",),
    "float64": ("F64",),
    "float16": ("F16",),
    "bfloat16": ("BF16",),
    "uint16": ("BF16", "F16"),  # bit patterns, and an override says of what
}
"""Dtypes of parameters: what such arrays are in the file."""


class Told(NamedTuple):
    """What a checkpoint says of a parameter: ``axes`` are those of its memory, slowest first."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[int, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """What its array may be in the file."""
        return CODES[self.dtype]

    def array(self) -> Any:
        """Memory for it.

        Raises
        ------
        ValueError
            If that takes a package that is not there.
        """
        dtype: Any = self.dtype
        if dtype == "bfloat16":
            try:
                from ml_dtypes import bfloat16 as dtype
            except ImportError:
                raise ValueError("its parameters are bfloat16: install ml_dtypes, or pass params") from None
        in_memory = np.zeros([self.shape[axis] for axis in self.axes], dtype)
        return in_memory.transpose(np.argsort(self.axes)) if self.axes else in_memory


class Description(NamedTuple):
    """What a checkpoint says beside its arrays.

    Attributes
    ----------
    optimizer : dict or None
        As of `registry.serialize`; None if it cannot be told, as ``why_not`` says.
    parameters : dict of Told
        By path.
    overrides, excluded, seed
        What the optimizer was built with.
    state : dict
        What `Optimizer.state_dict` has beside arrays.
    params : bool
        Whether the parameters are in the file.
    extra : any
        As of `extra.encoded`.
    """

    optimizer: Any
    why_not: str
    parameters: dict[str, Told]
    overrides: Any
    excluded: Any
    seed: int
    state: dict[str, int | float | str]
    params: bool
    extra: Any


def described(text: str) -> Description:
    """Read and check what a file says.

    Raises
    ------
    ValueError
        If it makes no sense, or is of a newer version.
    """
    told = parsed(text)
    version = told.pop("format", None)
    if type(version) is not int or version < 1:
        raise ValueError("it does not say which version of fastopt's checkpoints it is")
    if version > FORMAT:
        needs = str(told.get("needs"))[:40]
        raise ValueError(
            f"it is of a newer version, {version}, than this fastopt reads: install fastopt {needs} or newer"
        )
    told.pop("needs", None)
    told.pop("fastopt", None)
    if told.keys() != set(Description._fields):
        raise ValueError("its description is not complete")
    parameters = _parameters(told.pop("parameters"))
    found = Description(parameters=parameters, **told)
    numbers = found.state.items() if isinstance(found.state, dict) else [("", None)]
    if not (
        all(type(value) in (int, float, str) and "/" not in name for name, value in numbers)
        and all(math.isfinite(value) for _, value in numbers if type(value) is float)
        and type(found.seed) is int
        and type(found.params) is bool
        and isinstance(found.why_not, str)
        and isinstance(found.optimizer, dict | None)
        and isinstance(found.overrides, dict | None)
    ):
        raise ValueError("its description makes no sense")
    return found


def _parameters(listed: Any) -> dict[str, Told]:
    found: dict[str, Told] = {}
    for each in listed if isinstance(listed, list) else [None]:
        if not (isinstance(each, dict) and each.keys() == {"path", *Told._fields}):
            raise ValueError("its description says nonsense of parameters")
        path, shape, dtype, axes = each["path"], each["shape"], each["dtype"], each["axes"]
        if not (
            isinstance(path, str)
            and path not in found
            and is_shape(shape)
            and isinstance(dtype, str)
            and dtype in CODES
            and isinstance(axes, list)
            and all(type(axis) is int for axis in axes)
            and sorted(axes) == list(range(len(shape)))
        ):
            raise ValueError(f"its description says nonsense of the parameter {str(path)[:200]!r}")
        found[path] = Told(tuple(shape), dtype, tuple(axes))
    return found
