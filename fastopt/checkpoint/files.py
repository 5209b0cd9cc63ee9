"""Files that are there as a whole, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def replacing(path: str, keep: int = 1) -> Iterator[FileIO]:
    """Context with a new file, which takes the place of ``path`` when the block has ended well: all of it, or nothing.

    The new file lies in the same folder, and is on the disk before it takes the place, so that there is a whole file,
    the old or the new, after whatever end: of the block, the process, or the machine's power.

    Parameters
    ----------
    path : str
        A link's file is replaced, not the link. An existing file's permissions are kept.
    keep : int >= 1
        How many files to have: what was replaced is ``path.1`` then, what was that is ``path.2``, ….

    Raises
    ------
    OSError
        If the system cannot do it. The old file is there then, and nothing else.
    """
    target = os.path.realpath(path)
    before = _status(target)
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "there is something that is no regular file, and save() does not replace it", path)
    with _locked_folder(target):
        _remove_left_over(target)
    new = f"{_prefix(target)}{secrets.token_hex(8)}.tmp"
    try:
        with _created(new, before) as file:
            yield file
            os.fsync(file.fileno())
            with _locked_folder(target):
                if keep > 1:
                    _keep_old(target, keep, f"{new[:-4]}.old.tmp")
                if fcntl is None:
                    file.close()  # Windows renames no open file
                os.replace(new, target)
                _sync_folder(target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(new)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), path) from error
        raise


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _prefix(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.")


def _created(new: str, before: os.stat_result | None) -> FileIO:
    """A new file of our own, locked, with the owner and permissions of another one."""
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    while True:
        file = open(new, "xb", buffering=0, opener=lambda path, flags: os.open(path, flags, mode))  # noqa: SIM115
        try:
            if _lock(file.fileno(), wait=True) and _is_gone(file, new):
                file.close()  # somebody took it for one left over, before it was locked
                continue
            if before is not None and hasattr(os, "fchmod"):
                with suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), mode)
        except BaseException:
            file.close()
            raise
        return file


def _is_gone(file: FileIO, name: str) -> bool:
    found = _status(name)
    return found is None or not os.path.samestat(found, os.fstat(file.fileno()))


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file until it is closed, by whatever end of the process; whether it is now locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another one has it; or the file system knows no locks, then nothing is ever left over for us
        return False
    return True


def _remove_left_over(target: str) -> None:
    """Remove what processes that were killed have left: new files that nobody has locked."""
    folder, name = os.path.split(target)
    pattern = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{16}(\.old)?\.tmp")
    for found in filter(pattern.fullmatch, os.listdir(folder)):
        with suppress(OSError):  # it is somebody else's
            path = os.path.join(folder, found)
            with open(path, "rb", buffering=0) as file:
                if _lock(file.fileno(), wait=False) and not _is_gone(file, path):
                    os.unlink(path)


def _keep_old(target: str, keep: int, link: str) -> None:
    """Make ``target`` also ``target.1``, what is there ``target.2``, …; ``target`` is there at every moment."""
    names = [target, *(f"{target}.{k}" for k in range(1, keep))]
    there = _status(target)
    newest = _status(names[1])
    if there is None or (newest is not None and os.path.samestat(there, newest)):
        return  # nothing to keep; or it is kept already, and the process was killed before the new file came
    try:
        os.link(target, link)
    except OSError as error:
        if error.errno in _NO_LINKS:
            message = f"keep={keep} needs hard links, which cannot be made here: use keep=1"
            raise OSError(error.errno, message, target) from None
        raise
    try:
        for k in range(keep - 2, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(names[k], names[k + 1])
        os.replace(link, names[1])
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(link)
        raise


@contextmanager
def _locked_folder(target: str) -> Iterator[None]:
    """Context in which no other process, or thread, replaces files of this folder by `replacing`."""
    if fcntl is None:
        yield
        return
    folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(folder, wait=True)
        yield
    finally:
        os.close(folder)


def _sync_folder(target: str) -> None:
    """Have the folder's new entry on the disk, where the system knows such a thing."""
    if fcntl is None:
        return
    folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems know none
            raise
    finally:
        os.close(folder)
