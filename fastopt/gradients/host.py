"""Gradients in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import Any

import numpy as np

from ..device import HOST, AnyArray, Array, is_array
from ..device.strides import byte_range
from ..flat import FlatBuffer, flatten
from ..kernels.cpu import exchange
from ..kernels.cpu.repeated_step import RepeatedStep
from ..kernels.cpu.staging import gather_address
from ..kernels.layout import ADDRESS, DIRECT, GATHER, LAYOUT, STAGED, ZERO
from ..parameters import Parameter
from ..row_gradient import RowGradient
from .base import ABSENT, BaseGradients, check_gradient
from .rows import find_rows

_ALL = "gradient of all parameters"


class HostGradients(BaseGradients):
    """Reads arrays of one library: ordinary ones all in one compiled call, others one by one.

    What differs from the last step's in nothing but its address is not examined again.
    """

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[AnyArray]) -> None:
        super().__init__(parameters, buffer, state)
        self._dense_reach = np.zeros_like(self._reach)  # of gradients that lie as their parameters do
        self._dense_reach[1] = [parameter.array.nbytes for parameter in parameters]
        self._layouts_known = np.full(self._count, DIRECT, np.int64)  # of what was examined last

    def _signature(self, grad: Any) -> object:
        """Return what gradients that are read alike have in common; None: this one is to be examined at every step."""
        raise NotImplementedError

    def _examine(self, k: int, grad: Any) -> Any:
        """Check one gradient, as one that is to be zeroed or not. What has its shape, strides, dtype and size."""
        raise NotImplementedError

    def _addresses(self, found: list[Any], numbers: list[int]) -> list[int]:
        """Return addresses of gradients that have been examined, of parameters with these numbers."""
        raise NotImplementedError

    def _view(self, grad: Any) -> AnyArray:
        """A gradient that has been examined, in NumPy."""
        raise NotImplementedError

    def _read_each(self, leaves: Sequence[Any], wanted: list[int], zero: bool) -> int:
        """Fill the table from those gradients that are wanted; see `read`."""
        if zero != self._zeroes:
            self._forget(zero)
        if not wanted:
            self.table[ADDRESS] = 0
            return 0
        found = [leaves[k] for k in wanted]
        known, addresses, layouts = self._known, self.table[ADDRESS], self.table[LAYOUT]
        layouts[:] = self._layouts_known
        for k, grad, signature in zip(wanted, found, map(self._signature, found), strict=True):
            if signature is None or signature != known[k]:
                known[k] = None
                array = self._examine(k, grad)
                self._find_layout(k, array)
                self._reach[:, k], self._itemsizes[k] = byte_range(0, array), array.itemsize
                known[k] = signature
        self._layouts_known[:] = layouts
        addresses[:] = 0
        addresses[wanted] = self._addresses(found, wanted)
        addresses[self._sizes == 0] = 0
        self._check_addresses(lambda k: self._view(leaves[k]))
        staged = STAGED if np.any(layouts[addresses != 0] != DIRECT) else 0
        if staged:
            self.layouts[GATHER] = gather_address()
        return staged | (self._zero_options(leaves, self._reach) if zero else 0)

    def _zero_last(self, grads: list[Any], options: int) -> int:
        """Have gradients zeroed after all kernels, which may read what others would zero; returns the options left.

        Values of rows may lie in the memory of a whole gradient: autograd shares it.
        """
        self._staged = grads
        return options & ~ZERO

    def _zero_options(self, leaves: Sequence[Any], reach: Array) -> int:
        """Have what no kernel comes by, or lies otherwise than its parameter, zeroed last; all if any is shared:
        no kernel may erase what another has yet to read.
        """
        late = self.table[ADDRESS] != 0
        shared = not self._are_apart(reach)
        if not shared:
            late &= self.table[LAYOUT] != DIRECT
            late[self._frozen] = self.table[ADDRESS, self._frozen] != 0
        self._staged = [leaves[k] for k in np.flatnonzero(late).tolist()]
        return 0 if shared else ZERO


class Gradients(HostGradients):
    """Reads NumPy arrays."""

    def __init__(self, parameters: list[Parameter], buffer: FlatBuffer | None, state: list[Array]) -> None:
        super().__init__(parameters, buffer, state)
        self._given = tuple(parameter.given for parameter in parameters)
        self._given_addresses = [HOST.address(parameter.in_place) for parameter in parameters]
        kept = any(parameter.kept_as for parameter in parameters)  # their gradients are of another dtype, mostly
        self._readers = None if kept or exchange.obstacle() else self._make_readers()

    def _make_readers(self) -> tuple[exchange.Reader, exchange.Reader]:
        """Make readers of the parameters, and of gradients that are like them."""
        given = []
        for array, address, p in zip(self._given, self._given_addresses, self.parameters, strict=True):
            own = {"object": id(array), "kind": id(type(array)), "address": address}
            given.append(exchange.expected_array(p.in_place, flags=exchange.WRITEABLE * p.trainable, **own))
        like = [exchange.expected_array(p.array, kind=id(np.ndarray)) for p in self.parameters]
        return exchange.Reader(given), exchange.Reader(like, self.table, self._occupied)

    def check_parameters(self) -> None:
        """See `BaseGradients.check_parameters`; here also if a parameter cannot be written to any more.

        Raises
        ------
        RuntimeError
            If it has been exchanged for another.
        ValueError
            If it has been made read-only.
        """
        if self._readers is not None and self._readers[0].read(self._given) == self._count:
            return
        arrays = list(map(_plain, self._given))
        for path, array, parameter in zip(self._paths, arrays, self.parameters, strict=True):
            if parameter.trainable and not array.flags.writeable:
                raise ValueError(
                    f"parameter {path}: has been made read-only since build(): make it writeable, or build with "
                    'overrides that say {"trainable": False}'
                )
        addresses = list(map(_address, arrays))
        if addresses != self._given_addresses:
            pairs = zip(self._paths, addresses, self._given_addresses, strict=True)
            path = next(path for path, address, known in pairs if address != known)
            raise RuntimeError(f"parameter {path} has moved in memory since build()")

    def read(self, grads: Any, zero: bool) -> int:
        """See `BaseGradients.read`."""
        self._staged.clear()
        ordered = tuple(grads) if type(grads) is list else self._in_order(grads)
        # The table holds addresses only: their arrays must live until `release`, whoever empties a list meanwhile.
        self._held = ordered
        self.check_parameters()
        if type(ordered) is tuple and self._are_read(ordered, zero):
            return self._zero_options(ordered, self._dense_reach) if zero else 0
        if type(ordered) is not tuple:
            grads = _in_numpy(_ALL, grads)
        if isinstance(grads, np.ndarray):
            grads = self._held = self._place.view(_ALL, grads)
            if self._read_flat(grads, zero):
                return ZERO if zero else 0
        leaves = self._held = self._leaves(ordered if type(grads) is list else grads)
        self._check_missing([k for k, leaf in enumerate(leaves) if leaf is None], leaves)
        wanted = [
            k
            for k, (leaf, parameter) in enumerate(zip(leaves, self.parameters, strict=True))
            if leaf is not None and leaf is not ABSENT and (parameter.trainable or zero)
        ]
        by_rows = [k for k in wanted if isinstance(leaves[k], RowGradient)]
        if by_rows:
            wanted = sorted({*wanted}.difference(by_rows))
        for k in wanted:
            if type(leaves[k]) is not np.ndarray:
                leaves[k] = self._as_array(k, leaves[k], zero)
        options = self._read_each(leaves, wanted, zero)
        return self._read_rows(leaves, by_rows, options) if by_rows else options

    def _read_rows(self, leaves: list[Any], numbers: list[int], options: int) -> int:
        """Read the gradients with these numbers, which are there for some rows; returns the options of all."""
        for k in numbers:
            name, gradient = f"gradient {self._paths[k]}", leaves[k]
            indices, values = (
                array if type(array) is np.ndarray else self._place.view(name, _in_numpy(name, array))
                for array in (gradient.indices, gradient.values)
            )
            if self._zeroes and not values.flags.writeable:
                raise ValueError(f"{name}: its values are read-only, so zero_grads cannot zero them")
            if self.parameters[k].trainable:
                self.rows[k] = find_rows(name, self.parameters[k], indices, values)
                self._check_apart(name, values)
            leaves[k] = values
        if not self._zeroes:
            return options
        return self._zero_last([leaf for leaf in leaves if leaf is not None and leaf is not ABSENT], options)

    def _are_read(self, grads: tuple[Any, ...], zero: bool) -> bool:
        """Whether all gradients lie as their parameters do, and have been read."""
        if self._readers is None or len(grads) != self._count:
            return False
        return self._readers[1].read(grads, exchange.WRITEABLE * zero) == self._count

    def repeated_step(self, counters: Any, engine: Any, *what: Any) -> RepeatedStep | None:
        """See `BaseGradients.repeated_step`."""
        if self._readers is None:
            return None
        return RepeatedStep(counters, self._given, self._readers, engine.alone, engine.work, *what)

    def zero_all(self, grads: Any) -> None:
        """See `BaseGradients.zero_all`."""
        for leaf in flatten(_in_numpy(_ALL, grads))[1]:
            array = _in_numpy("gradient", leaf.values if isinstance(leaf, RowGradient) else leaf)
            if isinstance(array, np.ndarray):
                self._place.fill(self._place.view("gradient", array), 0)

    def _as_array(self, k: int, grad: Any, zero: bool) -> Array:
        """A gradient of any kind as a plain array that shares its memory."""
        if isinstance(grad, np.generic) and self.parameters[k].array.ndim == 0 and not zero:
            return np.asarray(grad)
        name = f"gradient {self._paths[k]}"
        return self._place.view(name, _in_numpy(name, grad))

    def _signature(self, grad: Array) -> object:
        return grad.shape, grad.strides, grad.dtype, self._zeroes and grad.flags.writeable

    def _examine(self, k: int, grad: Array) -> Array:
        check_gradient(self.parameters[k], grad, self._zeroes)
        return grad

    def _addresses(self, found: list[Array], numbers: list[int]) -> list[int]:
        return list(map(_address, found))

    def _view(self, grad: Array) -> Array:
        return grad


def _plain(array: Any) -> Array:
    """The array itself, or what it is a view of: attributes of a subclass may say anything."""
    return array if type(array) is np.ndarray else np.ndarray.view(array, np.ndarray)


def _address(array: Any) -> int:
    """Return the address of the first element. The buffer protocol is three times as fast as the array's interface."""
    try:
        return addressof(c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, empty, or not in C order
        return HOST.address(array)


def _in_numpy(name: str, value: Any) -> Any:
    """A view, in NumPy, of another library's array in host memory, such as JAX's or torch's; anything else as it is."""
    if is_array(value) or not (hasattr(value, "__dlpack_device__") and hasattr(value, "__array__")):
        return value
    try:
        return np.asarray(value) if value.__dlpack_device__()[0] == CPU else value
    except (BufferError, RuntimeError, TypeError, ValueError) as reason:
        raise TypeError(f"{name}: cannot be read as a NumPy array: {reason}") from reason


CPU = 1
"""DLPack's number of the kind of device."""
