"""How fastopt compiles: flags, specialisation and the cache on disk. Only this file and `_cuda_jit`, which does the
same for GPUs, spell Numba's decorators.

A *specialisation* is one kernel for one rule and one dtype. It is a clone of the kernel function with its own name and
its own globals (the scalars class, the dtype, the number of slots), compiled for one explicit signature, so that a call
with any other types is an error instead of a second compilation.

Numba's own cache keeps one index per function, keyed by that function's source file: editing a rule that the kernel
calls goes unnoticed, and one unreadable entry spoils the others. Ours keeps one file per specialisation, named by
everything that its machine code depends on, and guarded by a checksum.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import platform
import stat
import sys
import tempfile
import types as pytypes
from pathlib import Path

import llvmlite
import numba
import numpy as np
from llvmlite import binding as llvm
from numba import njit, types
from numba.extending import register_jitable

from . import _numba
from ._aside import aside

# The Python error model checks every division for zero, which blocks vectorisation. No fastmath: it gains nothing on
# memory-bound work, and without it no result depends on how elements are grouped into vectors, chunks and threads.
FLAGS = {"error_model": "numpy"}

callee = register_jitable(**FLAGS)
"""Decorator: a plain function that compiled kernels may call, on any device."""

INLINED_FLAGS = {**FLAGS, "forceinline": True}
"""For longer functions that loops call several times: a call that is left stops the loop from vectorising. And for
those that take a launch's tables, once a chunk: see `cpu`."""

inlined_callee = register_jitable(**INLINED_FLAGS)
"""Decorator: a `callee` that becomes part of its caller, whatever its length."""

compilations = 0
"""Number of specialisations that this process has compiled (not loaded from disk)."""

loads = 0
"""Number of specialisations that this process has loaded from disk."""


def specialise(kernel, name, signature, bindings, *, parallel=False, nogil=True, key=None):
    """Compile ``kernel`` for one signature, or load it from the cache.

    Parameters
    ----------
    kernel : function
        Its globals named in ``bindings`` are replaced in a private clone.
    name : str
        A readable name for the specialisation: part of the file name in the cache, seen in profilers.
    signature : numba signature
        The only one that the result accepts.
    bindings : dict
        Global name → value: dtype, scalars class, compiled callees.
    parallel : bool
        Whether ``prange`` runs on Numba's threads.
    nogil : bool
        Whether it releases the GIL while it runs.
    key : str or None
        Fingerprint of what ``bindings`` bring in. ``None`` means that it is unknown: do not cache.

    Returns
    -------
    dispatcher
        Compiled for ``signature`` alone; or `Interpreted`, where ``NUMBA_DISABLE_JIT`` is set.
    """
    clone = clone_of(kernel, name, bindings)
    if is_interpreted():
        return Interpreted(clone, signature)
    path = cache_path(clone.__name__, key, signature, parallel)
    flags = {"nogil": nogil, "parallel": parallel, **FLAGS}
    return aside(_compiled, clone, signature, flags, path, says=notice_of(clone.__name__, path))


def _compiled(clone, signature, flags, path):
    global compilations, loads
    dispatcher = njit(**flags)(clone)
    if path is not None and _is_loaded(dispatcher, path):
        loads += 1
    else:
        dispatcher.compile(signature)
        compilations += 1
        payload = None if path is None else _numba.packed(dispatcher)
        if payload is not None:
            write_cached(path, lambda: payload)
    dispatcher.disable_compile()
    _kept.append(dispatcher)
    return dispatcher


def _is_loaded(dispatcher, path):
    """Whether there was compiled code in a file. Whatever is wrong with it, the answer is to compile."""
    payload = read_cached(path)
    if payload is None:
        return False
    try:
        _numba.unpack(dispatcher, payload)
    except Exception:
        return False
    return True


_kept: list[object] = []
"""All that was compiled. Nothing frees machine code while this process forks, after an interrupt left it to nobody."""


def notice_of(name, path):
    """Word a notice for whoever waits for a compilation; none where its code lies at ``path``, None for nowhere."""
    if path is None:
        return f"fastopt: compiling {name} and others (not kept on disk)"
    if path.exists():
        return ""
    return f"fastopt: compiling {name} and others (once on this machine: kept in {path.parent})"


def entry_point(dispatcher):
    """The machine code of a specialisation as a plain function, which costs half as much to call.

    A dispatcher first looks up what it has compiled for the arguments' types. This takes them to be right.
    """
    if isinstance(dispatcher, Interpreted):
        return dispatcher
    return _numba.entry_point(dispatcher)


def c_address(dispatcher):
    """Return the address of a specialisation's machine code, for calls as of a C function on numbers."""
    if isinstance(dispatcher, Interpreted):
        return id(dispatcher)
    return aside(_numba.c_address, dispatcher)


