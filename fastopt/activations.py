"""Activations: Keras 3's functions and their derivatives, fused, in place on request, and your own.

Common to all of them:

- ``x`` is a float32 or float64 array of any shape and strides; lists become float64. The result has its shape and
  dtype, and is written into ``out`` if that is given, which may be ``x`` itself.
- ``backward(activation, **options)(dy, x, y, out=None)`` gives ``dy`` times the derivative.
- TypeError and ValueError for dtypes, shapes and options that do not fit, before anything is written.

The body of each function says which formula is computed; the decorator makes it one that computes it.

Source: https://keras.io/api/layers/activations/, Keras 3.15.

>>> import numpy as np
>>> x = np.array([-1.0, 2.0])
>>> y = relu(x, negative_slope=0.5)
>>> y, backward(relu, negative_slope=0.5)(np.ones(2), x, y)
(array([-0.5,  2. ]), array([0.5, 1. ]))
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from .arrays import Array, check_axis, check_output, floating, is_same, overlaps
from .formulas import check_name, describer, scalar_options, scalars_class, try_formulas
from .kernels import activations as kernels
from .parameters import check_flag, check_number

__all__ = [
    "backward",
    "elu",
    "exponential",
    "gelu",
    "get",
    "hard_sigmoid",
    "leaky_relu",
    "linear",
    "register",
    "relu",
    "selu",
    "serialize",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]


class Elementwise(NamedTuple):
    """A formula of the kernels with its scalars."""

    activation: Any
    scalars: tuple[float, ...] = ()
    reads: str = ""  # if not what the activation says

    def forward(self, x: Any, out: Array | None) -> Array:
        """f(x)"""
        given = floating("x", x)
        result = _result(out, given, "x", {"x": x})
        work = _contiguous(result)
        kernels.run_forward(self.activation, work, np.ascontiguousarray(given), self.scalars)
        return _stored(result, work)

    def backward(self, dy: Any, x: Any, y: Any, out: Array | None) -> Array:
        """dy f'(x)"""
        slopes = floating("dy", dy)
        reads = self.reads or self.activation.reads
        given = {name: array for name, array in (("x", x), ("y", y)) if name in reads}
        if reads == "xory":  # either tells on which side of every kink an element is
            given = {"x": x} if x is not None else {"y": y}
        arrays = {name: _like(name, array, slopes) for name, array in given.items()}
        result = _result(out, slopes, "dy", {"dy": dy, **given})
        one = next(iter(arrays.values()))
        work = _contiguous(result)
        dy, x, y = (np.ascontiguousarray(a) for a in (slopes, arrays.get("x", one), arrays.get("y", one)))
        kernels.run_backward(self.activation, work, dy, x, y, self.scalars)
        return _stored(result, work)


class Softmax(NamedTuple):
    """Softmax along an axis, for some numbers of axes."""

    axis: int = -1
    ndims: Container[int] = range(1, 65)
    refusal: str = "softmax needs at least one axis, got ndim={ndim}"

    def forward(self, x: Any, out: Array | None) -> Array:
        """softmax(x)"""
        given = floating("x", x)
        axis = self._checked_axis(given)
        result = _result(out, given, "x", {"x": x})
        moved, rows = _rows(result, axis, fresh=True), _rows(given, axis)
        kernels.run_softmax(moved, rows)
        return _unmoved(result, moved, axis)

    def backward(self, dy: Any, x: Any, y: Any, out: Array | None) -> Array:
        """y (dy − Σ dy y)"""
        slopes = floating("dy", dy)
        axis = self._checked_axis(slopes)
        outputs = _like("y", y, slopes)
        result = _result(out, slopes, "dy", {"dy": dy, "y": y})
        moved = _rows(result, axis, fresh=True)
        kernels.run_softmax_backward(moved, _rows(slopes, axis), _rows(outputs, axis))
        return _unmoved(result, moved, axis)

    def _checked_axis(self, array: Array) -> int:
        if array.ndim not in self.ndims:
            raise ValueError(self.refusal.format(ndim=array.ndim))
        return check_axis(self.axis, array.ndim)


def _like(name: str, array: Any, slopes: Array) -> Array:
    if array is None:
        raise ValueError(f"this derivative needs {name}")
    array = floating(name, array)
    if array.shape != slopes.shape or array.dtype != slopes.dtype:
        raise ValueError(
            f"{name}: expected shape {slopes.shape} and dtype {slopes.dtype} like dy, "
            f"got {array.shape} and {array.dtype}"
        )
    return array


def _result(out: Any, like: Array, name: str, inputs: dict[str, Any]) -> Array:
    """The array to be returned: ``out`` if it fits, else a new one."""
    if out is None:
        return np.empty(like.shape, like.dtype)
    check_output(out, like.shape, like.dtype, name)
    for other, array in inputs.items():
        if isinstance(array, np.ndarray) and overlaps(out, array) and not is_same(out, array):
            raise ValueError(f"out overlaps {other} in part: pass {other} itself or another array")
    return out


def _contiguous(result: Array) -> Array:
    """The result itself if kernels can write it, else room for it."""
    return result if result.flags.c_contiguous else np.empty(result.shape, result.dtype)


def _stored(result: Array, work: Array) -> Array:
    if work is not result:
        result[...] = work
    return result


def _rows(array: Array, axis: int, fresh: bool = False) -> Array:
    """The array as contiguous [rows, columns] with ``axis`` last: a view where it lies so, else a copy or new room."""
    moved = np.moveaxis(array, axis, -1)
    shape = (math.prod(moved.shape[:-1]), moved.shape[-1])
    if fresh and not moved.flags.c_contiguous:
        return np.empty(shape, array.dtype)
    return np.ascontiguousarray(moved).reshape(shape)


