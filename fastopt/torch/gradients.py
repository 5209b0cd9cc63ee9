"""Gradients that are CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from .._torch import rows_of
from ..device import AnyArray, Array
from ..gradients import HostGradients
from ..gradients.rows import find_rows
from ..kernels.cpu.row_tables import Rows
from ..kernels.layout import ADDRESS
from ..parameters import Parameter
from . import reading
from .memory import DTYPES, HALVES, NO_MEMORY, few_threads, in_few_threads, in_numpy

_FAR = 2**40
"""An address that is no offset in a storage at address 0, as none has so many bytes."""


class _Lying(NamedTuple):
    """How a tensor lies in memory. `torch.Tensor.numpy` would say so too, and forbid to resize its storage."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any  # NumPy's, or torch's of 16 bits, which NumPy may not have
    itemsize: int
    size: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Lying:
        """Return how a float tensor lies."""
        itemsize = tensor.element_size()
        strides = tuple(stride * itemsize for stride in tensor.stride())
        dtype = tensor.dtype if tensor.dtype in HALVES else np.dtype(str(tensor.dtype).removeprefix("torch."))
        return cls(tuple(tensor.shape), strides, dtype, itemsize, tensor.numel())


class TensorGradients(HostGradients):
    """Reads tensors.

    torch's fused CPU kernel takes elements in memory order, whatever the strides; here strides are followed.

    Attributes
    ----------
    present : list of int or None
        Numbers of the parameters with a gradient in the step that is to be read; None: all.
    is_read : bool
        Whether `read_quickly` has read them.
    """

    def __init__(self, parameters: list[Parameter], buffer: None, state: list[AnyArray]) -> None:
        super().__init__(parameters, buffer, state)
        self.present: list[int] | None = None
        self.is_read = False
        self._are_sparse = False  # whether some were at the last step
        self._reader = None
        kept = any(parameter.kept_as for parameter in parameters)  # their gradients are staged
        if not (kept or reading.obstacle()):
            self._reader = reading.reader(list(map(_expected, parameters)), found=self.table, occupied=self._occupied)
        self._element_sizes = np.array([parameter.array.itemsize for parameter in parameters], np.int64)

    def read_quickly(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Do the coming `read`, if all gradients lie as their parameters do."""
        # To describe a sparse tensor torch throws an exception, which takes a millisecond.
        if self._are_sparse and any(grad is not None and grad.is_sparse for grad in grads):
            return
        self.is_read = self._reader is not None and self._are_read(tuple(grads))

    def _are_read(self, grads: tuple[Any, ...]) -> bool:
        if self._reader.read(grads) < self._count or any(map(torch.Tensor.is_neg, grads)):  # type: ignore[union-attr]
            return False
        addresses = self.table[ADDRESS]
        if np.minimum.reduce(addresses, initial=_FAR) >= _FAR:
            return True
        offsets = list(map(torch.Tensor.storage_offset, grads))
        return not any(offsets) or not np.any(self._are_nowhere(offsets, self._element_sizes, addresses))

    def _are_nowhere(self, offsets: list[Any], itemsizes: Array, addresses: Any, numbers: Any = ...) -> Array:
        """Which gradients, of parameters with these numbers, have their storage at address 0."""
        return (addresses == offsets * itemsizes) & (self._sizes[numbers] > 0)

    def read(self, grads: Sequence[torch.Tensor | None], zero: bool) -> int:
        """See `BaseGradients.read`: here a list with a tensor or None for each parameter."""
        self._staged.clear()
        self._held = grads
        self._are_sparse = False
        if self.is_read:
            self.is_read = False
            return self._zero_options(grads, self._dense_reach) if zero else 0
        wanted = list(range(self._count)) if self.present is None else self.present
        by_rows = [k for k in wanted if grads[k].layout is torch.sparse_coo]  # type: ignore[union-attr]
        whole = sorted({*wanted}.difference(by_rows)) if by_rows else wanted
        options = self._read_each(grads, whole, zero)
        self.rows = {k: self._read_rows(k, grads[k]) for k in by_rows}
        self._are_sparse = bool(by_rows)
        return self._zero_last([grads[k] for k in whole], options) if by_rows and zero else options

    def _read_rows(self, k: int, grad: Any) -> Rows:
        """Check and find a sparse gradient."""
        parameter = self.parameters[k]
        indices, values = rows_of(grad.detach())
        if grad.sparse_dim() != 1 or tuple(grad.shape) != parameter.array.shape:
            raise ValueError(
                f"the gradient of {parameter.path} has {grad.sparse_dim()} sparse axes and the shape "
                f"{tuple(grad.shape)}: expected rows of {parameter.array.shape}"
            )
        if values.dtype not in DTYPES:
            raise TypeError(f"the gradient of {parameter.path} is {values.dtype}: expected float32 or float64")
        name, found = f"the gradient of {parameter.path}", values.resolve_neg().numpy()
        self._check_apart(name, found)
        return find_rows(name, parameter, indices[0].numpy(), found)

    @few_threads()
    def zero_all(self, grads: Any) -> None:
        """See `BaseGradients.zero_all`."""
        for grad in grads:
            if grad is not None:
                grad.zero_()  # of a sparse one nothing is left

    def zeroing(self) -> list[Callable[[], Any]]:
        """See `BaseGradients.zeroing`."""
        return in_few_threads([partial(torch.Tensor.zero_, grad) for grad in self._staged]) if self._staged else []

    def _signature(self, grad: torch.Tensor) -> object:
        if grad.layout is not torch.strided:
            return None
        return grad.shape, grad.stride(), grad.dtype, grad.is_neg()

    def _examine(self, k: int, grad: torch.Tensor) -> _Lying:
        parameter = self.parameters[k]
        if grad.layout is not torch.strided:
            raise TypeError(
                f"the gradient of {parameter.path} is {grad.layout}: fastopt.torch takes dense ones and those of "
                "nn.Embedding(sparse=True), torch.sparse_coo"
            )
        if grad.dtype not in (*DTYPES, *HALVES) or grad.is_neg():
            raise TypeError(
                f"the gradient of {parameter.path} is {grad.dtype}{', negated lazily' * grad.is_neg()}: expected "
                "float32, float64, bfloat16 or float16 in memory"
            )
        view = _Lying.of(grad)
        if view.shape != parameter.array.shape:
            raise ValueError(
                f"the gradient of {parameter.path} has the shape {view.shape}, the parameter {parameter.array.shape}"
            )
        return view

    def _addresses(self, found: list[torch.Tensor], numbers: list[int]) -> list[int]:
        addresses, offsets = [grad.data_ptr() for grad in found], [grad.storage_offset() for grad in found]
        nowhere = self._are_nowhere(offsets, self._itemsizes[numbers], addresses, numbers)
        for place in np.flatnonzero(nowhere).tolist():
            raise TypeError(f"the gradient of {self.parameters[numbers[place]].path} {NO_MEMORY}")
        return addresses

    def _view(self, grad: torch.Tensor) -> AnyArray:
        return in_numpy(grad)


def present_of(grads: Sequence[torch.Tensor | None]) -> list[int] | None:
    """Numbers of the parameters that have a gradient; None if all have."""
    if type(None) not in set(map(type, grads)):
        return None
    return [k for k, grad in enumerate(grads) if grad is not None]


def _expected(parameter: Parameter) -> reading.Row:
    """A row for gradients that lie as their parameter does."""
    array = parameter.array
    strides = [stride // array.itemsize for stride in array.strides]
    return reading.expected_like(getattr(torch, array.dtype.name), array.shape, strides)