def is_interpreted():
    """Whether Python is to run everything, slowly: ``NUMBA_DISABLE_JIT`` is set, as for coverage and debuggers."""
    return bool(numba.config.DISABLE_JIT)


class Interpreted:
    """A specialisation that Python runs as it stands. It is called like a compiled one, and warns as little.

    Parameters
    ----------
    function : function
    signature : numba signature or tuple of types
    """

    def __init__(self, function, signature):
        kinds = getattr(signature, "args", signature)
        self._kinds = [np.dtype(kind.name).type if isinstance(kind, types.Float) else None for kind in kinds]
        self._function = function
        _interpreted[id(self)] = self

    def __call__(self, *numbers):
        with np.errstate(all="ignore"):
            return self._function(*(kind(x) if kind else x for kind, x in zip(self._kinds, numbers, strict=True)))


_interpreted: dict[int, Interpreted] = {}
"""By the number that stands for its address. They live on, as machine code does."""


def call_interpreted(address, *numbers):
    """Call what `c_address` was asked for."""
    return _interpreted[address](*numbers)


def clone_of(kernel, name, bindings):
    """A copy of a function with a name of its own, whose globals named in ``bindings`` are replaced."""
    qualified = f"{kernel.__name__}_{name}"
    clone = pytypes.FunctionType(kernel.__code__, {**kernel.__globals__, **bindings}, qualified)
    clone.__qualname__ = qualified
    clone.__module__ = kernel.__module__
    return clone


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
    """Sum up the file's name, too: under another name, which tools that copy folders may give it, it is other code."""
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


def fingerprint(*functions):
    """Digest of functions and all that they refer to, or None if that cannot be told.

    Follows helper functions, classes, constants and attributes of modules through globals and closures, so that an edit
    anywhere in a user's rule is noticed. Functions of ``__main__`` have no fingerprint: another script's ``__main__``
    could not load them.
    """
    digest = hashlib.sha256()
    try:
        for function in functions:
            _digest_value(function, digest, set())
    except _Opaque:
        return None
    return digest.hexdigest()


class _Opaque(Exception):
    """A value whose content cannot be fingerprinted."""


_IN_BUILD_KEY = (__name__.removesuffix(".compile._jit"), "numpy", "numba", "math", "builtins")
"""Modules whose version or source the build key holds."""


def _is_in_build_key(module):
    return any(module == known or module.startswith(f"{known}.") for known in _IN_BUILD_KEY)


def _digest_value(value, digest, seen):
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype, range, slice)):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, (tuple, list, set, frozenset)):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for item in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
            _digest_value(item, digest, seen)
    elif id(value) in seen:
        digest.update(b"again")
    else:
        seen.add(id(value))
        _digest_object(value, digest, seen)


def _digest_object(value, digest, seen):
    if hasattr(value, "py_func"):  # a Numba dispatcher
        options = _numba.options_of(value)
        if options is None:
            raise _Opaque
        _digest_value(options, digest, seen)
        value = value.py_func
    module = str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
    if module == "__main__":
        raise _Opaque
    if isinstance(value, pytypes.CodeType):
        _digest_code(value, digest, seen)
    elif isinstance(value, (pytypes.ModuleType, pytypes.BuiltinFunctionType)) or _is_in_build_key(module):
        digest.update(f"{module}.{getattr(value, '__qualname__', '')};".encode())
    elif inspect.isfunction(value):
        digest.update(f"{module}.{value.__qualname__};".encode())
        _digest_code(value.__code__, digest, seen)
        for item in (value.__defaults__, sorted((value.__kwdefaults__ or {}).items()), *_references(value)):
            _digest_value(item, digest, seen)
    elif isinstance(value, type) and hasattr(value, "_fields"):
        digest.update(f"{module}.{value.__qualname__}{value._fields};".encode())
    else:
        raise _Opaque


def _digest_code(code, digest, seen):
    digest.update(code.co_code)
    for part in (code.co_names, code.co_varnames, code.co_freevars, code.co_consts):
        _digest_value(part, digest, seen)


def _references(function):
    """Find what the function's code, and code inside it, can name: globals, attributes of modules, closure cells."""
    names = sorted(_names_in(function.__code__))
    yield from (cell.cell_contents for cell in function.__closure__ or ())
    pending = [function.__globals__[name] for name in names if name in function.__globals__]
    visited = set()
    while pending:
        value = pending.pop()
        yield value
        if isinstance(value, pytypes.ModuleType) and not _is_in_build_key(value.__name__) and id(value) not in visited:
            visited.add(id(value))
            pending += [getattr(value, name) for name in names if hasattr(value, name)]


def _names_in(code):
    inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, pytypes.CodeType)]
    return set(code.co_names).union(*inner)
