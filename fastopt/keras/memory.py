"""Keras's variables as NumPy arrays, in its own memory; for the backends whose variables live there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import keras
import ml_dtypes
import numpy as np

from ..parameters import HALVES, Array
from ._keras import WRITERS, set_value, setting_value, value_of
from .formats import REMAINDER

_Function = TypeVar("_Function", bound=Callable[..., Any])

READABLE = "float32", "float64", *HALVES
"""Dtypes of numbers that kernels read."""

AS_BITS = (*HALVES, REMAINDER)
"""Dtypes of arrays that kernels take as uint16."""

_IN_NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def dtype_name(value: Any) -> str:
    """The dtype of an array or tensor, by its name: torch's have another before theirs."""
    return str(value.dtype).rpartition(".")[2]


def untraced(function: _Function) -> _Function:
    """Decorator: a function that torch.compile calls, but does not look into."""
    if keras.backend.backend() != "torch":
        return function
    import torch

    return torch.compiler.disable(function)


def writes_its_own_way(variable: Any) -> str:
    """Why a variable must be written through its methods: some of them are not Keras's. Empty if they are."""
    own = [
        name
        for name in WRITERS
        if name in vars(variable) or getattr(type(variable), name, None) is not getattr(keras.Variable, name, None)
    ]
    return f"has {', '.join(own)} of its own" if own else ""


class NumpyMemory:
    """The NumPy backend: a variable holds an array, which an assignment replaces."""

    def value(self, variable: Any) -> Any:
        """Return what a variable holds, in the dtype that it says: Keras starts float64 ones in float32."""
        if value_of(variable).dtype.name != variable.dtype:
            variable.assign(value_of(variable))
        return value_of(variable)

    def obstacle(self, value: Any) -> str:
        """Why a value cannot be updated in place; empty if it can."""
        if dtype_name(value) not in (*READABLE, REMAINDER):
            return f"is {value.dtype}"
        return "" if value.flags.c_contiguous and value.flags.writeable else "is not contiguous, or read-only"

    def array(self, value: Any) -> Array:
        """The value as an array that shares its memory; what has 16 bits as uint16."""
        return value.view(np.uint16) if dtype_name(value) in AS_BITS else value

    def place(self, value: Any) -> Hashable:
        """Return where and how a value lies: what changes when its memory is exchanged under it."""
        return value.strides, value.shape

    def gradient(self, value: Any) -> Array:
        """A gradient as an array; a copy only where its kind cannot be read as it lies."""
        array = np.asarray(value)
        return array if dtype_name(array) in READABLE else array.astype(np.float32)

    def number(self, value: Any) -> float:
        """A scalar as a Python number."""
        return value.item() if isinstance(value, (np.ndarray, np.generic)) else float(value)

    def assigning(self, variable: Any, value: Any) -> Callable[[], Any]:
        """Return a C function that gives a variable a value of its shape, to be called later."""
        held = value_of(variable)
        if np.ndim(held):
            return partial(np.ndarray.__setitem__, held, Ellipsis, np.asarray(value))
        return setting_value(variable, np.asarray(value, held.dtype))

    def following(self, variable: Any, numbers: Any) -> Callable[[], Any]:
        """Return a C function that gives a scalar variable the first of an `array.array`'s numbers when called."""
        if not isinstance(value_of(variable), np.ndarray):
            set_value(variable, np.array(value_of(variable)))
        return partial(np.ndarray.__setitem__, value_of(variable), Ellipsis, np.frombuffer(numbers)[:1].reshape(()))

    def quiet(self) -> AbstractContextManager[Any]:
        """Inside, the backend's functions run no Python code, and raise nothing about rounding."""
        return np.errstate(all="ignore")

    def written(self, values: Iterable[Any]) -> None:
        """Note that values are written behind the backend's back."""


class TorchMemory:
    """The torch backend: a variable holds a parameter, which an assignment overwrites and a move exchanges."""

    def __init__(self) -> None:
        import torch

        from .. import _torch

        self._torch, self._internals = torch, _torch

    def value(self, variable: Any) -> Any:
        """See `NumpyMemory.value`: here the parameter is there from the start."""
        return value_of(variable)

    def obstacle(self, value: Any) -> str:
        """See `NumpyMemory.obstacle`."""
        if value.device.type != "cpu":
            return f"is on {value.device}"
        if value.layout is not self._torch.strided or dtype_name(value) not in (*READABLE, REMAINDER):
            return f"is {value.dtype}, {value.layout}"
        return "" if value.is_contiguous() else "is not contiguous"

    def array(self, value: Any) -> Array:
        """See `NumpyMemory.array`."""
        own = value.detach()
        if dtype_name(own) in AS_BITS:
            return own.view(self._torch.int16).numpy().view(np.uint16)
        return own.numpy()

    def place(self, value: Any) -> Hashable:
        """See `NumpyMemory.place`."""
        return value.data_ptr(), value.dtype, value.shape, value.is_contiguous()

    def gradient(self, value: Any) -> Array:
        """See `NumpyMemory.gradient`."""
        if not isinstance(value, self._torch.Tensor):
            value = keras.ops.convert_to_tensor(value)
        value = value.detach()
        if value.layout is not self._torch.strided:
            value = value.to_dense()
        if dtype_name(value) not in READABLE or value.device.type != "cpu":
            value = value.to("cpu", self._torch.float32)
        value = value.resolve_neg()
        if dtype_name(value) in HALVES:
            return value.view(self._torch.int16).numpy().view(_IN_NUMPY[dtype_name(value)])
        return value.numpy()

    def number(self, value: Any) -> float:
        """See `NumpyMemory.number`."""
        return value.item() if isinstance(value, self._torch.Tensor) else float(value)

    def assigning(self, variable: Any, value: Any) -> Callable[[], Any]:
        """See `NumpyMemory.assigning`."""
        held = value_of(variable).detach()
        if isinstance(value, self._torch.Tensor):
            return partial(self._torch.Tensor.copy_, held, value.detach())
        return partial(self._torch.Tensor.fill_, held, value)

    def following(self, variable: Any, numbers: Any) -> Callable[[], Any]:
        """See `NumpyMemory.following`."""
        return partial(
            self._torch.Tensor.copy_,
            value_of(variable).detach(),
            self._torch.from_numpy(np.frombuffer(numbers)[0:1]).reshape(()),
        )

    def quiet(self) -> AbstractContextManager[Any]:
        """See `NumpyMemory.quiet`: modes such as that of `torch.set_default_device` would run some."""
        return self._internals.without_modes()

    def written(self, values: Iterable[Any]) -> None:
        """Have autograd refuse a backward pass through values that it had saved, as after any update in place."""
        self._torch.autograd.graph.increment_version(list(values))


def of_backend() -> NumpyMemory | TorchMemory | None:
    """The memory of Keras's backend; None where variables are not plain memory, or not ours to write to."""
    backend = keras.backend.backend()
    if backend == "torch":
        return TorchMemory()
    return NumpyMemory() if backend == "numpy" else None
