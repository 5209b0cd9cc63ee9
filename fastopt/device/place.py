"""What the front end asks of wherever arrays live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .array import Array
from .strides import AnyArray


class Place(Protocol):
    """Where all arrays of an optimizer live: `host.HOST`, or one GPU (`cuda.Gpu`)."""

    @property
    def on_gpu(self) -> bool:
        """Whether its arrays are `CudaArray`."""

    @property
    def copyable(self) -> bool:
        """Whether users' arrays that live here can be deep-copied and pickled."""

    def view(self, name: str, array: Any) -> AnyArray:
        """An array of the user's as fastopt works with it, of the same memory.

        Raises
        ------
        TypeError, ValueError
            If it is none, or lives elsewhere. ``name`` begins the message.
        """

    def flat(self, size: int, dtype: np.dtype[Any]) -> Any:
        """A 1-D array of zeros as users know them, at a multiple of `ALIGNMENT` bytes."""

    def zeros(self, size: int, dtype: np.dtype[Any]) -> AnyArray:
        """The same, as fastopt works with it."""

    def fill(self, array: AnyArray, number: float) -> None:
        """Set every element."""

    def copy(self, target: AnyArray, source: AnyArray) -> None:
        """Copy the elements of an array of the same shape; on a GPU of the same dtype too."""

    def copying(self, target: AnyArray, source: AnyArray) -> Callable[[], Any]:
        """`copy`, to be called later, without arguments."""

    def filling(self, array: AnyArray, number: float) -> Callable[[], Any]:
        """`fill`, to be called later, without arguments."""

    def clone(self, array: AnyArray) -> AnyArray:
        """A copy of an array without gaps."""

    def in_c_order(self, array: AnyArray) -> AnyArray:
        """A C-ordered copy."""

    def to_host(self, array: AnyArray) -> Array:
        """A copy as a NumPy array; waits for a GPU."""

    def from_host(self, array: AnyArray, values: Array) -> None:
        """Copy the elements of a NumPy array of the same shape and dtype into an array without gaps."""

    def address(self, array: AnyArray) -> int:
        """Return the address of the first element."""

    def byte_range(self, array: AnyArray) -> tuple[int, int]:
        """First byte of an array, and the byte after its last."""

    def shares_memory(self, one: AnyArray, other: AnyArray) -> bool:
        """Whether two arrays share memory; True where that cannot be found out quickly."""
