"""Nested containers of arrays, and the flat buffer that packs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64
"""Bytes that every segment starts at a multiple of: a cache line."""


class Segment(NamedTuple):
    """Where one array lies in a flat buffer: its path, its first element, its shape."""

    path: str
    offset: int
    shape: tuple[int, ...]


def flatten(structure: Any) -> tuple[list[str], list[Any]]:
    """The leaves of nested lists, tuples and mappings, in order, each with its path.

    A path joins keys and indices with "/", as in "layers/0/kernel". Anything that is no container is a leaf, None too;
    a bare leaf has the path "0", as if it stood in a list.

    Raises
    ------
    ValueError
        If two leaves have the same path.
    """
    if isinstance(structure, FlatBuffer):
        return list(structure.paths), list(structure.arrays)
    paths: list[str] = []
    leaves: list[Any] = []
    _collect(structure if _is_container(structure) else [structure], "", paths, leaves)
    if len(set(paths)) != len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"two arrays have the path {twice[0]!r}: keys that differ as objects must differ as text")
    return paths, leaves


def _is_container(structure: Any) -> bool:
    return isinstance(structure, (list, tuple, Mapping))


def _collect(node: Any, prefix: str, paths: list[str], leaves: list[Any]) -> None:
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, child in items:
        path = f"{prefix}{key}"
        if isinstance(child, FlatBuffer):
            paths += [f"{path}/{segment.path}" for segment in child.segments]
            leaves += child.arrays
        elif _is_container(child):
            _collect(child, f"{path}/", paths, leaves)
        else:
            paths.append(path)
            leaves.append(child)


def rebuild(structure: Any, replacement: Callable[[Any], Any]) -> Any:
    """The same nesting with every leaf replaced; mappings become dicts."""
    if isinstance(structure, Mapping):
        return {key: rebuild(child, replacement) for key, child in structure.items()}
    if isinstance(structure, tuple):
        children = [rebuild(child, replacement) for child in structure]
        return type(structure)(*children) if hasattr(structure, "_fields") else tuple(children)
    if isinstance(structure, list):
        return [rebuild(child, replacement) for child in structure]
    return replacement(structure)


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A 1-D array of zeros that starts at a multiple of `ALIGNMENT` bytes."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def aligned_offsets(sizes: list[int], dtype: np.dtype[Any]) -> tuple[list[int], int]:
    """First element of each segment, all aligned, and the elements of the whole."""
    step = ALIGNMENT // dtype.itemsize
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // step) * step
    return offsets, end


class FlatBuffer:
    """Arrays of one dtype side by side in one contiguous, 64-byte aligned array.

    Made by `pack`, and by `like`. What the model uses are ``views``: writing to them writes to ``flat``.

    Attributes
    ----------
    flat : ndarray [elements]
        All segments, each padded with zeros to a multiple of 64 bytes.
    views : nested containers of ndarray
        The structure that was packed, with views into ``flat`` of the original shapes, C-ordered.
    segments : tuple of Segment
        Path, first element in ``flat`` and shape of each view, in order.
    paths : tuple of str
        Their paths.
    arrays : tuple of ndarray
        The views, in order.
    """

    def __init__(self, structure: Any, paths: list[str], shapes: list[tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        offsets, end = aligned_offsets(sizes, dtype)
        self.flat = aligned_zeros(end, dtype)
        self.paths = tuple(paths)
        self.segments = tuple(map(Segment, paths, offsets, shapes))
        self.arrays = tuple(
            self.flat[offset : offset + size].reshape(shape)
            for offset, size, shape in zip(offsets, sizes, shapes, strict=True)
        )
        views = iter(self.arrays)
        self._skeleton = rebuild(structure, lambda leaf: None)
        self.views = rebuild(structure, lambda leaf: next(views))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every array in the buffer."""
        return self.flat.dtype

    def like(self) -> FlatBuffer:
        """A zeroed buffer of the same layout, for gradients."""
        return FlatBuffer(self._skeleton, list(self.paths), [segment.shape for segment in self.segments], self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        shapes = [segment.shape for segment in self.segments]
        return _restore, (self._skeleton, list(self.paths), shapes, self.dtype, np.array(self.flat))

    def __repr__(self) -> str:
        return f"FlatBuffer({len(self.segments)} arrays, {self.flat.size} elements with padding, {self.dtype})"


def _restore(
    skeleton: Any,
    paths: list[str],
    shapes: list[tuple[int, ...]],
    dtype: np.dtype[Any],
    values: np.ndarray[Any, Any],
) -> FlatBuffer:
    buffer = FlatBuffer(skeleton, paths, shapes, dtype)
    buffer.flat[:] = values
    return buffer


def pack(structure: Any) -> FlatBuffer:
    """Copy arrays once into one contiguous, 64-byte aligned buffer.

    Parameters
    ----------
    structure : array, or nested lists, tuples and mappings of arrays
        Of one dtype, float32 or float64; any shapes and strides, NumPy scalars included.

    Returns
    -------
    FlatBuffer
        Its ``views`` have the structure that was given. The original arrays are no longer connected to it.

    Raises
    ------
    TypeError
        If a leaf is no NumPy array of float32 or float64.
    ValueError
        If dtypes are mixed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = fastopt.pack({"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    >>> params.views["w"].shape, params.flat.size
    ((2, 3), 32)
    """
    paths, leaves = flatten(structure)
    for path, leaf in zip(paths, leaves, strict=True):
        _check_packable(path, leaf)
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) > 1:
        names = " and ".join(sorted(dtype.name for dtype in dtypes))
        raise ValueError(f"a FlatBuffer holds one dtype, got {names}: pack each dtype by itself or cast first")
    dtype = dtypes.pop() if dtypes else np.dtype(np.float32)
    container = structure if _is_container(structure) or isinstance(structure, FlatBuffer) else [structure]
    nesting = container.views if isinstance(container, FlatBuffer) else _plain(container)
    buffer = FlatBuffer(nesting, paths, [leaf.shape for leaf in leaves], dtype)
    for view, leaf in zip(buffer.arrays, leaves, strict=True):
        view[...] = leaf
    return buffer


def _plain(structure: Any) -> Any:
    """The structure with nested buffers replaced by their views."""
    return rebuild(structure, lambda leaf: leaf.views if isinstance(leaf, FlatBuffer) else leaf)


def _check_packable(path: str, leaf: Any) -> None:
    if not isinstance(leaf, (np.ndarray, np.generic)) or isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{path}: expected a NumPy array, got {type(leaf).__name__}")
    if leaf.dtype not in (np.float32, np.float64) or not leaf.dtype.isnative:
        raise TypeError(f"{path}: expected float32 or float64 in native byte order, got {leaf.dtype}: cast it first")
