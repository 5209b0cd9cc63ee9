"""Keras 3's activations. The body of each function says which formula is computed; the decorator makes it compute it.

Source: https://keras.io/api/layers/activations/, Keras 3.15.
"""

from __future__ import annotations

import math
from typing import Any

from ..kernels.activations import engine, piecewise, smooth
from ..parameters import check_flag, check_number
from .forms import AlongAxes, Elementwise, Gate, activation

# -- along axes --------------------------------------------------------------------------------------------------------


@activation
def softmax(x: Any, axis: int | tuple[int, ...] | None = -1) -> Any:
    """e^(x − m) / Σ e^(x − m) along ``axis``, m its maximum; along several together, or all (None).

    Where x is -inf alone it gives NaN. Backward reads y.
    """
    return AlongAxes(engine.SOFTMAX, axis)


@activation
def log_softmax(x: Any, axis: int | tuple[int, ...] | None = -1) -> Any:
    """x − m − log Σ e^(x − m), axes as of `softmax`. Backward reads y."""
    return AlongAxes(engine.LOG_SOFTMAX, axis)


@activation
def sparsemax(x: Any, axis: int = -1) -> Any:
    """max(x − τ, 0), whose sum along ``axis`` is 1. Backward reads y; where y is 0, it gives 0.

    Source: Martins & Astudillo 2016, arXiv:1602.02068. (That of Keras 3.15 takes a larger τ where it keeps more than
    one element, and does not sum to 1.)
    """
    return AlongAxes(engine.SPARSEMAX, axis)


@activation
def glu(x: Any, axis: int = -1) -> Any:
    """a · sigmoid(b), a and b the halves of x along ``axis``: the result is half as long there.

    ``out`` must not overlap x, but that of backward may be x itself. Backward reads x. Source: Dauphin et al. 2017,
    arXiv:1612.08083.
    """
    return Gate(axis)


# -- of single elements ------------------------------------------------------------------------------------------------


@activation
def linear(x: Any) -> Any:
    """x; a copy, unlike Keras's, so that no result shares memory with its input. Backward gives dy."""
    return Elementwise(piecewise.LINEAR)


@activation
def exponential(x: Any) -> Any:
    """e^x. Backward reads y."""
    return Elementwise(smooth.EXPONENTIAL)


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
    return Elementwise(piecewise.RELU, (negative_slope, *limits, threshold), reads)


@activation
def leaky_relu(x: Any, negative_slope: float = 0.2) -> Any:
    """x for x > 0, else slope · x. Backward as of `relu`."""
    return relu.form(negative_slope)


@activation
def relu6(x: Any) -> Any:
    """x limited to [0, 6]. Backward reads x or y; at the limits it gives 0."""
    return relu.form(max_value=6.0)


@activation
def elu(x: Any, alpha: float = 1.0) -> Any:
    """x for x > 0, else α (e^x − 1), α >= 0. Backward reads y. Source: Clevert et al. 2016, arXiv:1511.07289."""
    check_number("alpha", alpha, 0.0)
    return Elementwise(smooth.ELU, (alpha,))


@activation
def celu(x: Any, alpha: float = 1.0) -> Any:
    """x for x > 0, else α (e^(x/α) − 1), α ≠ 0. Backward reads y. Source: Barron 2017, arXiv:1704.07483."""
    check_number("alpha", alpha)
    if alpha == 0:
        raise ValueError("alpha must not be 0: x is divided by it")
    return Elementwise(smooth.CELU, (alpha,))


@activation
def selu(x: Any) -> Any:
    """1.0507… · elu(x, 1.6732…). Backward reads y. Source: Klambauer et al. 2017, arXiv:1706.02515."""
    return Elementwise(smooth.SELU, (1.6732632423543772, 1.0507009873554805))


@activation
def softplus(x: Any) -> Any:
    """log(1 + e^x), which does not overflow. Backward reads y."""
    return Elementwise(smooth.SOFTPLUS)


@activation
def squareplus(x: Any, b: float = 4) -> Any:
    """(x + √(x² + b)) / 2, b >= 0. Backward reads x. Source: Barron 2021, arXiv:2112.11687.

    No square overflows and nothing cancels: large negative x have their true value, where Keras gives 0 or inf.
    """
    check_number("b", b, 0.0)
    return Elementwise(smooth.SQUAREPLUS, (b, math.sqrt(b)))


