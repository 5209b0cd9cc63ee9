"""DLPack: what a capsule says of an array on a GPU. Source: https://dmlc.github.io/dlpack/latest/c_api.html"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

CUDA, CUDA_HOST, CUDA_MANAGED = 2, 3, 13
"""Kinds of devices."""

_READ_ONLY = 1
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


# Deleters are called with the GIL held, as NumPy does.
_DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Exported(NamedTuple):
    """An array that another library has handed over."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None: C-ordered
    dtype: str  # as NumPy would name it, if it had the type
    device_type: int
    device: int
    writeable: bool
    owner: Any  # keeps the memory alive


class _Owner:
    """Holds an exported array; gives it back when nobody refers to this object any more."""


_NAMES = {b"dltensor": _Managed, b"dltensor_versioned": _ManagedVersioned}
_USED = {name: b"used_" + name for name in _NAMES}  # capsules keep pointers to their names

_get_name = ctypes.pythonapi.PyCapsule_GetName
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.restype, _set_name.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]


class _ExchangeHeader(ctypes.Structure):
    pass


_ExchangeHeader._fields_ = (
    ("major", ctypes.c_uint32),
    ("minor", ctypes.c_uint32),
    ("older", ctypes.POINTER(_ExchangeHeader)),
)


class _Exchange(ctypes.Structure):
    _fields_ = (
        ("header", _ExchangeHeader),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


_EXCHANGE_NAME = b"dlpack_exchange_api"


def exchange_function(kind: type) -> int:
    """Address of ``dltensor_from_py_object_no_sync`` for objects of a class; 0 where its library has none.

    What a newer major version lays out differently is not looked at, but the older tables that it points to are.
    """
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if type(capsule).__name__ != "PyCapsule" or _get_name(capsule) != _EXCHANGE_NAME:
        return 0
    address = _get_pointer(capsule, _EXCHANGE_NAME)
    while address:
        header = ctypes.cast(address, ctypes.POINTER(_ExchangeHeader)).contents
        if header.major == 1:
            return ctypes.cast(address, ctypes.POINTER(_Exchange)).contents.tensor_from_object or 0
        address = ctypes.cast(header.older, ctypes.c_void_p).value
    return 0


def export(array: Any, stream: int) -> Exported:
    """Have an array's library hand it over; what follows on ``stream`` sees it complete.

    Raises
    ------
    BufferError, TypeError, ValueError
        If its library refuses, or hands over what is no array of DLPack 1.x.
    """
    stream = stream or 1  # DLPack's name for the legacy default stream
    try:
        capsule = array.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # before DLPack 1.0 there was no max_version
        capsule = array.__dlpack__(stream=stream)
    return opened(capsule)


def opened(capsule: Any) -> Exported:
    """Take over what is in a capsule, which nobody else can then open.

    Raises
    ------
    ValueError
        If it is no unopened capsule of DLPack 1.x.
    """
    name = _get_name(capsule)
    if name not in _NAMES:
        raise ValueError(f"expected an unopened DLPack capsule, got one named {name!r}")
    pointer = _get_pointer(capsule, name)
    managed: Any = _NAMES[name].from_address(pointer)
    if name == b"dltensor_versioned" and managed.major != 1:
        raise ValueError(f"expected DLPack 1.x, got {managed.major}.{managed.minor}")
    _set_name(capsule, _USED[name])
    owner = _Owner()
    if managed.deleter:
        weakref.finalize(owner, _DELETER(managed.deleter), pointer).atexit = False
    tensor, axes = managed.tensor, range(managed.tensor.ndim)
    return Exported(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[axis] for axis in axes),
        tuple(tensor.strides[axis] for axis in axes) if tensor.strides else None,
        _dtype_name(tensor),
        tensor.device_type,
        tensor.device_id,
        # Before DLPack 1.0 a library had no way to say that others must not write.
        name == b"dltensor_versioned" and not managed.flags & _READ_ONLY,
        owner,
    )


def _dtype_name(tensor: _Tensor) -> str:
    bits = "" if tensor.code == 6 else tensor.bits
    lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    return f"{_KINDS.get(tensor.code, 'opaque')}{bits}{lanes}"
