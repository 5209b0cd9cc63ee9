"""Keras's old releases, exactly: `keras_1_0` (1.0.2), `keras_2_2` (2.2.4), `keras_2_3` (2.3.1).

Signatures, defaults, errors, decay, clipping, configs and weights lists are those of the release; the mathematics is
that of the same fused kernels. Import the release that a program was written for:

>>> from fastopt.compat import keras_2_2
>>> opt = keras_2_2.SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True, clipnorm=1.0)

`load_weights` and `weights_of` carry an optimizer's state between the releases, ``tf_keras``, Keras 3 and today's
classes. ``opt.lr.set_value(0.1)``, and ``K.set_value(opt.lr, 0.1)`` with `backend` as ``K``, set a rate.

What the releases accept is accepted as long as its result is defined: a negative rate, a momentum above 1. Refused,
where the releases go on with NaN, are: numbers that are not finite, ``rho`` outside of [0, 1] or, in Adam and Nadam,
``beta_2`` outside of [0, 1), a ``beta_1`` of 1 or -1, a negative ``epsilon``, and arguments that are no numbers. Lists
of weights are checked as a whole before anything is written.

Other releases differ from ``keras_2_2`` in what `arguments_for` takes care of, or the text says:

"""

import importlib
from typing import Any

from .releases import DIFFERENCES, arguments_for, as_text
from .weights import load_weights, weights_of

__all__ = ["DIFFERENCES", "arguments_for", "load_weights", "weights_of"]

__doc__ = f"{__doc__}{as_text()}\n"

_ON_FIRST_USE = ("backend", "keras_1_0", "keras_2_2", "keras_2_3")


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ON_FIRST_USE})
