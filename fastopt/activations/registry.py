"""Activations by name, their derivatives, and users' own formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..arrays import Array
from ..formulas import check_name, describer, scalar_options, scalars_class, try_formulas
from ..kernels.activations import engine
from .forms import Elementwise, activation
from .functions import ALL, linear

FUNCTIONS: dict[str, Callable[..., Any]] = dict(ALL)
"""Every name → function."""


def get(identifier: Any) -> Callable[..., Any]:
    """An activation from its name or what `serialize` gave; None gives `linear`, a callable is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown: the message lists the valid ones.
    TypeError
        If the identifier is of another kind.
    """
    if identifier is None:
        return linear
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, str):
        if identifier not in FUNCTIONS:
            raise ValueError(f"unknown activation {identifier!r}: the names are {', '.join(FUNCTIONS)}")
        return FUNCTIONS[identifier]
    if callable(identifier):
        return identifier
    raise TypeError(f"expected a name, a callable or None, got {type(identifier).__name__}")


def serialize(function: Any) -> str:
    """The name of an activation.

    Raises
    ------
    ValueError
        If no name stands for it.
    """
    for name, known in FUNCTIONS.items():
        if known is function:
            return name
    raise ValueError(f"{function!r} is no activation that a name stands for")


def deserialize(config: Any) -> Callable[..., Any]:
    """The activation that `serialize` described: its name, or Keras's ``{"class_name": "function", "config": name}``.

    Raises
    ------
    ValueError
        If it names no activation.
    """
    if isinstance(config, Mapping):
        if not isinstance(config.get("config"), str):
            raise ValueError(f'expected a name, or {{"class_name": "function", "config": name}}, got {dict(config)}')
        config = config["config"]
    return get(config)


def backward(identifier: Any, **options: Any) -> Callable[..., Array]:
    """The derivative of an activation, as a function ``(dy, x=None, y=None, out=None, **options) -> dx``.

    Parameters
    ----------
    identifier : str, function or None
        As of `get`.
    **options
        What the activation was called with.

    Returns
    -------
    function
        ``dy`` (the gradient by the output) times the derivative where the input was ``x`` and the output ``y``; all of
        one shape and dtype. The docstring of each activation says which of x and y it reads; the other may be None.
        ``out`` may be ``dy``, ``x`` or ``y`` itself, if that is read.

    Raises
    ------
    TypeError, ValueError
        If the derivative is not known, or arguments do not fit.
    """
    function = get(identifier)
    form_of = getattr(function, "form", None)
    if form_of is None:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"the derivative of {name} is not known: make it an activation with activations.register")
    form_of(**options)  # refuses wrong options here

    def differentiate(dy: Any, x: Any = None, y: Any = None, out: Array | None = None, **more: Any) -> Array:
        return form_of(**{**options, **more}).backward(dy, x, y, out)

    return differentiate


def register(
    name: str,
    forward: Callable[..., Any],
    derivative: Callable[..., Any],
    *,
    options: dict[str, float] | None = None,
) -> Callable[..., Any]:
    """Make an activation of your own scalar formulas, compiled into the same kernels as the built-in ones.

    Parameters
    ----------
    name : str
        `get` knows it by this name; built-in names are taken.
    forward, derivative : functions
        ``(x, s) -> y`` and ``(x, y, s) -> dy/dx`` over numbers, in the language that Numba compiles. A bare literal
        turns float32 into float64: ``fastopt.kernels.maths`` has ``constant(0.5, x)`` and functions that keep their
        argument's type.
    options : mapping
        Name → default, a number: they become keyword arguments of the activation and fields of ``s``.

    Returns
    -------
    function
        ``(x, **options, out=None)``. `backward` of it reads both x and y.

    Raises
    ------
    TypeError, ValueError
        If the pieces do not fit together; the formulas are tried on plain numbers first.
    """
    check_name(name, ALL, "activation")
    defaults = scalar_options(name, options)
    scalars = scalars_class(defaults)
    try_formulas(name, {"forward": forward}, (0.5,), scalars(**defaults))
    try_formulas(name, {"derivative": derivative}, (0.5, 0.25), scalars(**defaults))
    formula = engine.activation_of(forward, derivative, scalars)

    doc = forward.__doc__ or f"The activation {name}."
    describe = describer(name, doc, ("x",), defaults, lambda values: Elementwise(formula, values))
    FUNCTIONS[name] = activation(describe)
    return FUNCTIONS[name]
