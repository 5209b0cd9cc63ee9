"""The optimizers of Keras 2.2.4."""

from __future__ import annotations

import inspect
from typing import Any

from ...signatures import hyper_parameters
from .. import algorithms, lookup
from ..base import EPSILON, LegacyOptimizer


class Optimizer(LegacyOptimizer):
    """Base of the optimizers of Keras 2.2.4. An epsilon of None is 1e-7."""

    release = "2.2.4"

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        arguments = super()._bind(signature, args, kwargs)
        if "epsilon" in arguments and arguments["epsilon"] is None:
            arguments["epsilon"] = EPSILON
        return arguments


class SGD(Optimizer, algorithms.SGD):
    """Gradient descent with momentum: ``m ← momentum · m − lr · g;  p ← p + m``. See `fastopt.SGD`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.01, momentum: float = 0.0, decay: float = 0.0, nesterov: bool = False, **kwargs: Any
    ) -> None: ...  # fmt: skip


class RMSprop(Optimizer, algorithms.RMSprop):
    """``a ← rho · a + (1 − rho) · g²;  p ← p − lr · g / (√a + epsilon)``. See `fastopt.RMSprop`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.001, rho: float = 0.9, epsilon: float | None = None, decay: float = 0.0, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Adagrad(Optimizer, algorithms.Adagrad):
    """``a ← a + g²;  p ← p − lr · g / (√a + epsilon)``, a from 0. See `fastopt.Adagrad`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.01, epsilon: float | None = None, decay: float = 0.0, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Adadelta(Optimizer, algorithms.Adadelta):
    """Steps in the unit of the parameter. See `fastopt.Adadelta`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 1.0, rho: float = 0.95, epsilon: float | None = None, decay: float = 0.0, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Adam(Optimizer, algorithms.Adam):
    """Steps scaled by running means of the gradient and of its square; AMSGrad. See `fastopt.Adam`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float | None = None,
        decay: float = 0.0, amsgrad: bool = False, **kwargs: Any,
    ) -> None: ...  # fmt: skip


class Adamax(Optimizer, algorithms.Adamax):
    """Adam under the infinity norm. See `fastopt.Adamax`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.002, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float | None = None,
        decay: float = 0.0, **kwargs: Any,
    ) -> None: ...  # fmt: skip


class Nadam(Optimizer, algorithms.Nadam):
    """Adam with Nesterov's momentum. See `fastopt.Nadam`, whose momentum warms up as if ``schedule_decay`` were 1.

    As in the release, the weights list lacks the product of the momenta, so `set_weights` goes on with the present one;
    `fastopt.compat.load_weights` works it out.
    """

    @hyper_parameters
    def __init__(
        self, lr: float = 0.002, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float | None = None,
        schedule_decay: float = 0.004, **kwargs: Any,
    ) -> None: ...  # fmt: skip


sgd = SGD
rmsprop = RMSprop
adagrad = Adagrad
adadelta = Adadelta
adam = Adam
adamax = Adamax
nadam = Nadam

get, deserialize = lookup.keras_2(SGD, RMSprop, Adagrad, Adadelta, Adam, Adamax, Nadam)
serialize = lookup.serialize
