"""Where the tests keep compiled kernels: in the checkout, from one run to the next. Importing this imports no Numba.

No file of an earlier run can decide a test. A file's name is a digest of all that its code depends on: every source in
kernels/, the versions of Numba, llvmlite, NumPy and Python, the processor, the signature and the flags, and of the
user's own rule its code and all that this refers to. A file whose content was damaged, or that has another's name, is
compiled anew. `tests/test_cache.py` proves all of that, in folders of its own. What the digest leaves out are Numba's
switches: where one is set that changes code, nothing is kept. Nor is it where another fastopt is tested than the
checkout's, or the checkout is read-only.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".kernels"
LIMIT = 2**29
"""Bytes that are kept, ten times what one run needs: every edit of kernels/ leaves its files behind."""

SETTINGS = ("NUM_THREADS", "THREADING_LAYER", "ENABLE_CUDASIM", "DISABLE_JIT", "CACHE_DIR")
HARMLESS = {f"NUMBA_{name}" for name in SETTINGS}
"""Numba's settings that change no compiled code, or none that the name of its file does not tell."""


def folder():
    """The folder for this run and its children; one that is removed at its end where none can be kept."""
    if _is_kept() and _is_usable(KEPT):
        _remove_oldest(KEPT)
        return str(KEPT)
    own = tempfile.mkdtemp(prefix="fastopt-tests-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _is_kept():
    spec = importlib.util.find_spec("fastopt")
    tested = spec and spec.origin and Path(spec.origin).resolve().parent
    switches = {name for name in os.environ if name.startswith("NUMBA_")} - HARMLESS
    return tested == ROOT / "fastopt" and not switches and not Path(".numba_config.yaml").exists()


def _is_usable(path):
    """Whether fastopt will use it, which takes none that others can write to."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    status = path.stat()
    return os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def _remove_oldest(path):
    """Remove what goes beyond the limit; whoever still needs it compiles it anew."""
    with contextlib.suppress(FileNotFoundError):  # another run does the same
        files = [(file.stat().st_mtime, file.stat().st_size, file.path) for file in os.scandir(path)]
        total = 0
        for _, size, name in sorted(files, reverse=True):
            total += size
            if total > LIMIT:
                os.unlink(name)
