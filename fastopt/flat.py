"""Nested containers of arrays, and the flat buffer that packs them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .device import ALIGNMENT, HOST, AnyArray, Place, place_of


class Segment(NamedTuple):
    """Where one array lies in a flat buffer: its path, its first element, its shape."""

    path: str
    offset: int
    shape: tuple[int, ...]


def flatten(structure: Any) -> tuple[list[str], list[Any]]:
    """The leaves of nested lists, tuples, mappings, namedtuples and dataclasses, in order, each with its path.

    A path joins keys, fields and indices with "/", as in "layers/0/kernel". Anything that is no container is a leaf,
    None too; a bare leaf has the path "0", as if it stood in a list.

    Raises
    ------
    ValueError
        If two leaves have the same path.
    """
    if isinstance(structure, FlatBuffer):
        return list(structure.paths), list(structure.arrays)
    paths: list[str] = []
    leaves: list[Any] = []
    _collect(structure if is_container(structure) else [structure], "", paths, leaves)
    if len(set(paths)) != len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"two arrays have the path {twice[0]!r}: keys that differ as objects must differ as text")
    return paths, leaves


def is_container(structure: Any) -> bool:
    """Whether `flatten` looks into it."""
    return isinstance(structure, (list, tuple, Mapping, FlatBuffer)) or _is_record(structure)


def is_plain(structure: Any) -> bool:
    """Whether leaves stand in nothing but their order: a list or tuple without fields and nesting, or a bare leaf."""
    if isinstance(structure, FlatBuffer):
        return is_plain(structure.views)
    if not isinstance(structure, (list, tuple)):
        return not is_container(structure)
    examples = {type(child): child for child in structure}.values()
    return not hasattr(structure, "_fields") and not any(map(is_container, examples))


_OF_ARRAYS = ("__array__", "__cuda_array_interface__", "__dlpack__")


def _is_record(node: Any) -> bool:
    """Whether it is a dataclass instance, and no array that is written as one."""
    kind = type(node)
    return dataclasses.is_dataclass(kind) and not any(hasattr(kind, name) for name in _OF_ARRAYS)


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    """The keys, fields or indices of a container, each with what is there."""
    if isinstance(node, Mapping):
        return node.items()
    if isinstance(node, (list, tuple)):
        return zip(node._fields, node, strict=True) if hasattr(node, "_fields") else enumerate(node)
    return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]


def _collect(node: Any, prefix: str, paths: list[str], leaves: list[Any]) -> None:
    for key, child in _items(node):
        path = f"{prefix}{key}"
        if isinstance(child, FlatBuffer):
            paths += [f"{path}/{segment.path}" for segment in child.segments]
            leaves += child.arrays
        elif is_container(child):
            _collect(child, f"{path}/", paths, leaves)
        else:
            paths.append(path)
            leaves.append(child)


def rebuild(structure: Any, replacement: Callable[[Any], Any]) -> Any:
    """The same nesting with every leaf, or `FlatBuffer`, replaced.

    Mappings become dicts, namedtuples and dataclasses stay what they are, without a call of their own code.
    """
    if isinstance(structure, FlatBuffer) or not is_container(structure):
        return replacement(structure)
    children = {key: rebuild(child, replacement) for key, child in _items(structure)}
    kind: Any = type(structure)
    if isinstance(structure, Mapping):
        return children
    if isinstance(structure, tuple):
        return kind._make(children.values()) if hasattr(structure, "_fields") else tuple(children.values())
    if isinstance(structure, list):
        return list(children.values())
    record = copy.copy(structure)
    for name, child in children.items():
        object.__setattr__(record, name, child)  # a frozen one too
    return record


def match(paths: Sequence[str], structure: Any, optional: Container[str] = ()) -> list[Any]:
    """The leaves of a structure in the order of the paths that another one has; None for those that are not there.

    Leaves of a plain list or tuple are taken in order. All others go by their paths, which must be the same, as for
    ``jax.tree.map``; unlike there a dict may stand for a namedtuple, and a list for a tuple.

    Parameters
    ----------
    paths : sequence of str
    structure : as for `flatten`
    optional : container of str
        Paths that need not be there.

    Raises
    ------
    ValueError
        If the structures do not agree.
    """
    found, leaves = flatten(structure)
    if list(paths) == found:
        return leaves
    if is_plain(structure):
        if len(leaves) == len(paths):
            return leaves
        raise ValueError(
            f"expected {len(paths)} gradients, one per parameter, got {len(leaves)}: "
            "pass None for a parameter without a gradient"
        )
    by_path = dict(zip(found, leaves, strict=True))
    unexpected = by_path.keys() - set(paths)
    absent = [path for path in paths if path not in by_path and path not in optional]
    if unexpected or absent:
        raise ValueError(
            "the gradients' structure is not the parameters': "
            f"missing {absent[:5] or 'nothing'}, unexpected {sorted(unexpected)[:5] or 'nothing'}"
        )
    return [by_path.get(path) for path in paths]


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

    Made by `pack`, and by `like`. What the model uses are ``views``: writing to them writes to ``flat``. All are
    arrays of the library whose arrays were packed: NumPy, torch, CuPy, Numba, ….

    Attributes
    ----------
    flat : array [elements]
        All segments, each padded with zeros to a multiple of 64 bytes.
    views : nested containers of arrays
        The structure that was packed, with views into ``flat`` of the original shapes, C-ordered.
    segments : tuple of Segment
        Path, first element in ``flat`` and shape of each view, in order.
    paths : tuple of str
        Their paths.
    arrays : tuple of arrays
        The views, in order.
    dtype : numpy.dtype
        Of every array in the buffer.
    size : int
        Elements of ``flat``.
    """

    def __init__(
        self,
        structure: Any,
        paths: list[str],
        shapes: list[tuple[int, ...]],
        dtype: np.dtype[Any],
        place: Place = HOST,
    ) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        offsets, end = aligned_offsets(sizes, dtype)
        self.dtype, self.size, self._place = dtype, end, place
        self.flat = place.flat(end, dtype)
        self.paths = tuple(paths)
        self.segments = tuple(map(Segment, paths, offsets, shapes))
        self.arrays = tuple(
            self.flat[offset : offset + size].reshape(shape)
            for offset, size, shape in zip(offsets, sizes, shapes, strict=True)
        )
        views = iter(self.arrays)
        self._skeleton = rebuild(structure, lambda leaf: None)
        self.views = rebuild(structure, lambda leaf: next(views))

    def like(self) -> FlatBuffer:
        """A zeroed buffer of the same layout, for gradients."""
        shapes = [segment.shape for segment in self.segments]
        return FlatBuffer(self._skeleton, list(self.paths), shapes, self.dtype, self._place)

    def __reduce__(self) -> tuple[Any, ...]:
        shapes = [segment.shape for segment in self.segments]
        values = self._place.to_host(self._place.view("flat", self.flat))
        return _restore, (self._skeleton, list(self.paths), shapes, self.dtype, values, self._place)

    def __repr__(self) -> str:
        return f"FlatBuffer({len(self.segments)} arrays, {self.size} elements with padding, {self.dtype})"


