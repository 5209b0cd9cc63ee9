"""Formulas of activations that have exponentials, roots or quotients in them."""

from typing import NamedTuple

from .. import maths
from ..compile._jit import inlined_callee
from ..maths import clip, constant, erf, exp, exp_decreasing, expm1, log1p_of_share, sqrt, where
from .loops import Activation


class Alpha(NamedTuple):
    """The scalars of `elu` and `celu`."""

    alpha: float


class Scaled(NamedTuple):
    """The scalars of `selu`."""

    alpha: float
    scale: float


class Plus(NamedTuple):
    """The scalars of `squareplus`."""

    b: float
    root: float  # of b


@inlined_callee
def elu(x, s):
    """x for x > 0, else α (e^x − 1)."""
    return x if x > constant(0, x) else s.alpha * expm1(x)


@inlined_callee
def elu_derivative(x, y, s):
    """1 for y > 0, else y + α."""
    return constant(1, y) if y > constant(0, y) else y + s.alpha


@inlined_callee
def celu(x, s):
    """x for x > 0, else α (e^(x/α) − 1)."""
    return x if x > constant(0, x) else s.alpha * expm1(x / s.alpha)


@inlined_callee
def celu_derivative(x, y, s):
    """1 for y > 0, else y / α + 1."""
    return constant(1, y) if y > constant(0, y) else y / s.alpha + constant(1, y)


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
def squareplus(x, s):
    """(x + √(x² + b)) / 2, and b / 2 / (√(x² + b) − x) for x < 0, where the sum would cancel."""
    half = constant(0.5, x)
    _, _, hypotenuse = _triangle(x, s)
    mean = half * abs(x) + half * hypotenuse
    return where(x < constant(0, x), constant(0.25, x) * s.b / mean, mean)


@inlined_callee
def squareplus_derivative(x, y, s):
    """(1 + x / √(x² + b)) / 2, with (1 − q) = (1 − q²) / (1 + q) for x < 0."""
    half, one = constant(0.5, x), constant(1, x)
    cosine, sine, _ = _triangle(x, s)
    return where(x < constant(0, x), half * sine * sine / (one + cosine), half + half * cosine)


@inlined_callee
def _triangle(x, s):
    """|x| / h, √b / h and h = √(x² + b), whose squares neither overflow nor vanish."""
    zero, one = constant(0, x), constant(1, x)
    size = abs(x)
    longer = size > s.root
    ratio = where(longer, s.root / size, where(s.root == zero, size, size / s.root))
    length = sqrt(one + ratio * ratio)
    return where(longer, one, ratio) / length, where(longer, ratio, one) / length, where(longer, size, s.root) * length


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
def tanh_shrink(x, s):
    """x − tanh x"""
    return x - maths.tanh(x)


@inlined_callee
def tanh_shrink_derivative(x, y, s):
    """tanh² x"""
    t = maths.tanh(x)
    return t * t


@inlined_callee
def sigmoid(x, s):
    """1 / (1 + e^−x)"""
    return maths.sigmoid(x)


@inlined_callee
def sigmoid_derivative(x, y, s):
    """y (1 − y)"""
    return y * (constant(1, y) - y)


@inlined_callee
def log_sigmoid(x, s):
    """−log(1 + e^−x)"""
    zero = constant(0, x)
    return where(x > zero, zero, x) - log1p_of_share(exp_decreasing(-abs(x)))


@inlined_callee
def log_sigmoid_derivative(x, y, s):
    """1 − e^y, which is sigmoid(−x)."""
    return -expm1(y)


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
def mish(x, s):
    """x tanh(log(1 + e^x)); 0 at -inf."""
    zero = constant(0, x)
    over, rest = _tanh_of_softplus(x)
    return where(over == zero, zero, x * (over / (over + rest)))


@inlined_callee
def mish_derivative(x, y, s):
    """t + x (1 − t²) sigmoid(x), t = tanh(log(1 + e^x))"""
    zero, one = constant(0, x), constant(1, x)
    over, rest = _tanh_of_softplus(x)
    t, complement = over / (over + rest), rest / (over + rest)
    small = exp_decreasing(-abs(x))
    slope = x * complement * (one + t) * (where(x < zero, small, one) / (one + small))
    return t + where(small == zero, zero, slope)


@inlined_callee
def _tanh_of_softplus(x):
    """n and m of tanh(log(1 + e^x)) = n / (n + m): n = e^2x + 2 e^x and m = 2, both divided by e^2x for x > 0."""
    one, two = constant(1, x), constant(2, x)
    small = exp_decreasing(-abs(x))
    below = x < constant(0, x)
    return where(below, small * (small + two), one + two * small), where(below, two, two * small * small)


@inlined_callee
def gelu(x, s):
    """x Φ(x) = x (1 + erf(x / √2)) / 2"""
    half, one = constant(0.5, x), constant(1, x)
    return half * x * (one + erf(x * sqrt(half)))


@inlined_callee
def gelu_derivative(x, y, s):
    """Φ(x) + x φ(x)"""
    half, one = constant(0.5, x), constant(1, x)
    density = constant(0.3989422804014327, x) * exp_decreasing(-half * x * x)
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


ELU = Activation(elu, elu_derivative, Alpha)
CELU = Activation(celu, celu_derivative, Alpha)
SELU = Activation(selu, selu_derivative, Scaled)
SOFTPLUS = Activation(softplus, softplus_derivative)
SQUAREPLUS = Activation(squareplus, squareplus_derivative, Plus, "x")
SOFTSIGN = Activation(softsign, softsign_derivative, reads="x")
TANH = Activation(tanh, tanh_derivative)
TANH_SHRINK = Activation(tanh_shrink, tanh_shrink_derivative, reads="x")
SIGMOID = Activation(sigmoid, sigmoid_derivative)
LOG_SIGMOID = Activation(log_sigmoid, log_sigmoid_derivative)
EXPONENTIAL = Activation(exponential, exponential_derivative)
SILU = Activation(silu, silu_derivative, reads="x")
MISH = Activation(mish, mish_derivative, reads="x")
GELU = Activation(gelu, gelu_derivative, reads="x")
GELU_TANH = Activation(gelu_tanh, gelu_tanh_derivative, reads="x")
