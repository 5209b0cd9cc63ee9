"""Compiled code on disk: where it is kept, by what name, and how a file is written and trusted.

Numba's own cache keeps one index per function, keyed by that function's source file: editing a rule that the kernel
calls goes unnoticed, and one unreadable entry spoils the others. Ours keeps one file per specialisation, named by
everything that its machine code depends on, and guarded by a checksum.
"""

import contextlib
import functools
import hashlib
import os
import platform
import stat
import sys
import tempfile
from pathlib import Path

import llvmlite
import numba
import numpy as np
from llvmlite import binding as llvm


def cache_path(name, key, *parts):
    """The file for compiled code, named by all that the code depends on; None: it must not, or cannot, be kept.

    ``key`` is a `fingerprint` of what was compiled, ``parts`` is what else tells one compilation from another.
    """
    folder = cache_folder()
    if key is None or folder is None or build_key() is None:
        return None
    content = " ".join(map(str, (build_key(), name, *parts, key)))
    return folder / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:24]}.fastopt"


def read_cached(path):
    """The bytes that `write_cached` kept in a file; None if it is not there or was damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, payload = content[:32], content[32:]
    return payload if _checksum(path, payload) == checksum else None


def _checksum(path, payload):
    """Digest the file's name, too: under another name, which tools that copy folders may give it, it is other code."""
    return hashlib.sha256(path.name.encode() + b"\0" + payload).digest()


def write_cached(path, serialise):
    """Keep the bytes that ``serialise()`` gives, with their checksum. Whatever prevents that, the caller carries on."""
    try:
        payload = serialise()
        _remove_leftovers(path.parent)
        _replace(path, _checksum(path, payload) + payload)
    except Exception as error:
        _report_unwritten(path, error)


def _replace(path, content):
    """Write a file that is there in full or not at all."""
    descriptor, name = tempfile.mkstemp(UNFINISHED, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


UNFINISHED = ".fastopt-unfinished"
"""How the name ends of what is being written."""

LEFTOVER_AGE = 3600
"""Seconds after which nobody is writing it any more."""


@functools.cache
def _remove_leftovers(folder):
    """Remove what processes left that were killed while they wrote; once per process."""
    patterns = [f"*{UNFINISHED}"]
    if folder.name == "fastopt":  # nobody else's, so that even the names are ours that earlier versions gave
        patterns.append("tmp" + "[a-z0-9_]" * 8)
    with tempfile.TemporaryFile(dir=folder) as file:
        now = os.fstat(file.fileno()).st_mtime  # by the clock of whoever keeps the folder
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # another process is doing the same
            if now - path.stat().st_mtime > LEFTOVER_AGE:
                path.unlink()


def _report_unwritten(path, error):
    if os.environ.get("FASTOPT_CACHE_DEBUG"):
        print(f"fastopt: not cached: {path.name}: {error!r}", file=sys.stderr)


@functools.cache
def cache_folder():
    """The folder that compiled code is kept in, or None where none can be written.

    ``$FASTOPT_CACHE_DIR`` if it is set; else the first of ``$NUMBA_CACHE_DIR/fastopt`` and ``fastopt`` in the user's
    cache folder that can be created and written. Never a folder that other users can write to: what lies there is
    executed.
    """
    for candidate in _candidate_folders():
        try:
            candidate.mkdir(parents=True, exist_ok=True, mode=0o700)
            tempfile.TemporaryFile(dir=candidate).close()
        except OSError:
            continue
        if _is_private(candidate):
            return candidate
    return None


def _is_private(folder):
    """Whether nobody else can write to a folder: what lies there is executed. Windows keeps user folders so itself."""
    if os.name != "posix":
        return True
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _candidate_folders():
    chosen = os.environ.get("FASTOPT_CACHE_DIR")
    if chosen:
        return [Path(chosen).absolute()]
    candidates = []
    if os.environ.get("NUMBA_CACHE_DIR"):
        candidates.append(Path(os.environ["NUMBA_CACHE_DIR"]).absolute() / "fastopt")
    user = Path(os.path.expanduser("~"))
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        candidates.append(Path(os.environ["LOCALAPPDATA"]) / "fastopt")
    elif sys.platform == "darwin":
        candidates.append(user / "Library" / "Caches" / "fastopt")
    else:
        candidates.append(Path(os.environ.get("XDG_CACHE_HOME") or user / ".cache") / "fastopt")
    return [folder for folder in candidates if folder.is_absolute()]


def _work_out_build_key():
    """Digest of what all compiled code depends on: the kernels' sources, the compilers, the processor."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent
    sources = sorted(folder.rglob("*.py"))
    if not sources:  # an installation as bytecode, or in an archive: nothing tells one version from the next
        return None
    for path in sources:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    for part in (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), sys.abiflags):
        digest.update(f"{part}\0".encode())
    digest.update(f"{llvm.get_default_triple()} {numba.config.CPU_NAME} {numba.config.CPU_FEATURES}".encode())
    digest.update(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())
    return digest.hexdigest()


# Now, while these sources are being imported: a later edit must not pass for what this process compiled.
_BUILD_KEY = _work_out_build_key()


def build_key():
    """Digest of what all compiled code depends on: these sources, the compilers, the processor. None: unknown."""
    return _BUILD_KEY
