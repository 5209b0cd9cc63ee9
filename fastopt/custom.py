"""A user's own rule, made an optimizer class."""

from __future__ import annotations

import inspect
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numba import NumbaError, UnsupportedBytecodeError

from .formats import BESIDE
from .kernels.registry import Slot, two_phase_rule
from .kernels.registry import rule as register_elementwise
from .optimizer import Optimizer
from .parameters import Array, check_number
from .registry import add, is_built_in
from .signatures import COMMON, FORMAT, common_arguments, hyper_parameters


def register_rule(
    name: str,
    rule: Callable[..., Any],
    scalars_type: type,
    *,
    slots: Mapping[str, float] | None = None,
    defaults: Mapping[str, Any] | None = None,
    scalars: Callable[[dict[str, Any], float, int], Any] | None = None,
    between: Callable[..., Any] | None = None,
    second: Callable[..., Any] | None = None,
    squares: Sequence[str] = (),
) -> type[Optimizer]:
    """Make an optimizer class of your own rule: same kernels, clipping, averages and state as the built-in ones.

    Parameters
    ----------
    name : str
        Of the class.
    rule : function
        ``(param, grad, slots, s) -> (param, slots)`` over numbers and tuples of numbers, in the language that Numba
        compiles: a plain function, or one decorated with ``numba.njit``, whose flags are not used.
        With ``second``: the first phase, ``-> (terms, slots)``, where ``terms`` is a tuple of numbers to be summed over
        the parameter.
    scalars_type : NamedTuple class
        Of ``s``. Its values come in the parameter's dtype.
    slots : mapping
        Slot name → what it starts as.
    defaults : mapping
        Hyper-parameters, in the order of the class's signature, ``learning_rate`` among them.
    scalars : function
        ``(h, learning_rate, t) -> scalars_type``: from the hyper-parameters' values, the current rate and the number of
        the update, from 1. Default: the fields of ``scalars_type``, by name.
    between, second : functions
        For two phases: ``(sums, n, s) -> number`` per parameter of ``n`` elements, then
        ``(param, grad, slots, number, s) -> param``.
    squares : sequence of str
        Names of slots that hold means of squares, or such: never negative, over many powers of ten. It matters for
        ``slot_dtype="8bit"``, see `fastopt.formats`.

    Returns
    -------
    subclass of Optimizer
        Known to `get` under its name.

    Raises
    ------
    TypeError, ValueError
        If the pieces do not fit together; the rule is tried on plain numbers first. What passes there and yet is not in
        Numba's language is a TypeError when an optimizer is built.
    """
    for key, mapping in (("slots", slots), ("defaults", defaults)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f"{name}: {key} must be a dict, got {type(mapping).__name__}")
    rule, between, second = (
        _function(f"{name}: {key}", function)
        for key, function in (("rule", rule), ("between", between), ("second", second))
    )
    starts, defaults = dict(slots or {}), dict(defaults or {})
    _check_names(name, scalars_type, starts, defaults, between, second)
    fields = scalars_type._fields  # type: ignore[attr-defined]
    make = scalars or (lambda h, rate, t: scalars_type(**{f: rate if f == "learning_rate" else h[f] for f in fields}))
    # A type of its own: the same scalars_type may serve several rules, or a later version of this one.
    private = type(scalars_type.__name__, (scalars_type,), {"__slots__": ()})
    values = {key: _value(value) for key, value in defaults.items()}
    try:
        sample = make(values, float(values.get("learning_rate", 0.01)), 1)
    except KeyError as error:
        raise ValueError(f"{name}: the scalars need {error}, which is not among the defaults") from None
    if not isinstance(sample, scalars_type):
        raise TypeError(f"{name}: scalars must return a {scalars_type.__name__}, got {type(sample).__name__}")
    _check_numbers(f"{name}: scalars", sample)
    kept = _described(name, starts, squares)
    terms = _try(name, rule, second, between, starts, sample)
    if second is not None:
        two_phase_rule(private, rule, between, second, terms, kept)
    else:
        register_elementwise(private, kept)(rule)

    class Registered(Optimizer):
        def _plan(self, keep: dict[str, Array] | None = None) -> None:
            try:
                super()._plan(keep)
            except (NumbaError, UnsupportedBytecodeError) as error:
                raise TypeError(
                    f"{name}: Numba cannot compile the rule {rule.__name__}: it may work on numbers and tuples of them "
                    "only, and call functions that Numba knows or that numba.njit has compiled; see the error above"
                ) from error

        def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
            values = {key: _value(getattr(self, key)) for key in self._own}
            return private(*make(values, learning_rate, t))

    Registered.__init__ = _init_with(defaults)  # type: ignore[method-assign]
    Registered.__name__ = Registered.__qualname__ = name
    Registered.__module__ = sys._getframe(1).f_globals.get("__name__", __name__)
    Registered.__doc__ = rule.__doc__ or f"The rule {rule.__name__}."
    return add(Registered)


