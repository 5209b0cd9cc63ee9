"""Parameters moved into one tensor per device and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..flat import aligned_offsets
from .memory import in_huge_pages


def pack(tensors: list[Any], buffers: dict[Any, torch.Tensor]) -> None:
    """Make the ``data`` of each tensor a part of the buffer of its device and dtype, in ``buffers``.

    Buffers that hold all that they should stay. Tensors with gaps stay where they are.
    """
    kinds: dict[Any, list[Any]] = {}
    for tensor in filter(_is_dense, tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for kind in [kind for kind in buffers if kind not in kinds]:
        del buffers[kind]
    for (device, dtype), own in kinds.items():
        if not _are_inside(own, buffers.get((device, dtype))):
            buffers[device, dtype] = _packed(own)


def _is_dense(tensor: torch.Tensor) -> bool:
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _are_inside(tensors: list[Any], buffer: torch.Tensor | None) -> bool:
    if buffer is None:
        return False
    first, size = buffer.data_ptr(), buffer.nbytes
    return all(0 <= tensor.data_ptr() - first <= size - tensor.nbytes for tensor in tensors)


def _packed(tensors: list[Any]) -> torch.Tensor:
    dtype = np.dtype(str(tensors[0].dtype).removeprefix("torch."))
    offsets, end = aligned_offsets([tensor.numel() for tensor in tensors], dtype)
    buffer = in_huge_pages(torch.empty(end, dtype=tensors[0].dtype, device=tensors[0].device)).zero_()
    for tensor, offset in zip(tensors, offsets, strict=True):
        tensor.data = _part_of(buffer, offset, tensor).copy_(tensor)
    return buffer


def _part_of(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor as another inside the buffer, with a storage of its own, so that what saves it saves no more."""
    first = offset * buffer.itemsize
    storage = buffer.untyped_storage()[first : first + like.nbytes]
    return buffer.new_empty(0).set_(storage, 0, like.shape, like.stride())
