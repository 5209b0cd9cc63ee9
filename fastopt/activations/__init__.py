"""Activations: Keras 3's functions and their derivatives, fused, in place on request, and your own.

Common to all of them:

- ``x`` is a float32 or float64 array of any shape and strides; lists and integers become float64 (in Keras, integers
  become float32). The result has its shape and dtype, and is written into ``out`` if that is given, which may be ``x``
  itself.
- ``backward(activation, **options)(dy, x, y, out=None)`` gives ``dy`` times the derivative.
- TypeError and ValueError for dtypes, shapes and options that do not fit, before anything is written.

>>> import numpy as np
>>> x = np.array([-1.0, 2.0])
>>> y = relu(x, negative_slope=0.5)
>>> y, backward(relu, negative_slope=0.5)(np.ones(2), x, y)
(array([-0.5,  2. ]), array([0.5, 1. ]))
"""

from .functions import (
    celu,
    elu,
    exponential,
    gelu,
    glu,
    hard_shrink,
    hard_sigmoid,
    hard_silu,
    hard_swish,
    hard_tanh,
    leaky_relu,
    linear,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_shrink,
    softmax,
    softplus,
    softsign,
    sparse_plus,
    sparse_sigmoid,
    sparsemax,
    squareplus,
    swish,
    tanh,
    tanh_shrink,
    threshold,
)
from .registry import backward, deserialize, get, register, serialize

__all__ = [
    "backward",
    "celu",
    "deserialize",
    "elu",
    "exponential",
    "gelu",
    "get",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "register",
    "relu",
    "relu6",
    "selu",
    "serialize",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softmax",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "sparsemax",
    "squareplus",
    "swish",
    "tanh",
    "tanh_shrink",
    "threshold",
]
