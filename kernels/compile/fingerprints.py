"""Fingerprints of functions: what tells one version of a user's rule, and of all that it calls, from the next."""

import hashlib
import inspect
import types as pytypes

import numpy as np

from . import _numba


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


_IN_BUILD_KEY = (__name__.removesuffix(".compile.fingerprints"), "numpy", "numba", "math", "builtins")
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
