"""A gradient that is there for some rows of a parameter."""

from __future__ import annotations

from typing import Any

import numpy as np


class RowGradient:
    """Say a parameter's gradient by the rows that have one: all others are left alone.

    `Optimizer.apply` takes it wherever it takes an array, but for optimizers that look at whole parameters (`Lamb`,
    `Adafactor`, `Muon` of matrices), and with ``gradient_accumulation_steps``; the parameter must be in C order. A step
    costs what the rows named cost, however many the parameter has. Rows without a gradient are not touched at all:
    their momenta do not decay and their weights are not decayed, as in ``torch.optim.SparseAdam``. On a GPU a step with
    such a gradient waits for the GPU once, and takes neither moving averages nor CUDA graphs.

    Parameters
    ----------
    indices : int32 or int64 array [n]
        Row numbers along axis 0, from 0, in any order; where the parameters are, in memory or on a GPU, as the values.
        Where a row is named more than once its values are added up, in the order in which they stand here.
    values : float32 or float64 array [n, *rest of the parameter's shape]
        A row of the gradient for each; of any strides.

    Raises
    ------
    TypeError
        If indices are not integers of 32 or 64 bits, or values not float32 or float64.
    ValueError
        If their shapes do not fit each other. Whether they fit the parameter is checked at each step, before anything
        is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> table = np.zeros((1_000_000, 2), np.float32)
    >>> opt = fastopt.SGD(0.5)
    >>> opt.build([table])
    >>> opt.apply([fastopt.RowGradient(np.array([7, 3, 7]), np.ones((3, 2), np.float32))])
    >>> table[[3, 7]].tolist()
    [[-0.5, -0.5], [-1.0, -1.0]]
    """

    __slots__ = ("_indices", "_values")

    def __init__(self, indices: Any, values: Any) -> None:
        self._indices, self._values = _array("indices", indices), _array("values", values)
        if len(self.indices.shape) != 1:
            raise ValueError(f"indices must have one axis, got shape {tuple(self.indices.shape)}")
        if not self.values.shape or self.values.shape[0] != self.indices.shape[0]:
            raise ValueError(
                f"values must have a row for each of the {self.indices.shape[0]} indices, "
                f"got shape {tuple(self.values.shape)}"
            )
        _check_dtype("indices", self.indices, ("int32", "int64"))
        _check_dtype("values", self.values, ("float32", "float64"))

    @property
    def indices(self) -> Any:
        """The row numbers, as they were given."""
        return self._indices

    @property
    def values(self) -> Any:
        """The rows of the gradient, as they were given."""
        return self._values

    @classmethod
    def from_dense(cls, gradient: Any) -> RowGradient:
        """Take those rows of a NumPy array in which anything is not zero, in ascending order.

        Parameters
        ----------
        gradient : float32 or float64 array of at least one axis

        Raises
        ------
        TypeError, ValueError
            If it is no such array.
        """
        dense = np.asarray(gradient)
        if dense.ndim < 1:
            raise ValueError("a gradient for rows needs an axis of rows, got an array without axes")
        indices = np.flatnonzero((dense != 0).reshape(dense.shape[0], -1).any(axis=1))
        return cls(indices, dense[indices])

    def to_dense(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return the whole gradient as a NumPy array, zero in all other rows.

        Parameters
        ----------
        shape : tuple of int
            The parameter's.

        Raises
        ------
        ValueError
            If the rows do not fit it.
        """
        indices, values = np.asarray(self.indices), np.asarray(self.values)
        check_sizes("RowGradient", indices, values, tuple(shape))
        check_range("RowGradient", shape[0], indices)
        dense = np.zeros(shape, values.dtype)
        np.add.at(dense, indices, values)
        return dense

    def __repr__(self) -> str:
        return f"RowGradient({self.indices.shape[0]} rows of shape {tuple(self.values.shape[1:])}, {self.values.dtype})"


def _array(name: str, array: Any) -> Any:
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    return array


def _check_dtype(name: str, array: Any, allowed: tuple[str, ...]) -> None:
    dtype = array.dtype
    if str(dtype).rpartition(".")[2] not in allowed:  # torch's have its name before theirs
        raise TypeError(f"{name} must be {' or '.join(allowed)} in native byte order, got {dtype}")


def check_sizes(name: str, indices: Any, values: Any, shape: tuple[int, ...]) -> None:
    """Refuse a gradient for rows whose shapes do not fit a parameter's, or each other.

    Raises
    ------
    ValueError
        If they do not, or the parameter has no axis.
    """
    check_shape(name, values, shape)
    if len(indices) != len(values):
        raise ValueError(f"{name}: {len(indices)} indices for {len(values)} rows of values")


def check_shape(name: str, values: Any, shape: tuple[int, ...]) -> None:
    """Refuse values for rows whose shape does not fit that of the parameter."""
    if not shape:
        raise ValueError(f"{name}: the parameter has no axis, so it has no rows: pass an array")
    if values.shape[1:] != shape[1:]:
        raise ValueError(f"{name}: expected values of shape (n, *{shape[1:]}) like the parameter, got {values.shape}")


def check_range(name: str, height: int, indices: Any) -> None:
    """Refuse NumPy indices that are not all rows of a parameter of so many."""
    if indices.size and not (indices.min() >= 0 and indices.max() < height):
        place = int(np.flatnonzero((indices < 0) | (indices >= height))[0])
        raise ValueError(
            f"{name}: index {indices[place]} at place {place} is out of range: the parameter has {height} rows, "
            f"counted from 0"
        )
