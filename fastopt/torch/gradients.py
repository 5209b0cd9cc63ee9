"""Gradients that are CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..device import AnyArray
from ..device.strides import byte_range
from ..gradients import BaseGradients
from ..kernels.layout import ADDRESS, DIRECT, LAYOUT, STAGED, ZERO
from ..parameters import Parameter
from .layout import QuickReader, layout
from .memory import NO_MEMORY, few_threads, in_few_threads


class _Lying(NamedTuple):
    """How a tensor lies in memory. `torch.Tensor.numpy` would say so too, and forbid to resize its storage."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    itemsize: int
    size: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Lying:
        """That of a float tensor."""
        itemsize = tensor.element_size()
        strides = tuple(stride * itemsize for stride in tensor.stride())
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        return cls(tuple(tensor.shape), strides, dtype, itemsize, tensor.numel())


class TensorGradients(BaseGradients):
    """Reads tensors: those that differ in nothing but their address from the last step's are not looked at again.

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
        self._known: list[Any] = [None] * self._count  # signatures of what was examined last
        self._zeroes = False  # whether it was examined for zeroing
        self._dense_sizes = np.array([parameter.array.nbytes for parameter in parameters], np.int64)
        self._sizes = self._dense_sizes.copy()  # bytes that each gradient reaches over
        self._itemsizes = np.zeros_like(self._sizes)
        self._ends, self._starts_occupied = self._occupied[:, 1].copy(), self._occupied[:, 0].copy()
        known = layout()
        self._quick = QuickReader(known, parameters, self._occupied, self.table) if known is not None else None
        self.is_read = False

    def read_quickly(self, tensors: list[torch.Tensor], grads: list[Any]) -> bool:
        """Do the coming `read`, if all is as usual: tensors where they were, gradients laid out as they are."""
        self.is_read = self._quick is not None and self._quick.read(tensors, grads)
        return self.is_read

    def read(self, grads: Sequence[torch.Tensor | None], zero: bool) -> int:
        """See `BaseGradients.read`: here a list with a tensor or None for each parameter."""
        self._staged.clear()
        self._held = grads
        if self.is_read:
            self.is_read, self._known = False, [None] * self._count
            self.table[LAYOUT], self._sizes[:] = DIRECT, self._dense_sizes
            return self._zero_option(grads, True) if zero else 0
        present = list(range(self._count)) if self.present is None else self.present
        found: Any = [grads[k] for k in present]
        self._examine_all(found, present, zero)
        addresses = self.table[ADDRESS]
        addresses[:] = 0
        addresses[present] = [grad.data_ptr() for grad in found]
        self._check_memory(found, present)
        self._check_overlaps(grads, zero)
        staged = STAGED if np.any(self.table[LAYOUT, present] != DIRECT) else 0
        return staged | (self._zero_option(grads) if zero else 0)

    @few_threads()
    def zero_all(self, grads: Any) -> None:
        """See `BaseGradients.zero_all`."""
        for grad in grads:
            if grad is not None:
                grad.zero_()

    def zeroing(self) -> list[Callable[[], Any]]:
        """See `BaseGradients.zeroing`."""
        return in_few_threads([partial(torch.Tensor.zero_, grad) for grad in self._staged])

    def _examine_all(self, found: list[torch.Tensor], numbers: list[int], zero: bool) -> None:
        """Look at those gradients that differ from the last ones."""
        if zero != self._zeroes:
            self._zeroes, self._known = zero, [None] * self._count
        signatures = [_signature(grad) for grad in found]
        for k, grad, signature in zip(numbers, found, signatures, strict=True):
            if signature is None or signature != self._known[k]:
                self._known[k] = None
                self._examine(k, grad, zero)
                self._known[k] = signature

    def _examine(self, k: int, grad: torch.Tensor, zero: bool) -> None:
        """Check one gradient, and note its layout."""
        parameter = self.parameters[k]
        if grad.layout is not torch.strided:
            raise TypeError(
                f"the gradient of {parameter.path} is {grad.layout}: fastopt.torch takes dense gradients; build the "
                "embedding with sparse=False, or leave it to torch.optim.SparseAdam"
            )
        if grad.dtype not in (torch.float32, torch.float64) or grad.is_neg():
            raise TypeError(
                f"the gradient of {parameter.path} is {grad.dtype}{', negated lazily' * grad.is_neg()}: expected "
                "float32 or float64 in memory"
            )
        view = _Lying.of(grad)
        if view.shape != parameter.array.shape:
            raise ValueError(
                f"the gradient of {parameter.path} has the shape {view.shape}, the parameter {parameter.array.shape}"
            )
        if grad.data_ptr() % view.itemsize:
            raise ValueError(f"the gradient of {parameter.path} is not aligned to its dtype: pass a copy")
        self._find_layout(k, view)
        self._sizes[k], self._itemsizes[k] = np.subtract(*byte_range(0, view)[::-1]), view.itemsize

    def _check_memory(self, found: list[torch.Tensor], numbers: list[int]) -> None:
        """Refuse gradients whose storage is at address 0."""
        offsets = np.array([grad.storage_offset() for grad in found], np.int64) * self._itemsizes[numbers]
        nowhere = (self.table[ADDRESS, numbers] == offsets) & (self._dense_sizes[numbers] > 0)
        for place in np.flatnonzero(nowhere).tolist():
            raise TypeError(f"the gradient of {self.parameters[numbers[place]].path} {NO_MEMORY}")

    def _check_overlaps(self, grads: Any, zero: bool) -> None:
        """A gradient's memory may be none that the step writes to."""
        if not len(self._ends):
            return
        low = self.table[ADDRESS]
        after = np.minimum(np.searchsorted(self._ends, low, side="right"), len(self._ends) - 1)
        met = (self._starts_occupied[after] < low + self._sizes) & (self._ends[after] > low) & (low != 0)
        for k in np.flatnonzero(met).tolist():
            self._check_overlap(self.parameters[k], grads[k].detach().numpy(), zero)

    def _zero_option(self, grads: Any, as_parameters: bool = False) -> int:
        """Gradients that lie otherwise than their parameters, or share memory, are zeroed last, by torch."""
        if not self._are_apart(self._sizes):
            self._staged = [grad for grad in grads if grad is not None]
            return 0
        if not as_parameters:
            others = (self.table[LAYOUT] != DIRECT) & (self.table[ADDRESS] != 0)
            self._staged = [grads[k] for k in np.flatnonzero(others)]
        return ZERO


def present_of(grads: Sequence[torch.Tensor | None]) -> list[int] | None:
    """Numbers of the parameters that have a gradient; None if all have."""
    if type(None) not in set(map(type, grads)):
        return None
    return [k for k, grad in enumerate(grads) if grad is not None]


def _signature(grad: torch.Tensor) -> Any:
    """What gradients of one parameter that are read alike have in common; None if that is not to be said."""
    if grad.layout is not torch.strided:
        return None
    return grad.shape, grad.stride(), grad.dtype, grad.is_neg(), grad.data_ptr() % 8
