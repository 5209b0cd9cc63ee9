"""Where torch's CPU tensors lie: hundreds of them in one compiled call, described by torch itself through DLPack."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from ..device.dlpack import exchange_function
from ..kernels.cpu import exchange
from ..kernels.cpu.exchange import Expected, Reader

_KINDS = {
    torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.float16: (2, 16),
    torch.int64: (0, 64), torch.int32: (0, 32), torch.int16: (0, 16), torch.int8: (0, 8), torch.uint8: (1, 8),
}  # fmt: skip
"""dtype → code and bits of a DLDataType."""

Row = tuple[Expected, Any, Any]
"""Of `exchange.Reader`."""


def obstacle() -> str:
    """Why tensors are asked one by one, in Python; empty if compiled code reads them."""
    if exchange.obstacle():
        return exchange.obstacle()
    return "" if _describe() else f"torch {torch.__version__} has no DLPack exchange API of version 1"


@functools.cache
def _describe() -> int:
    return exchange_function(torch.Tensor)


def reader(rows: list[Row], **options: Any) -> Reader:
    """See `exchange.Reader`; only where there is no `obstacle`."""
    return Reader(rows, describe=_describe(), **options)


def is_readable(tensor: Any) -> bool:
    """Whether compiled code can read where a tensor lies: it is dense, in CPU memory, of a dtype that is known."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in _KINDS
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    )


def expected_like(dtype: torch.dtype, shape: Any, strides: Any, **known: int) -> Row:
    """A row for tensors that lie so, strides in elements; ``known`` are further fields of `Expected`."""
    code, bits = _KINDS[dtype]
    row = Expected(
        kind=id(torch.Tensor),
        dtype=1 << 16 | bits << 8 | code,
        itemsize=dtype.itemsize,
        nbytes=math.prod(shape) * dtype.itemsize,
        axes=len(shape),
    )
    return row._replace(**known), shape, strides


def expected_object(value: Any, **known: int) -> Row:
    """A row for one object, of whatever kind; a readable tensor must have its memory where it is now."""
    if not is_readable(value):
        return Expected(object=id(value), **known), (), ()
    own = {"object": id(value), "kind": id(type(value)), "address": value.data_ptr()}
    return expected_like(value.dtype, value.shape, value.stride(), **own, **known)
