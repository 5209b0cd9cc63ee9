"""A file of arrays: written from where they lie and read to where they belong, without a copy of all of them."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from .faults import CheckpointError
from .header import LONGEST, Entry, Header, decoded, encoded, laid_out

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], Any]

CHUNK = 1 << 22
"""Bytes that are read or written at a time."""


class Item(NamedTuple):
    """An array to be written: name, dtype as `header.DTYPES` calls it, shape; ``fetch`` gives it, as a NumPy array."""

    name: str
    code: str
    shape: tuple[int, ...]
    fetch: Callable[[], Array]


def write(file: FileIO, items: list[Item], text: str, progress: Progress | None = None) -> None:
    """Write arrays, and a text, into an empty file: the arrays first, the header with their checksums last.

    Each chunk is copied once: what is written is what its checksum is of, whoever changes the array meanwhile.
    """
    entries = laid_out(item[:3] for item in items)
    by_name = {item.name: item for item in items}
    start = len(encoded(Header(entries, [0] * len(entries), text)))
    done, total = start, start + sum(entry.end - entry.begin for entry in entries.values())
    file.seek(start)
    sums = []
    with _Checksums() as checksums:
        for name in entries:
            number = 0
            for chunk in _chunks(by_name[name].fetch()):
                checksums.begin(chunk, number)
                _write_all(file, chunk)
                number = checksums.end()
                done += len(chunk)
                if progress is not None:
                    progress(done - start, total)
            sums.append(number)
    file.seek(0)
    _write_all(file, memoryview(encoded(Header(entries, sums, text))))
    if progress is not None:
        progress(total, total)


class _Checksums:
    """Works out checksums beside the writing: neither needs Python's lock.

    The thread is our own: those of `concurrent.futures` take no more work once the interpreter ends, when a save in the
    background is still waited for.
    """

    def __enter__(self) -> _Checksums:
        self._chunks: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._sums: SimpleQueue[int] = SimpleQueue()
        try:
            Thread(target=self._work, name="fastopt, checksums", daemon=True).start()
            self._is_aside = True
        except RuntimeError:  # there may be no more threads: of this process, or as it ends
            self._is_aside = False
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.put(None)

    def begin(self, chunk: memoryview, number: int) -> None:
        """Begin with the checksum of a chunk, where that of what came before is ``number``."""
        self._chunks.put((chunk, number))

    def end(self) -> int:
        """The checksum."""
        if not self._is_aside:
            self._chunks.put(None)
            self._work()
        return self._sums.get()

    def _work(self) -> None:
        while (work := self._chunks.get()) is not None:
            self._sums.put(zlib.crc32(*work))


def _chunks(array: Array) -> Iterator[memoryview]:
    """The bytes of an array in C order, in copies that are good until the next one."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    length = min(array.size, CHUNK // array.itemsize)
    buffer = np.empty(length, array.dtype)
    for start in range(0, array.size, max(length, 1)):
        part = buffer[: array.size - start]
        part[...] = _run(array, start, start + len(part))
        yield _bytes_of(part)


def _run(array: Array, start: int, stop: int) -> Array:
    """Elements of an array in C order."""
    return array.reshape(-1)[start:stop] if array.flags.c_contiguous else array.flat[start:stop]


def _bytes_of(array: Any) -> memoryview:
    """The memory of an array without gaps, of one axis."""
    return memoryview(array.view(np.uint8))


def _write_all(file: FileIO, part: memoryview) -> None:
    while part:
        part = part[file.write(part) or 0 :]


class _Source(NamedTuple):
    """A file from which arrays are read: its path, where their bytes begin, and room for some of these."""

    file: FileIO
    path: str
    start: int
    buffer: Array

    def fill(self, part: memoryview) -> None:
        """Read as many bytes as there is room for."""
        while part:
            count = self.file.readinto(part)
            if not count:
                raise CheckpointError(f"{self.path}: it became shorter while it was read: write to it by save() only")
            part = part[count:]


class Stored:
    """An array in an open file. NumPy reads it as if it were one; `read_into` does without a copy of it.

    Attributes
    ----------
    code : str
        Its dtype as `header.DTYPES` calls it.
    shape : tuple of int
    dtype : numpy.dtype
        Of a bfloat16: of its bit patterns.
    """

    def __init__(self, source: _Source, entry: Entry, dtype: np.dtype[Any]) -> None:
        self._source, self._entry = source, entry
        self.code, self.shape, self.dtype = entry.code, entry.shape, dtype

    def as_bits(self) -> Stored:
        """The same; a number of 16 bits as its bit patterns."""
        return Stored(self._source, self._entry, np.dtype(np.uint16) if self.code == "F16" else self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = np.empty(self.shape, self.dtype)
        self.read_into(found)
        return found if dtype is None else found.astype(dtype, copy=False)

    def read_into(self, array: Array) -> None:
        """Fill an array of the same shape and dtype, in any order of its axes.

        Raises
        ------
        OSError, CheckpointError
            If the file cannot be read, or has become shorter: then the array is filled in part.
        """
        self._source.file.seek(self._source.start + self._entry.begin)
        if array.flags.c_contiguous and array.dtype == self.dtype:
            flat = _bytes_of(array.reshape(-1))
            for start in range(0, len(flat), CHUNK):
                self._source.fill(flat[start : start + CHUNK])
            return
        numbers, start = self._source.buffer.view(self.dtype), 0
        while start < array.size:
            part = numbers[: array.size - start]
            self._source.fill(_bytes_of(part))
            array.flat[start : start + len(part)] = part
            start += len(part)

    def checksum(self) -> int:
        """The CRC-32 of its bytes."""
        self._source.file.seek(self._source.start + self._entry.begin)
        left, number = self._entry.end - self._entry.begin, 0
        while left:
            part = _bytes_of(self._source.buffer)[:left]
            self._source.fill(part)
            left, number = left - len(part), zlib.crc32(part, number)
        return number


@contextmanager
def opened(path: str) -> Iterator[tuple[dict[str, Stored], str]]:
    """Open a file for reading: its arrays by name, and its text, when all checksums are right.

    Raises
    ------
    CheckpointError
        If it is not as `write` writes it.
    OSError
        If it cannot be read.
    """
    with open(path, "rb", buffering=0, opener=_opener) as file:
        size = _size_of(file, path)
        source = _Source(file, path, 0, np.empty(CHUNK, np.uint8))
        whole = _header_of(source, size)
        try:
            header = decoded(whole, size)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}: {_ADVICE}") from None
        source = source._replace(start=len(whole))
        arrays = {name: Stored(source, entry, entry.dtype) for name, entry in header.entries.items()}
        for (name, array), number in zip(arrays.items(), header.sums, strict=True):
            if array.checksum() != number:
                raise CheckpointError(f"{path}: the array {name!r} is damaged: {_ADVICE}")
        yield arrays, header.text


_ADVICE = "load another checkpoint, such as an earlier one that save(keep=...) has kept"


def _opener(path: str, flags: int) -> int:
    """Open without waiting for whoever writes to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _size_of(file: FileIO, path: str) -> int:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: it is no regular file: give the path of a file that save() wrote")
    return status.st_size


def _header_of(source: _Source, size: int) -> bytes:
    """The first bytes of a file, as many as it says, and it can have."""
    length = bytearray(min(8, size))
    source.fill(memoryview(length))
    count = int.from_bytes(length, "little")
    if len(length) < 8 or count > min(LONGEST, size - 8):
        raise CheckpointError(f"{source.path}: it is no safetensors file, or was cut off: {_ADVICE}")
    rest = bytearray(count)
    source.fill(memoryview(rest))
    return bytes(length + rest)
