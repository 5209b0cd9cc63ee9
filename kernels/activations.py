"""Activations: formulas of one element, softmax over rows, and the loops around them.

A formula is a pair: ``forward(x, s) -> y`` and ``derivative(x, y, s)``. `Activation.reads` says which of x and y the
derivative reads: backward gets along without the other.
"""

from typing import Any, NamedTuple

import numpy as np

from . import maths, rowwise
from ._jit import callee, inlined_callee
from .intrinsics import scalars_at
from .maths import clip, constant, erf, exp, expm1, sqrt
from .reduction import LANES, row_maximum, row_sum
from .rowwise import BLOCK, SIDE_BY_SIDE, Nothing, table_of


class ReluScalars(NamedTuple):
    """The scalars of `relu`."""

    negative_slope: float
    max_value: float  # NaN for none: nothing is above it
    min_value: float  # 0 where there is a maximum, else -inf
    threshold: float


class Alpha(NamedTuple):
    """The scalars of `elu`."""

    alpha: float


class Scaled(NamedTuple):
    """The scalars of `selu`."""

    alpha: float
    scale: float


class Slope(NamedTuple):
    """The scalars of `hard_sigmoid`."""

    slope: float


class Activation(NamedTuple):
    """A pair of formulas."""

    forward: Any
    derivative: Any
    scalars: type = Nothing
    reads: str = "y"  # "x", "y" or "xy"


# -- formulas ----------------------------------------------------------------------------------------------------------


@inlined_callee
def linear(x, s):
    """x"""
    return x


@inlined_callee
def linear_derivative(x, y, s):
    """1"""
    return constant(1, y)


@inlined_callee
def relu(x, s):
    """x above the threshold θ, else 0; limited to [0, max]; minus slope · max(θ − x, 0)."""
    zero = constant(0, x)
    below = s.threshold - x
    y = clip(zero if x <= s.threshold else x, s.min_value, s.max_value)
    return y - (s.negative_slope * below if below > zero and s.negative_slope != zero else zero)


@inlined_callee
def relu_derivative(x, y, s):
    """1 between θ and max, slope up to θ, 0 from max on, NaN for NaN."""
    zero = constant(0, x)
    if x <= s.threshold:
        return s.negative_slope
    return zero if x >= s.max_value or x < s.min_value else (constant(1, x) if x == x else x)


@inlined_callee
def elu(x, s):
    """x for x > 0, else α (e^x − 1)."""
    return x if x > constant(0, x) else s.alpha * expm1(x)


@inlined_callee
def elu_derivative(x, y, s):
    """1 for y > 0, else y + α."""
    return constant(1, y) if y > constant(0, y) else y + s.alpha


@inlined_callee
def selu(x, s):
    """scale · elu(x)"""
    return s.scale * (x if x > constant(0, x) else s.alpha * expm1(x))


@inlined_callee
def selu_derivative(x, y, s):
    """scale for y > 0, else y + scale · α."""
    return s.scale if y > constant(0, y) else y + s.scale * s.alpha


@inlined_callee
def softplus(x, s):
    """log(1 + e^x)"""
    return maths.softplus(x)


@inlined_callee
def softplus_derivative(x, y, s):
    """1 − e^−y, which is sigmoid(x)."""
    return -expm1(-y)


@inlined_callee
def softsign(x, s):
    """x / (1 + |x|)"""
    return x / (constant(1, x) + abs(x))


@inlined_callee
def softsign_derivative(x, y, s):
    """1 / (1 + |x|)²"""
    inverse = constant(1, x) / (constant(1, x) + abs(x))
    return inverse * inverse


@inlined_callee
def tanh(x, s):
    """tanh x"""
    return maths.tanh(x)


@inlined_callee
def tanh_derivative(x, y, s):
    """1 − y²"""
    one = constant(1, y)
    return (one - y) * (one + y)


@inlined_callee
def sigmoid(x, s):
    """1 / (1 + e^−x)"""
    return maths.sigmoid(x)


@inlined_callee
def sigmoid_derivative(x, y, s):
    """y (1 − y)"""
    return y * (constant(1, y) - y)


@inlined_callee
def hard_sigmoid(x, s):
    """slope · x + 0.5, limited to [0, 1]."""
    return clip(x * s.slope + constant(0.5, x), constant(0, x), constant(1, x))


