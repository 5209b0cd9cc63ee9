"""Tensors as the arrays that kernels work on, in the tensors' own memory; and which tensors that is refused to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from ..device import AnyArray, Place
from ..device.pages import prefer_huge_pages
from ..device.strides import is_dense, lies_alike
from ..kernels.cpu.launch import get_num_threads
from ..kernels.registry import Slot

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # there are builds of torch without
    _SPREAD: Any = ()
else:
    _SPREAD = DTensor

_WHOLE = (torch.Tensor, torch.nn.Parameter)  # asked first: it is quicker

DTYPES = (torch.float32, torch.float64)
HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Dtypes of 16 bits that parameters may have, and their names."""

_AS_BITS = (*HALVES, torch.int16)
DEVICES = ("cpu", "cuda")
NO_MEMORY = (
    "has no memory: it wraps other tensors, is only traced, or its storage was freed; expected a tensor whose elements "
    "lie in memory"
)
"""What is said of a tensor whose storage is at address 0."""


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is spread over a mesh (DTensor, FSDP2)."""
    return type(tensor) not in _WHOLE and isinstance(tensor, _SPREAD)


def local(tensor: Any) -> torch.Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def device_of(tensor: Any) -> torch.device:
    """Return where a tensor's part in this process lies."""
    return local(tensor).device


def on_device_of(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or a copy of it on the device of another."""
    if tensor.device == like.device:
        return tensor
    return like.new_empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def is_updatable(tensor: torch.Tensor) -> bool:
    """Whether `check_parameter` lets a tensor pass."""
    is_known = tensor.dtype in (*DTYPES, *HALVES) and tensor.device.type in (*DEVICES, "meta")
    return tensor.layout is torch.strided and is_known


def check_parameter(name: str, tensor: torch.Tensor) -> None:
    """Refuse a parameter that no kernel could update.

    Raises
    ------
    TypeError
        If it is sparse, of another dtype, of a class that has its own operations, or on a device without kernels.
    """
    check_class(name, local(tensor))
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} is {tensor.layout}: fastopt.torch updates dense parameters only")
    if tensor.dtype not in (*DTYPES, *HALVES):
        raise TypeError(
            f"{name} is {tensor.dtype}: fastopt.torch updates parameters of float32, float64, bfloat16 and float16"
        )
    if tensor.device.type not in (*DEVICES, "meta"):
        raise TypeError(f"{name} is on {tensor.device}: fastopt.torch works on CPUs and CUDA GPUs")


def check_class(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of a class that has operations of its own, instead of those on its memory."""
    kind: Any = type(tensor)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(f"{name}, a {kind.__name__}, {NO_MEMORY}")


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor whose elements are not in memory of its own."""
    check_class(name, tensor)
    try:
        has_memory = not tensor.numel() or tensor.data_ptr() != tensor.storage_offset() * tensor.element_size()
    except RuntimeError:  # inside the transforms of torch.func
        has_memory = False
    if not has_memory:
        raise TypeError(f"{name} {NO_MEMORY}")


def as_array(name: str, tensor: torch.Tensor, place: Place) -> AnyArray:
    """The tensor's memory as an array of a place; numbers of 16 bits as their bit patterns, uint16.

    Raises
    ------
    TypeError
        If it has none.
    """
    check_memory(name, tensor)
    if not place.on_gpu:
        return place.view(name, in_numpy(tensor))
    array = place.view(name, tensor.detach())
    return array.view(np.uint16) if tensor.dtype in _AS_BITS else array


def in_numpy(tensor: torch.Tensor) -> AnyArray:
    """A CPU tensor's memory as a NumPy array; numbers of 16 bits as their bit patterns, uint16."""
    own = tensor.detach()
    return own.view(torch.int16).numpy().view(np.uint16) if own.dtype in _AS_BITS else own.numpy()


def kept(
    name: str, tensor: Any, parameter: Any, array: AnyArray, place: Place, slot: Slot, dtype: torch.dtype
) -> tuple[torch.Tensor, AnyArray]:
    """Return a state tensor of a dtype that lies as ``array`` does, the parameter's, and its array.

    It is a copy if it was of another dtype, or lay otherwise.
    """
    shape, own = _shape_of(slot, array.shape), local(parameter)
    found = local(tensor)
    if tuple(found.shape) != shape:
        raise ValueError(f"{name} has the shape {tuple(found.shape)}, and the parameter needs {shape}")
    if found.device != own.device or found.dtype != dtype:
        tensor = found = found.to(own) if dtype is own.dtype else found.to(own.device, dtype)
    if shape != array.shape:
        tensor = found.contiguous()
        return tensor, as_array(name, tensor.reshape([array.shape[axis] for axis in slot.axes_of(array.ndim)]), place)
    view = as_array(name, found, place)
    if not lies_alike(view, array):
        tensor = found = empty_like(array, found, dtype).copy_(found)
        view = as_array(name, found, place)
    if is_distributed(parameter) and not is_distributed(tensor):
        tensor = as_distributed(found, parameter)
    return tensor, view


def new_state(parameter: Any, array: AnyArray | None, slot: Slot, dtype: torch.dtype) -> torch.Tensor:
    """A state tensor of a dtype as a slot begins; for a distributed parameter as torch.optim makes it, distributed too.

    ``array`` is the parameter's; None where it has no elements.
    """
    own = local(parameter)
    shape = _shape_of(slot, tuple(own.shape))
    if shape != tuple(own.shape):
        return own.new_full(shape, slot.start, dtype=dtype)
    tensor = torch.empty_like(own, dtype=dtype) if array is None else empty_like(array, own, dtype)
    tensor = tensor.copy_(own) if slot.copies_parameter else tensor.fill_(slot.start)
    return as_distributed(tensor, parameter) if is_distributed(parameter) else tensor


def as_distributed(tensor: torch.Tensor, like: Any) -> Any:
    """A tensor as this process's part of one that is spread as another."""
    return type(like).from_local(
        tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def empty_like(array: AnyArray, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A new tensor of a dtype that lies in memory as an array does; C-ordered if that has gaps.

    In huge pages, if it is large.
    """
    strides = tuple(stride // array.itemsize for stride in array.strides)
    if not is_dense(array):
        return in_huge_pages(like.new_empty(array.shape, dtype=dtype))
    return in_huge_pages(like.new_empty_strided(array.shape, strides, dtype=dtype))


def in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that nothing has been written to, after asking for huge pages: torch's allocator does not."""
    if tensor.device.type == "cpu":
        prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


@contextmanager
def few_threads() -> Iterator[None]:
    """Context in which torch has no threads where steps have none: in a forked child, where OpenMP's hang."""
    before = torch.get_num_threads()
    if not _are_too_many(before):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_few_threads(calls: list[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Calls to be made one after the other as in the context `few_threads`."""
    before = torch.get_num_threads()
    if not (calls and _are_too_many(before)):
        return calls
    return [partial(torch.set_num_threads, 1), *calls, partial(torch.set_num_threads, before)]


def _are_too_many(threads: int) -> bool:
    return get_num_threads() == 1 < threads


def _shape_of(slot: Slot, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a slot's tensor: 1 along the axes that it lacks."""
    kept = slot.axes_of(len(shape))
    return tuple(extent if axis in kept else 1 for axis, extent in enumerate(shape))