@activation
def sparse_plus(x: Any) -> Any:
    """0 up to −1, (x + 1)² / 4 up to 1, then x. Backward reads x."""
    return Elementwise(piecewise.SPARSE_PLUS)


@activation
def softsign(x: Any) -> Any:
    """x / (1 + |x|). Backward reads x."""
    return Elementwise(smooth.SOFTSIGN)


@activation
def soft_shrink(x: Any, threshold: float = 0.5) -> Any:
    """x − θ for x > θ, x + θ for x < −θ, else 0, θ >= 0. Backward reads x; at ±θ it gives 0."""
    check_number("threshold", threshold, 0.0)
    return Elementwise(piecewise.SOFT_SHRINK, (threshold,))


@activation
def hard_shrink(x: Any, threshold: float = 0.5) -> Any:
    """x for |x| > θ, else 0. Backward reads x; at ±θ it gives 0."""
    check_number("threshold", threshold)
    return Elementwise(piecewise.HARD_SHRINK, (threshold,))


@activation
def threshold(x: Any, threshold: float, default_value: float) -> Any:
    """x for x > ``threshold``, else ``default_value``; NaN stays NaN. Backward reads x; at the threshold it gives 0."""
    check_number("threshold", threshold)
    check_number("default_value", default_value)
    return Elementwise(piecewise.THRESHOLD, (threshold, default_value))


@activation
def tanh(x: Any) -> Any:
    """tanh x. Backward reads y."""
    return Elementwise(smooth.TANH)


@activation
def tanh_shrink(x: Any) -> Any:
    """x − tanh x, a difference of rounded numbers. Backward reads x."""
    return Elementwise(smooth.TANH_SHRINK)


@activation
def hard_tanh(x: Any) -> Any:
    """x limited to [−1, 1]. Backward reads y; at the limits it gives 0."""
    return Elementwise(piecewise.HARD_TANH)


@activation
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x), which does not overflow. Backward reads y."""
    return Elementwise(smooth.SIGMOID)


@activation
def log_sigmoid(x: Any) -> Any:
    """−log(1 + e^−x), which does not overflow. Backward reads y."""
    return Elementwise(smooth.LOG_SIGMOID)


@activation
def hard_sigmoid(x: Any) -> Any:
    """x / 6 + 0.5 limited to [0, 1] (Keras 1 and 2: 0.2 x + 0.5). Backward reads y; at the limits it gives 0."""
    return Elementwise(piecewise.HARD_SIGMOID, (1 / 6,))


@activation
def sparse_sigmoid(x: Any) -> Any:
    """(x + 1) / 2 limited to [0, 1]. Backward reads y; at the limits it gives 0."""
    return Elementwise(piecewise.HARD_SIGMOID, (0.5,))


@activation
def silu(x: Any) -> Any:
    """x · sigmoid(x), also called swish. Backward reads x. Source: Ramachandran et al. 2017, arXiv:1710.05941."""
    return Elementwise(smooth.SILU)


swish = silu


@activation
def hard_silu(x: Any) -> Any:
    """x · hard_sigmoid(x), also called hard_swish; 0 at -inf (Keras: NaN). Backward reads x; 0 at −3, 1 at 3."""
    return Elementwise(piecewise.HARD_SILU)


hard_swish = hard_silu


@activation
def mish(x: Any) -> Any:
    """x tanh(softplus(x)); 0 at -inf (Keras: NaN). Backward reads x. Source: Misra 2019, arXiv:1908.08681."""
    return Elementwise(smooth.MISH)


@activation
def gelu(x: Any, approximate: bool = False) -> Any:
    """x Φ(x), or its approximation by tanh. Backward reads x. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415."""
    check_flag("approximate", approximate)
    return Elementwise(smooth.GELU_TANH if approximate else smooth.GELU)


ALL = {
    function.__name__: function
    for function in (
        celu, elu, exponential, gelu, glu, hard_shrink, hard_sigmoid, hard_silu, hard_tanh, leaky_relu, linear,
        log_sigmoid, log_softmax, mish, relu, relu6, selu, sigmoid, silu, soft_shrink, softmax, softplus, softsign,
        sparse_plus, sparse_sigmoid, sparsemax, squareplus, tanh, tanh_shrink, threshold,
    )
} | {"swish": silu, "hard_swish": hard_silu}  # fmt: skip
"""Every name of Keras → function."""
