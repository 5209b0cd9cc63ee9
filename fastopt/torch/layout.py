"""Where torch's tensors keep what they say: found out by looking at some, so that kernels can look at many at once."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np
import torch

from ..device import HOST
from ..kernels import reader
from ..kernels.tensor_reader import (
    AXES,
    Expected,
    Layout,
    compiled,
    compiled_for_held,
    handle_of,
    handle_of_held,
)
from ..parameters import Array, Parameter
from .memory import local

_WORDS = 22
"""Of 8 bytes, in a tensor's C++ object. What lies behind it is anybody's, and looks like anything now and then."""
_STORAGE_WORDS = 6


@functools.cache
def layout() -> Layout | None:
    """The layout of this torch's tensors; None where it is not as expected: then they are asked one by one."""
    if reader.compiled() is None:
        return None
    with torch.inference_mode(False):
        return _Probe().layout()


class _Probe:
    """Tensors that differ from one another in what is looked for."""

    def __init__(self) -> None:
        memory = np.zeros(4096, np.float64)
        base = torch.from_numpy(memory)
        small = torch.from_numpy(memory.view(np.float32))
        self.double = [base.as_strided((3, 5, 2), (17, 3, 1), start) for start in (7, 11)]
        self.single = [small.as_strided((3, 5, 2), (17, 3, 1), start) for start in (7, 11)]
        self.single += [_new(), _new(7), _new(2, 3, 4, 5, 6)]
        trained = _new(3).requires_grad_()
        (trained * 2).sum().backward()
        self.single += [trained, trained.grad]  # type: ignore[list-item]
        self.plain = [*self.double, *self.single]
        self.integer = [_new(3, dtype=torch.int32), _new(2, 5, dtype=torch.int32)]
        self.half = [_new(3, dtype=torch.float16), _new(2, 5, dtype=torch.float16)]
        self.negated = torch._neg_view(_new(3))

    def layout(self) -> Layout | None:
        """Every offset, if each is found exactly once."""
        tensor = _only(
            [
                offset
                for offset in range(object.__basicsize__, torch.Tensor.__basicsize__, 8)
                if all(_words(id(t) + offset, 1)[0] == t._cdata for t in self.plain)
            ]
        )
        storage = self._find(lambda t: t.untyped_storage()._cdata)
        start = self._find(lambda t: t.storage_offset())
        data = _only(
            [
                8 * k
                for k in range(_STORAGE_WORDS)
                if all(
                    _words(t.untyped_storage()._cdata, _STORAGE_WORDS)[k] == t.untyped_storage().data_ptr()
                    for t in self.plain
                )
            ]
        )
        axes = _only([8 * k for k in range(_WORDS - 2 * AXES) if all(_says_axes(t, k) for t in self.plain)])
        keys = self._find_keys()
        dtype = self._find_dtype()
        if None in (tensor, storage, start, data, axes, keys, dtype):
            return None
        plain = _words(self.plain[0]._cdata + keys, 1)[0]  # type: ignore[operator]
        return Layout(tensor, storage, start, axes, keys, dtype, data, id(torch.Tensor), plain)  # type: ignore[arg-type]

    def _find(self, said: Callable[[Any], int]) -> int | None:
        """Offset of the word that is what each tensor says."""
        return _only([8 * k for k in range(_WORDS) if all(words_of(t)[k] == said(t) for t in self.plain)])

    def _find_keys(self) -> int | None:
        """Offset of the word that all plain tensors have in common, and no negated one."""
        common = words_of(self.plain[0])
        negated = words_of(self.negated)
        return _only(
            [
                8 * k
                for k in range(1, _WORDS)
                if negated[k] != common[k] and all(words_of(t)[k] == common[k] for t in self.plain)
            ]
        )

    def _find_dtype(self) -> int | None:
        """Offset of the 16 bits that are one number in float32 tensors, another in float64 ones, others elsewhere."""
        kinds = (self.single, self.double, self.integer, self.half)
        found = []
        for k in range(4 * _WORDS):
            numbers = [{_halves(t)[k] for t in kind} for kind in kinds]
            if all(len(each) == 1 for each in numbers) and len(set.union(*numbers)) == len(kinds):
                found.append(2 * k)
        return _only(found)


