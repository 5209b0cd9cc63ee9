"""The optimizers of Keras 2.3.1.

``lr``, ``decay``, ``epsilon`` and, for Nadam, ``schedule_decay`` are keyword arguments that no signature shows; ``lr``
wins over ``learning_rate``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...parameters import Array
from ...signatures import hyper_parameters
from .. import algorithms, lookup
from ..base import CLIPS, EPSILON, LegacyOptimizer


class Optimizer(LegacyOptimizer):
    """Base of the optimizers of Keras 2.3.1. ``lr`` is another name of ``learning_rate``, to be read only."""

    release = "2.3.1"
    _rate_key = "learning_rate"
    _optional = (*CLIPS, "lr")
    _keywords: ClassVar = {"decay": 0.0, "epsilon": EPSILON}
    _first_here: ClassVar[tuple[int, float] | None] = None
    """A counter that weights lists of 2.2.4 lack: where it belongs, and what it starts as."""

    @property  # type: ignore[misc]  # the release took the setter away
    def lr(self) -> float:
        """The learning rate before decay; ``lr.set_value(0.1)`` sets it all the same."""
        return self.learning_rate

    def _completed(self, weights: list[Array], count: int) -> list[Array]:
        if self._first_here is None or len(weights) + 1 != count:
            return weights
        position, start = self._first_here
        return [*weights[:position], np.array(start), *weights[position:]]


class SGD(Optimizer, algorithms.SGD):
    """Gradient descent with momentum: ``m ← momentum · m − learning_rate · g;  p ← p + m``. See `fastopt.SGD`."""

    _keywords: ClassVar = {"decay": 0.0}

    @hyper_parameters
    def __init__(
        self, learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False, **kwargs: Any
    ) -> None: ...  # fmt: skip


class RMSprop(Optimizer, algorithms.RMSprop):
    """``a ← rho · a + (1 − rho) · g²;  p ← p − learning_rate · g / (√a + epsilon)``. See `fastopt.RMSprop`."""

    _first_here = (0, 0)

    @hyper_parameters
    def __init__(self, learning_rate: float = 0.001, rho: float = 0.9, **kwargs: Any) -> None: ...


class Adagrad(Optimizer, algorithms.Adagrad):
    """``a ← a + g²;  p ← p − learning_rate · g / (√a + epsilon)``, a from 0. See `fastopt.Adagrad`."""

    _first_here = (0, 0)

    @hyper_parameters
    def __init__(self, learning_rate: float = 0.01, **kwargs: Any) -> None: ...


class Adadelta(Optimizer, algorithms.Adadelta):
    """Steps in the unit of the parameter. See `fastopt.Adadelta`."""

    _first_here = (0, 0)

    @hyper_parameters
    def __init__(self, learning_rate: float = 1.0, rho: float = 0.95, **kwargs: Any) -> None: ...


class Adam(Optimizer, algorithms.Adam):
    """Steps scaled by running means of the gradient and of its square; AMSGrad. See `fastopt.Adam`."""

    @hyper_parameters
    def __init__(
        self, learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, amsgrad: bool = False,
        **kwargs: Any,
    ) -> None: ...  # fmt: skip


class Adamax(Optimizer, algorithms.Adamax):
    """Adam under the infinity norm. See `fastopt.Adamax`."""

    @hyper_parameters
    def __init__(
        self, learning_rate: float = 0.002, beta_1: float = 0.9, beta_2: float = 0.999, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Nadam(Optimizer, algorithms.Nadam):
    """Adam with Nesterov's momentum. See `fastopt.Nadam`, whose momentum warms up as if ``schedule_decay`` were 1."""

    _keywords: ClassVar = {"epsilon": EPSILON, "schedule_decay": 0.004}
    _first_here = (1, 1.0)

    @hyper_parameters
    def __init__(
        self, learning_rate: float = 0.002, beta_1: float = 0.9, beta_2: float = 0.999, **kwargs: Any
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