def _unmoved(result: Array, rows: Array, axis: int) -> Array:
    moved = np.moveaxis(result, axis, -1)
    if not moved.flags.c_contiguous:
        moved[...] = rows.reshape(moved.shape)
    return result


class ActivationFunction(Protocol):
    """An activation: its ``form`` takes the options alone."""

    __name__: str
    form: Callable[..., Elementwise | Softmax]

    def __call__(self, x: Any, *args: Any, out: Array | None = None, **options: Any) -> Array:
        """f(x)"""


def activation(describe: Callable[..., Any]) -> ActivationFunction:
    """Decorator: a function whose body returns the form for its options becomes one that computes it."""
    signature = inspect.signature(describe)
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Array | None")

    @functools.wraps(describe)
    def function(x: Any, *args: Any, out: Array | None = None, **options: Any) -> Array:
        return describe(x, *args, **options).forward(x, out)

    result = cast("ActivationFunction", function)
    result.form = functools.partial(describe, None)
    result.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), out]
    )
    return result


@activation
def softmax(x: Any, axis: int = -1) -> Any:
    """e^(x − m) / Σ e^(x − m) along ``axis``, m its maximum. An axis of -inf alone gives NaN. Backward reads y."""
    return Softmax(axis)


@activation
def softplus(x: Any) -> Any:
    """log(1 + e^x), which does not overflow. Backward reads y."""
    return Elementwise(kernels.SOFTPLUS)


@activation
def softsign(x: Any) -> Any:
    """x / (1 + |x|). Backward reads x."""
    return Elementwise(kernels.SOFTSIGN)


@activation
def relu(x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Any:
    """x above the threshold θ, limited to [0, max_value] if there is one; slope · (x − θ) below θ.

    Backward reads x; for θ = 0 and a slope >= 0 it takes y instead where x is None, as after an activation in place. At
    the threshold it gives the slope, at ``max_value`` 0.
    """
    check_number("negative_slope", negative_slope)
    check_number("threshold", threshold)
    if max_value is not None:
        check_number("max_value", max_value, 0.0)
    limits = (math.nan, -math.inf) if max_value is None else (max_value, 0.0)
    reads = "xory" if threshold == 0 and negative_slope >= 0 else "x"
    return Elementwise(kernels.RELU, (negative_slope, *limits, threshold), reads)


@activation
def leaky_relu(x: Any, negative_slope: float = 0.2) -> Any:
    """x for x > 0, else slope · x. Backward as of `relu`."""
    return relu.form(negative_slope)


@activation
def tanh(x: Any) -> Any:
    """tanh x. Backward reads y."""
    return Elementwise(kernels.TANH)


@activation
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x), which does not overflow. Backward reads y."""
    return Elementwise(kernels.SIGMOID)


@activation
def hard_sigmoid(x: Any) -> Any:
    """x / 6 + 0.5 limited to [0, 1] (Keras 1 and 2: 0.2 x + 0.5). Backward reads y; at the limits it gives 0."""
    return Elementwise(kernels.HARD_SIGMOID, (1 / 6,))


@activation
def linear(x: Any) -> Any:
    """x; a copy, unlike Keras's, so that no result shares memory with its input. Backward gives dy."""
    return Elementwise(kernels.LINEAR)


@activation
def elu(x: Any, alpha: float = 1.0) -> Any:
    """x for x > 0, else α (e^x − 1), α >= 0. Backward reads y. Source: Clevert et al. 2016, arXiv:1511.07289."""
    check_number("alpha", alpha, 0.0)
    return Elementwise(kernels.ELU, (alpha,))


@activation
def selu(x: Any) -> Any:
    """1.0507… · elu(x, 1.6732…). Backward reads y. Source: Klambauer et al. 2017, arXiv:1706.02515."""
    return Elementwise(kernels.SELU, (1.6732632423543772, 1.0507009873554805))


@activation
def gelu(x: Any, approximate: bool = False) -> Any:
    """x Φ(x), or its approximation by tanh. Backward reads x. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415."""
    check_flag("approximate", approximate)
    return Elementwise(kernels.GELU_TANH if approximate else kernels.GELU)


@activation
def silu(x: Any) -> Any:
    """x · sigmoid(x), also called swish. Backward reads x. Source: Ramachandran et al. 2017, arXiv:1710.05941."""
    return Elementwise(kernels.SILU)


swish = silu


@activation
def exponential(x: Any) -> Any:
    """e^x. Backward reads y."""
    return Elementwise(kernels.EXPONENTIAL)


_BUILT_IN = {
    function.__name__: function
    for function in (
        softmax, softplus, softsign, relu, leaky_relu, tanh, sigmoid, hard_sigmoid, linear, elu, selu, gelu, silu,
        exponential,
    )
} | {"swish": silu}  # fmt: skip

FUNCTIONS: dict[str, Callable[..., Any]] = dict(_BUILT_IN)
"""Every name → function."""


def get(identifier: Any) -> Callable[..., Any]:
    """An activation from its name; None gives `linear`, a callable is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown: the message lists the valid ones.
    TypeError
        If the identifier is of another kind.
    """
    if identifier is None:
        return linear
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
    check_name(name, _BUILT_IN, "activation")
    defaults = scalar_options(name, options)
    scalars = scalars_class(defaults)
    try_formulas(name, {"forward": forward}, (0.5,), scalars(**defaults))
    try_formulas(name, {"derivative": derivative}, (0.5, 0.25), scalars(**defaults))
    formula = kernels.activation_of(forward, derivative, scalars)

    doc = forward.__doc__ or f"The activation {name}."
    describe = describer(name, doc, ("x",), defaults, lambda values: Elementwise(formula, values))
    FUNCTIONS[name] = activation(describe)
    return FUNCTIONS[name]