def _new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros, whatever torch's defaults have been set to."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def _says_axes(tensor: torch.Tensor, k: int) -> bool:
    words, axes = words_of(tensor), tensor.ndim
    return (
        words[k] == axes
        and tuple(words[k + 1 : k + 1 + axes]) == tuple(tensor.shape)
        and tuple(words[k + 1 + AXES : k + 1 + AXES + axes]) == tensor.stride()
    )


def words_of(tensor: torch.Tensor) -> list[int]:
    """What a tensor's C++ object begins with."""
    return _words(tensor._cdata, _WORDS)


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


def _halves(tensor: torch.Tensor) -> list[int]:
    return list((ctypes.c_uint16 * (4 * _WORDS)).from_address(tensor._cdata))


def _only(found: list[int]) -> int | None:
    return found[0] if len(found) == 1 else None


class Held:
    """Tensors that are held somewhere, to be recognised by.

    Parameters
    ----------
    values : list
        Tensors; anything else counts as what it is.
    """

    def __init__(self, values: list[Any]) -> None:
        self._values, self._addresses = values, addresses_of(values)
        known = layout() if all(type(value) is torch.Tensor for value in values) else None
        self._find_exchanged = self._find_moved = None
        if known is not None:
            rows = zip(map(id, values), self._addresses, (value.element_size() for value in values), strict=True)
            self._table = np.array(list(rows), np.int64).reshape(-1, 3)
            self._handle = handle_of_held(known, self._table)
            self._find_exchanged, self._find_moved = compiled_for_held()

    def are(self, values: list[Any]) -> bool:
        """Whether these, as many, are the same objects with their memory where it was."""
        if self._find_exchanged is not None:
            return self._find_exchanged(id(values), self._handle) == len(values)
        return all(map(is_, values, self._values)) and addresses_of(values) == self._addresses

    def stayed(self) -> bool:
        """Whether their memory is where it was."""
        if self._find_moved is not None:
            return self._find_moved(self._handle) == len(self._values)
        return addresses_of(self._values) == self._addresses


def addresses_of(values: list[Any]) -> list[int]:
    """Of what is a tensor, the part that lies in this process."""
    return [local(value).data_ptr() for value in values if isinstance(value, torch.Tensor)]


class QuickReader:
    """Reads the gradients' addresses, as long as all is as usual.

    Parameters
    ----------
    known : Layout
    parameters : list of Parameter
    occupied : int64 array [ranges, 2]
        Memory that a step writes to.
    table : int64 array [2, parameters]
        The gradient table.
    """

    def __init__(self, known: Layout, parameters: list[Parameter], occupied: Array, table: Array) -> None:
        expected = [_expected(known, parameter) for parameter in parameters]
        self._kept = np.array(expected, np.int64), np.ascontiguousarray(occupied)
        self._handle = handle_of(known, *self._kept, table)
        self._read = compiled()
        self._count = len(parameters)

    def read(self, tensors: list[Any], grads: list[Any]) -> bool:
        """Whether every parameter is where it was, and every gradient lies as its parameter does, and has been read."""
        return self._read(id(tensors), id(grads), self._handle) == self._count


def _expected(known: Layout, parameter: Parameter) -> list[int]:
    """A row of the table of what is expected."""
    array = parameter.array
    sample = _new(dtype=getattr(torch, array.dtype.name))
    number = ctypes.c_uint16.from_address(sample._cdata + known.dtype).value
    head = Expected(HOST.address(parameter.in_place), number, array.itemsize, array.nbytes, array.ndim)
    if array.ndim > AXES or parameter.origin is not None:
        return [*head._replace(axes=-1), *[0] * (2 * AXES)]
    padding = [0] * (AXES - array.ndim)
    return [*head, *array.shape, *padding, *(stride // array.itemsize for stride in array.strides), *padding]