def _restore(
    skeleton: Any,
    paths: list[str],
    shapes: list[tuple[int, ...]],
    dtype: np.dtype[Any],
    values: np.ndarray[Any, Any],
    place: Place = HOST,
) -> FlatBuffer:
    buffer = FlatBuffer(skeleton, paths, shapes, dtype, place)
    place.from_host(place.view("flat", buffer.flat), values)
    return buffer


def pack(structure: Any) -> FlatBuffer:
    """Copy arrays once into one contiguous, 64-byte aligned buffer.

    Parameters
    ----------
    structure : array, or nested lists, tuples, mappings, namedtuples and dataclasses of arrays
        Of one dtype, float32 or float64; any shapes and strides, NumPy scalars included. All NumPy's, or all of one
        other library and on one GPU.

    Returns
    -------
    FlatBuffer
        Its ``views`` have the structure that was given. The original arrays are no longer connected to it.

    Raises
    ------
    TypeError
        If a leaf is no array of float32 or float64, or the leaves are not all of one library.
    ValueError
        If dtypes or GPUs are mixed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = fastopt.pack({"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    >>> params.views["w"].shape, params.flat.size
    ((2, 3), 32)
    """
    paths, leaves = flatten(structure)
    place = place_of(paths, leaves)
    arrays = [_packable(path, leaf, place) for path, leaf in zip(paths, leaves, strict=True)]
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) > 1:
        names = " and ".join(sorted(dtype.name for dtype in dtypes))
        raise ValueError(f"a FlatBuffer holds one dtype, got {names}: pack each dtype by itself or cast first")
    dtype = dtypes.pop() if dtypes else np.dtype(np.float32)
    nesting = _with_views(structure if is_container(structure) else [structure])
    buffer = FlatBuffer(nesting, paths, [array.shape for array in arrays], dtype, place)
    for path, view, array in zip(paths, buffer.arrays, arrays, strict=True):
        place.copy(place.view(path, view), array)
    return buffer


def _with_views(structure: Any) -> Any:
    """The structure with buffers replaced by their views."""
    return rebuild(structure, lambda leaf: leaf.views if isinstance(leaf, FlatBuffer) else leaf)


def _packable(path: str, leaf: Any, place: Place) -> AnyArray:
    array = leaf
    if place.on_gpu:
        array = place.view(path, leaf)
    elif not isinstance(leaf, (np.ndarray, np.generic)) or isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{path}: expected a NumPy array, got {type(leaf).__name__}")
    if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
        raise TypeError(f"{path}: expected float32 or float64 in native byte order, got {array.dtype}: cast it first")
    return array
