"""Models by the shapes of their parameters: as typed, by name, or from the header of a file."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastopt.bench.shapes import MODELS, Shape

from .runs import UsageError

SHAPE = re.compile(r"(?:(\d{1,5})\*)?(\d{1,18}(?:x\d{1,18})*)", re.IGNORECASE)
"""How often, and the extents."""

ELEMENTS = re.compile(r"(\d{1,18}(?:\.\d*)?(?:e\d{1,2})?)([kmbt]?)", re.IGNORECASE)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

NAMES = [name for name in MODELS if not name.startswith("4")]
"""Those of models, not of benchmarks."""


def shapes_of(text: str) -> list[Shape]:
    """Shapes of the parameters of what was typed for ``--model``.

    A name, as ``gpt2``; a file or folder of safetensors, or a file of NumPy's ``savez``; shapes between commas, as
    ``50257x768,12*768x3072,768``; or the elements of one array, as ``124e6`` or ``7B``.

    Raises
    ------
    UsageError
        If it is none of these, or the file cannot be read.
    """
    if text.lower() in MODELS:
        return MODELS[text.lower()]()
    number = ELEMENTS.fullmatch(text)
    if number:
        return [(round(float(number[1]) * UNITS[number[2].lower()]),)]
    parts = [SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    found = [part for part in parts if part]
    if len(found) == len(parts):
        return [shape for part in found for shape in [_shape(part[2])] * int(part[1] or 1)]
    path = Path(text).expanduser()
    if path.suffix in READERS or _exists(path):
        return _shapes_in(path)
    raise UsageError(
        f"--model takes shapes as 50257x768,12*768x3072,768, a number of elements as 7B, a file of "
        f"{' or '.join(READERS)}, or {', '.join(NAMES)}; got {text!r}"
    )


def _shape(text: str) -> Shape:
    return tuple(map(int, text.lower().split("x")))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # of names that are too long
        return False


def _shapes_in(path: Path) -> list[Shape]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(file.suffix not in READERS for file in files):
        raise UsageError(f"--model {path}: expected a file of {' or '.join(READERS)}, or a folder of .safetensors")
    try:
        found = [shape for file in files for shape in READERS[file.suffix](file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"--model {path}: cannot be read: {error}") from error
    if not found:
        raise UsageError(f"--model {path}: has no arrays of floating-point numbers")
    return found


def _in_safetensors(path: Path) -> Iterator[Shape]:
    """Read the header: eight bytes with its length, then JSON. https://huggingface.co/docs/safetensors"""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is cut off, or it is no file of safetensors")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"].startswith(("F", "BF")):
            yield tuple(tensor["shape"])


def _in_npz(path: Path) -> Iterator[Shape]:
    """Read the header of each array; bfloat16 of ml_dtypes is stored as two bytes of no kind."""
    from numpy.lib import format as headers

    readers = {(1, 0): headers.read_array_header_1_0, (2, 0): headers.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shape, _, dtype = readers[headers.read_magic(file)](file)
            if dtype.kind in "fV":
                yield shape


READERS: dict[str, Callable[[Path], Iterator[Shape]]] = {".safetensors": _in_safetensors, ".npz": _in_npz}