@inlined_callee
def hard_sigmoid_derivative(x, y, s):
    """slope inside the limits, else 0, NaN for NaN."""
    return constant(0, y) if y <= constant(0, y) or y >= constant(1, y) else (s.slope if y == y else y)


@inlined_callee
def exponential(x, s):
    """e^x"""
    return exp(x)


@inlined_callee
def exponential_derivative(x, y, s):
    """y"""
    return y


@inlined_callee
def silu(x, s):
    """x · sigmoid(x)"""
    return x * maths.sigmoid(x)


@inlined_callee
def silu_derivative(x, y, s):
    """σ (1 + x (1 − σ)), σ = sigmoid(x)"""
    one = constant(1, x)
    share = maths.sigmoid(x)
    return share * (one + x * (one - share))


@inlined_callee
def gelu(x, s):
    """x Φ(x) = x (1 + erf(x / √2)) / 2"""
    half, one = constant(0.5, x), constant(1, x)
    return half * x * (one + erf(x * sqrt(half)))


@inlined_callee
def gelu_derivative(x, y, s):
    """Φ(x) + x φ(x)"""
    half, one = constant(0.5, x), constant(1, x)
    density = constant(0.3989422804014327, x) * exp(-half * x * x)
    return half * (one + erf(x * sqrt(half))) + x * density


@inlined_callee
def gelu_tanh(x, s):
    """x (1 + tanh u) / 2, u = √(2/π) (x + 0.044715 x³)"""
    return constant(0.5, x) * x * (constant(1, x) + maths.tanh(_inner(x)))


@inlined_callee
def gelu_tanh_derivative(x, y, s):
    """(1 + tanh u) / 2 + x u' (1 − tanh² u) / 2"""
    half, one = constant(0.5, x), constant(1, x)
    t = maths.tanh(_inner(x))
    x = clip(x, constant(-32, x), constant(32, x))  # where 1 − tanh² has long been 0, and x u' may overflow
    slope = constant(0.7978845608028654, x) * (one + constant(3 * 0.044715, x) * x * x)
    return half * (one + t) + half * x * slope * (one - t) * (one + t)


@inlined_callee
def _inner(x):
    return constant(0.7978845608028654, x) * (x + constant(0.044715, x) * x * x * x)


LINEAR = Activation(linear, linear_derivative)
RELU = Activation(relu, relu_derivative, ReluScalars, "x")
ELU = Activation(elu, elu_derivative, Alpha)
SELU = Activation(selu, selu_derivative, Scaled)
SOFTPLUS = Activation(softplus, softplus_derivative)
SOFTSIGN = Activation(softsign, softsign_derivative, reads="x")
TANH = Activation(tanh, tanh_derivative)
SIGMOID = Activation(sigmoid, sigmoid_derivative)
HARD_SIGMOID = Activation(hard_sigmoid, hard_sigmoid_derivative, Slope)
EXPONENTIAL = Activation(exponential, exponential_derivative)
SILU = Activation(silu, silu_derivative, reads="x")
GELU = Activation(gelu, gelu_derivative, reads="x")
GELU_TANH = Activation(gelu_tanh, gelu_tanh_derivative, reads="x")


# -- loops, of the signature of cpu.py ---------------------------------------------------------------------------------

# Replaced in each specialisation (see rowwise.py).
DTYPE = np.float32
SCALARS: type = Nothing
FORMULA: Any = None


@callee
def _block(handle, k, block, dtype):
    return table_of(handle, k, dtype)[0, block * BLOCK : (block + 1) * BLOCK]


def forward(first, last, handle, options):
    """y ← f(x) for blocks ``first`` to ``last``. Requires y, x [1, elements] and the scalars; y may be x. Writes y."""
    s = scalars_at(SCALARS, table_of(handle, 2, DTYPE), 0, 0)
    scratch = np.empty(BLOCK, DTYPE)
    for block in range(first, last):
        _forward_block(FORMULA, _block(handle, 0, block, DTYPE), _block(handle, 1, block, DTYPE), scratch, s)


@callee
def _forward_block(formula, y, x, scratch, s):
    # By way of scratch: a loop whose result may be its input is vectorised only for the case that it is not.
    for i in range(y.size):
        scratch[i] = formula(x[i], s)
    _copy(scratch, y)


@callee
def _copy(scratch, result):
    for i in range(result.size):
        result[i] = scratch[i]


