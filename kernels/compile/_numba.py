"""What fastopt uses of Numba that Numba does not document: all of it, each with the reason why.

Without what is imported here there is no fastopt: where a version of Numba lacks it, importing fastopt says so in one
sentence. What else may have changed is noticed when it is first needed, and done without.
"""

import contextlib
import os
import pickle
import warnings
from importlib import import_module

import numba

KNOWN = "0.61 to 0.68"
"""Versions of Numba that all of this was seen to work with; pyproject.toml says so too."""


def imported(module, name=None):
    """One of Numba's own modules, or what has a name there.

    Raises
    ------
    ImportError
        If Numba has none.
    """
    try:
        found = import_module(f"numba.{module}")
        return getattr(found, name) if name else found
    except (AttributeError, ImportError) as error:
        raise ImportError(f"{_without(f'numba.{module}.{name or str()}'.rstrip('.'))}: install one of these") from error


def _without(what):
    return f"Numba {numba.__version__} has no {what}, as Numba {KNOWN} has, which fastopt is known to work with"


# -- while code is generated -------------------------------------------------------------------------------------------

global_compiler_lock = imported("core.compiler_lock", "global_compiler_lock")
"""Held by whoever compiles. Nothing public tells whether another thread does, or keeps it from it during a fork."""

cgutils = imported("core.cgutils")
"""Helpers for intrinsics: Numba's documentation shows them in examples, and says nothing else of them."""

_populate_array = imported("np.arrayobj", "populate_array")


def array_value(context, builder, array, address, shape, strides):
    """An array of a type over memory at an address. `numba.carray` makes contiguous ones only, and of pointers."""
    value = context.make_array(array)(context, builder)
    itemsize = array.dtype.bitwidth // 8
    _populate_array(
        value,
        data=builder.inttoptr(address, context.get_data_type(array.dtype).as_pointer()),
        shape=cgutils.pack_array(builder, shape),
        strides=cgutils.pack_array(builder, strides),
        itemsize=context.get_constant(numba.types.intp, itemsize),
        meminfo=None,
    )
    return value._getvalue()


@contextlib.contextmanager
def without_gil(context, builder):
    """Code generated inside runs without the GIL. What is public, ``nogil=True``, is for whole functions."""
    python = context.get_python_api(builder)
    thread = python.save_thread()
    yield
    python.restore_thread(thread)


def in_python(body):
    """Decorator of an intrinsic: ``body`` is what a call from plain Python does.

    Numba has its intrinsics refuse that. A plain function with `numba.extending.overload` could do both, and costs a
    compilation of its own for every intrinsic and its types: first builds took a sixth longer. Where an intrinsic's
    class cannot be another one, it goes on to refuse, which is noticed by what is interpreted.
    """

    def attach(native):
        kind = type(native)
        called = {"__call__": lambda self, *given, **named: body(*given, **named)}
        with contextlib.suppress(TypeError):
            native.__class__ = type(kind.__name__, (kind,), called)
        return native

    return attach


_FunctionIdentity = imported("core.bytecode", "FunctionIdentity")


class _Apart:
    """Gives a number that no other process gives, forked ones included."""

    def __next__(self):
        return int.from_bytes(os.urandom(7))


def name_symbols_apart():
    """Have the symbols of what is compiled from now on differ from those of other processes.

    They are made of a counter, and of two symbols that are equal the first counts: of two versions of a function that
    two processes have compiled and cached, a third one would run but one. Where Numba has another counter, it does.
    """
    if hasattr(_FunctionIdentity, "_unique_ids"):
        _FunctionIdentity._unique_ids = _Apart()


name_symbols_apart()


# -- compiled code -----------------------------------------------------------------------------------------------------


def entry_point(dispatcher):
    """The machine code for a dispatcher's one signature, as Python calls it; the dispatcher where it cannot be found.

    Every public call of a dispatcher first looks up what it has for the arguments' types.
    """
    (compiled,) = dispatcher.overloads.values()
    return getattr(compiled, "entry_point", dispatcher)


def c_address(dispatcher):
    """Return the address of the machine code for a dispatcher's one signature, for calls as of a C function.

    The public way, `numba.cfunc`, compiles all a second time, and keeps it on disk with Numba's own cache alone. It is
    what is done where the address cannot be found.
    """
    (compiled,) = dispatcher.overloads.values()
    try:
        return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    except AttributeError:
        (signature,) = dispatcher.nopython_signatures
        again = numba.cfunc(signature, error_model="numpy")(dispatcher.py_func)
        _kept.append(again)
        return again.address


_kept: list[object] = []
"""Machine code lives as long as these."""


def options_of(dispatcher):
    """Return what a dispatcher was decorated with; None if that cannot be told. Nothing public says."""
    options = getattr(dispatcher, "targetoptions", None)
    return None if options is None else sorted(options.items())


# -- compiled code on disk ---------------------------------------------------------------------------------------------

_keeping = {"is_tried": False, "fails": False}


def packed(dispatcher):
    """The compiled code of a dispatcher's one signature as bytes, for `unpack`; None where it cannot be kept.

    Numba's public cache (``cache=True``) goes by the decorated function's file, and does not notice an edit in what
    that calls. Whether the bytes can be read is tried with the first that a process makes. Where a version of Numba
    cannot do that, a warning says once that nothing is kept.
    """
    if _keeping["fails"]:
        return None
    (compiled,) = dispatcher.overloads.values()
    try:
        payload = None if compiled.library.has_dynamic_globals else _packed(compiled)
        if payload and not _keeping["is_tried"] and not compiled.reload_init:
            _try_out(payload)
        return payload
    except Exception:  # of whatever kind, in whatever version
        if not _can_keep_anything():
            _keeping["fails"] = True
            warnings.warn(
                f"{_without('compiled code that can be kept as')}: each process compiles anew", RuntimeWarning, 2
            )
        return None


def unpack(dispatcher, payload):
    """Give a dispatcher the compiled code of `packed`. Raises whatever comes of other bytes."""
    target = dispatcher.targetctx
    target.refresh()
    rebuild = imported("core.compiler", "CompileResult")._rebuild
    dispatcher.add_overload(rebuild(target, *pickle.loads(payload)))


def _packed(compiled):
    return imported("core.serialize", "dumps")(compiled._reduce())


def _try_out(payload):
    scratch = numba.njit(_nothing)
    unpack(scratch, payload)
    _kept.append(scratch)
    _keeping["is_tried"] = True


def _can_keep_anything():
    """Whether code that refers to nothing can be kept: if so, what could not is to blame itself."""
    smallest = numba.njit(_nothing)
    smallest.compile(())
    try:
        _try_out(_packed(*smallest.overloads.values()))
    except Exception:
        return False
    return True


def _nothing():
    """Do nothing."""