def _described(name: str, starts: dict[str, float], squares: Sequence[str]) -> dict[str, Slot]:
    """Say of each slot what it starts as, and whether it holds squares."""
    if isinstance(squares, str) or set(squares) - starts.keys():
        raise ValueError(f"{name}: squares must be names of slots, {', '.join(starts) or 'of which there are none'}")
    return {slot: Slot(start=start, squares=slot in squares) for slot, start in starts.items()}


def _value(value: Any) -> Any:
    return value() if callable(value) else value


def _check_names(
    name: str, scalars_type: Any, slots: dict[str, float], defaults: dict[str, Any], between: Any, second: Any
) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")
    if is_built_in(name):
        raise ValueError(f"{name} is a built-in optimizer: choose another name")
    if not (isinstance(scalars_type, type) and hasattr(scalars_type, "_fields")):
        raise TypeError(f"{name}: scalars_type must be a NamedTuple class, got {scalars_type!r}")
    if (between is None) != (second is None):
        raise ValueError(f"{name}: between and second belong together")
    for slot, start in slots.items():
        if not isinstance(slot, str):
            raise TypeError(f"{name}: the name of a slot must be a str, got {slot!r}")
        check_number(f"{name}: the start of slot {slot}", start)
        if "/" in slot or slot in ("", "average", "gradient_accumulator", *BESIDE.values()):
            raise ValueError(f"{name}: a slot cannot be called {slot!r}")
    for key in defaults:
        if key != "learning_rate" and key in (*COMMON, *FORMAT):
            raise ValueError(f"{name}: {key} is an argument of every optimizer, not one of the rule's own")
        if not isinstance(key, str) or not key.isidentifier() or key.startswith("_"):
            raise ValueError(f"{name}: a hyper-parameter cannot be called {key!r}: choose a name without a leading _")
        if key != "learning_rate" and hasattr(Optimizer, key):
            raise ValueError(f"{name}: every optimizer has something else called {key}: choose another name")


def _function(what: str, function: Any) -> Any:
    """A function that Numba can compile into another; None as it is."""
    function = getattr(function, "py_func", function)  # what numba.njit was given
    if function is None or inspect.isfunction(function):
        return function
    raise TypeError(
        f"{what} must be a plain function, got {type(function).__name__}: write it with def or lambda, with what it "
        "needs besides its arguments in scalars_type, or as global constants"
    )


def _try(name: str, rule: Any, second: Any, between: Any, slots: dict[str, float], sample: Any) -> int:
    """Run the rule on plain numbers; the number of its terms."""
    state = tuple(float(start) for start in slots.values())
    with _failing(f"{name}: the rule fails on param 1.0, grad 0.5, slots {state}"):
        found = rule(1.0, 0.5, state, sample)
        first, new = found
    _check_tuple(f"{name}: what the rule returns", found)
    _check_numbers(f"{name}: the slots that the rule returns", new)
    if len(new) != len(state):
        raise TypeError(f"{name}: the rule has {len(state)} slots but returns {len(new)}")
    if second is None:
        _check_numbers(f"{name}: the parameter that the rule returns", (first,))
        return 0
    _check_numbers(f"{name}: the terms that the first phase returns", first)
    with _failing(f"{name}: between fails on sums of 1.0, n 1"):
        factor = between([1.0] * len(first), 1, sample)
    _check_numbers(f"{name}: what between returns", (factor,))
    with _failing(f"{name}: second fails on param 1.0, grad 0.5, slots {new}, number {factor}"):
        param = second(1.0, 0.5, new, float(factor), sample)
    _check_numbers(f"{name}: the parameter that second returns", (param,))
    return len(first)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Whatever a user's function raises is a TypeError that says which."""
    try:
        yield
    except Exception as error:
        raise TypeError(f"{what}: {error!r}") from error


def _check_tuple(what: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise TypeError(f"{what} must be a tuple, got a {type(value).__name__}: Numba compiles nothing else")


def _check_numbers(what: str, values: Any) -> None:
    """Refuse what is no tuple of real numbers."""
    _check_tuple(what, values)
    for value in values:
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{what} must be real numbers, got a {type(value).__name__}: {value!r}")


def _init_with(defaults: dict[str, Any]) -> Any:
    """An ``__init__`` whose signature is the rule's defaults, then the common arguments."""
    own = {"learning_rate": 0.01, **defaults} if "learning_rate" not in defaults else defaults
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(key, kind, default=value) for key, value in own.items()]
    myself, *common = inspect.signature(common_arguments).parameters.values()

    def __init__(self: Any) -> None: ...

    __init__.__signature__ = inspect.Signature([myself, *parameters, *common])  # type: ignore[attr-defined]
    return hyper_parameters(__init__)
