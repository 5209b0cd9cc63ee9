"""The header of a *safetensors* file: which arrays there are, where they lie, and texts. It is JSON, and not believed.

Eight bytes of length, the header, the arrays' bytes one after the other. Source of the format:
https://github.com/huggingface/safetensors#format. What this adds lies in texts, where the format has room for anything:
checksums (CRC-32) of every array and of the header itself, each at a place that is known before its value is.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

LONGEST = 100_000_000
"""Bytes of a header, as for the library that the format comes from."""

MOST = 2**63
"""Sizes are below."""

MOST_AXES = 32

ALIGNMENT = 64
"""The arrays' bytes begin at a multiple of it."""

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
"""What the format calls dtypes. NumPy has no bfloat16: such an array is its bit patterns."""

CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items() if code != "BF16"}

_BEGIN = '{"__metadata__":{"crc32":"'
_BLANK = "0" * 8
_KEYS = {"crc32", "sums", "fastopt"}


class Entry(NamedTuple):
    """Where an array lies, counted from the first byte after the header."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is read: of a bfloat16, its bits."""
        return np.dtype(DTYPES[self.code])


class Header(NamedTuple):
    """What a file says of itself: its arrays by name, in the order in which they lie, their checksums, a text."""

    entries: dict[str, Entry]
    sums: list[int]
    text: str


def laid_out(arrays: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Arrays of a name, code and shape one after the other; the widest numbers first, so that all are aligned."""
    entries: dict[str, Entry] = {}
    end = 0
    for name, code, shape in sorted(arrays, key=lambda each: -np.dtype(DTYPES[each[1]]).itemsize):
        begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[code]).itemsize
        entries[name] = Entry(code, shape, begin, end)
    return entries


def encoded(header: Header) -> bytes:
    """The first bytes of a file, up to those of its arrays: as many, whatever the checksums are.

    Raises
    ------
    ValueError
        If there is too much of it.
    """
    sums = "".join(f"{number:08x}" for number in header.sums)
    arrays = {
        name: {"dtype": entry.code, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
        for name, entry in header.entries.items()
    }
    content = {"__metadata__": {"crc32": _BLANK, "sums": sums, "fastopt": header.text}, **arrays}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > LONGEST:
        raise ValueError(f"a header of {len(text)} bytes is too long: keep large values in extra as arrays")
    whole = len(text).to_bytes(8, "little") + text
    place = 8 + len(_BEGIN)
    return whole[:place] + f"{zlib.crc32(whole):08x}".encode() + whole[place + 8 :]


def decoded(whole: bytes, size: int) -> Header:
    """Read what `encoded` wrote, in a file of ``size`` bytes.

    Raises
    ------
    ValueError
        If anything about it is not as it must be.
    """
    begin, place = _BEGIN.encode(), 8 + len(_BEGIN)
    _check(whole[8:place] == begin, "it was not written by fastopt, or its beginning is damaged")
    blank = whole[:place] + _BLANK.encode() + whole[place + 8 :]
    _check(whole[place : place + 8] == f"{zlib.crc32(blank):08x}".encode(), "its header is damaged")
    content = parsed(whole[8:])
    texts = content.pop("__metadata__")
    _check(isinstance(texts, dict) and texts.keys() == _KEYS, "its header lacks fastopt's texts")
    _check(all(isinstance(text, str) for text in texts.values()), "its header holds other things than texts")
    entries = {name: _entry(name, told) for name, told in content.items()}
    _check_places(entries, size - len(whole))
    _check(
        re.fullmatch("[0-9a-f]*", texts["sums"]) is not None and len(texts["sums"]) == 8 * len(entries),
        "its header does not have a checksum for each array",
    )
    sums = [int(texts["sums"][k : k + 8], 16) for k in range(0, len(texts["sums"]), 8)]
    return Header(entries, sums, texts["fastopt"])


def parsed(text: str | bytes) -> dict[str, Any]:
    """A JSON object whose keys differ.

    Raises
    ------
    ValueError
        If it is none, or nested too deeply.
    """
    try:
        content = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    _check(isinstance(content, dict), "its header is no JSON object")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _entry(name: str, told: Any) -> Entry:
    what = f"its header says nonsense of the array {name[:200]!r}"
    _check(isinstance(told, Mapping) and told.keys() == {"dtype", "shape", "data_offsets"}, what)
    code, shape, places = told["dtype"], told["shape"], told["data_offsets"]
    _check(isinstance(code, str) and code in DTYPES, f"{what}: a dtype that fastopt does not know")
    _check(is_shape(shape), f"{what}: no shape")
    _check(_are_counts(places) and len(places) == 2 and places[0] <= places[1], f"{what}: no place in the file")
    entry = Entry(code, tuple(shape), *places)
    _check(math.prod(shape) * entry.dtype.itemsize == entry.end - entry.begin, f"{what}: shape and place differ")
    return entry


def is_shape(shape: Any) -> bool:
    """Whether a list can be the shape of an array."""
    return _are_counts(shape) and len(shape) <= MOST_AXES and math.prod(filter(None, shape)) * 8 < MOST


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < MOST for number in numbers)


def _check_places(entries: Mapping[str, Entry], size: int) -> None:
    """Refuse arrays that overlap, leave gaps, or do not end where the file does."""
    end = 0
    for name, entry in entries.items():
        _check(entry.begin == end, f"the array {name[:200]!r} does not begin where the one before it ends")
        end = entry.end
    _check(end == size, f"its arrays take {end} bytes, and {size} are there: it was cut off, or added to")


def _check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)