def backward(first, last, handle, options):
    """dx ← dy f'(x). Requires dx, dy, x, y [1, elements] and the scalars; dx may be any of the others. Writes dx."""
    s = scalars_at(SCALARS, table_of(handle, 4, DTYPE), 0, 0)
    scratch = np.empty(BLOCK, DTYPE)
    for block in range(first, last):
        dx, dy = _block(handle, 0, block, DTYPE), _block(handle, 1, block, DTYPE)
        _backward_block(FORMULA, dx, dy, _block(handle, 2, block, DTYPE), _block(handle, 3, block, DTYPE), scratch, s)


@callee
def _backward_block(formula, dx, dy, x, y, scratch, s):
    for i in range(dx.size):
        scratch[i] = dy[i] * formula(x[i], y[i], s)
    _copy(scratch, dx)


def softmax_forward(first, last, handle, options):
    """y ← softmax(x) for rows ``first`` to ``last``. Requires y, x [rows, columns]; y may be x. Writes y."""
    result, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE)
    powers, lanes, best = np.empty(given.shape[1], DTYPE), np.empty(LANES), np.empty(SIDE_BY_SIDE, DTYPE)
    for row in range(first, last):
        x = given[row]
        _powers(x, row_maximum(x, best), powers)
        _product(powers, DTYPE(1.0 / row_sum(powers, lanes)), result[row])


@callee
def _powers(x, peak, powers):
    for i in range(powers.size):
        powers[i] = exp(x[i] - peak)


@callee
def _product(powers, factor, y):
    for i in range(y.size):
        y[i] = powers[i] * factor


def softmax_backward(first, last, handle, options):
    """dx ← y (dy − Σ dy y). Requires dx, dy, y [rows, columns]; dx may be any of the others. Writes dx."""
    result, slopes, outputs = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE), table_of(handle, 2, DTYPE)
    products, lanes = np.empty(BLOCK, DTYPE), np.empty(LANES)
    for row in range(first, last):
        dx, dy, y = result[row], slopes[row], outputs[row]
        total = 0.0
        for start in range(0, y.size, BLOCK):
            stop = min(start + BLOCK, y.size)
            _products(dy[start:stop], y[start:stop], products[: stop - start])
            total += row_sum(products[: stop - start], lanes)
        _softmax_derivative(dx, dy, y, DTYPE(total))


@callee
def _products(one, other, products):
    for i in range(products.size):
        products[i] = one[i] * other[i]


@callee
def _softmax_derivative(dx, dy, y, along):
    for i in range(dx.size):
        dx[i] = y[i] * (dy[i] - along)


# -- calls -------------------------------------------------------------------------------------------------------------


def run_forward(activation, y, x, scalars):
    """y ← f(x). Requires C-contiguous arrays of one shape and dtype; y may be x."""
    kernel = rowwise.kernel(forward, x.dtype, activation.scalars, FORMULA=activation.forward)
    _run_elements(kernel, (y, x), scalars)


def run_backward(activation, dx, dy, x, y, scalars):
    """dx ← dy f'(x). Requires C-contiguous arrays of one shape and dtype; dx may be any of the others."""
    kernel = rowwise.kernel(backward, dy.dtype, activation.scalars, FORMULA=activation.derivative)
    _run_elements(kernel, (dx, dy, x, y), scalars)


def _run_elements(kernel, arrays, scalars):
    flat = [array.reshape(1, -1) for array in arrays]
    table = np.array([[*scalars, 0]], flat[0].dtype)
    elements = flat[0].size
    rowwise.run(kernel, rowwise.Work((*flat, table), elements, -(-elements // BLOCK)), 0)


def run_softmax(y, x):
    """y ← softmax(x) over the last axis. Requires C-contiguous [rows, columns] of one dtype; y may be x."""
    rowwise.run(rowwise.kernel(softmax_forward, x.dtype, Nothing), rowwise.Work((y, x), x.size, len(x)), 0)


def run_softmax_backward(dx, dy, y):
    """dx ← y (dy − Σ dy y). Requires C-contiguous [rows, columns] of one dtype; dx may be any of the others."""
    rowwise.run(rowwise.kernel(softmax_backward, y.dtype, Nothing), rowwise.Work((dx, dy, y), y.size, len(y)), 0)


def activation_of(forward, derivative, scalars):
    """The activation of two users' functions ``forward(x, s)`` and ``derivative(x, y, s)``."""
    return Activation(inlined_callee(forward), inlined_callee(derivative), scalars, "xy")
