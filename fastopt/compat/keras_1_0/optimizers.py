"""The optimizers of Keras 1.0.2.

Epsilon is inside the root in RMSprop and Adagrad; only SGD has a ``decay``, and applies it whatever its sign. Arguments
that a class does not know are swallowed: ``SGD(learning_rate=0.1)`` runs at ``lr=0.01``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...signatures import hyper_parameters
from .. import algorithms, lookup
from ..base import CLIPS, LegacyOptimizer


class Optimizer(LegacyOptimizer):
    """Base of the optimizers of Keras 1.0.2."""

    release = "1.0.2"
    _decays_always = True
    _epsilon_inside_root = True
    _weights_error = Exception
    _length_message = (
        "Provided weight array does not match  weights ({own} optimizer params vs. {given} provided weights)"
    )

    def _keyword_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in given.items() if key in CLIPS}

    def get_config(self) -> dict[str, Any]:
        """The keys of the release, the class's name first, without the clipping arguments."""
        config = super().get_config()
        return {"name": type(self).__name__, **{key: value for key, value in config.items() if key not in CLIPS}}


class SGD(Optimizer, algorithms.SGD):
    """Gradient descent with momentum: ``m ← momentum · m − lr · g;  p ← p + m``. See `fastopt.SGD`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.01, momentum: float = 0.0, decay: float = 0.0, nesterov: bool = False,
        *args: Any, **kwargs: Any,
    ) -> None: ...  # fmt: skip


class RMSprop(Optimizer, algorithms.RMSprop):
    """``a ← rho · a + (1 − rho) · g²;  p ← p − lr · g / √(a + epsilon)``. See `fastopt.RMSprop`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.001, rho: float = 0.9, epsilon: float = 1e-6, *args: Any, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Adagrad(Optimizer, algorithms.Adagrad):
    """``a ← a + g²;  p ← p − lr · g / √(a + epsilon)``, a from 0. See `fastopt.Adagrad`."""

    @hyper_parameters
    def __init__(self, lr: float = 0.01, epsilon: float = 1e-6, *args: Any, **kwargs: Any) -> None: ...


class Adadelta(Optimizer, algorithms.Adadelta):
    """Steps in the unit of the parameter. See `fastopt.Adadelta`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 1.0, rho: float = 0.95, epsilon: float = 1e-6, *args: Any, **kwargs: Any
    ) -> None: ...  # fmt: skip


class Adam(Optimizer, algorithms.Adam):
    """Steps scaled by running means of the gradient and of its square. See `fastopt.Adam`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        *args: Any, **kwargs: Any,
    ) -> None: ...  # fmt: skip


class Adamax(Optimizer, algorithms.Adamax):
    """Adam under the infinity norm. See `fastopt.Adamax`."""

    @hyper_parameters
    def __init__(
        self, lr: float = 0.002, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        *args: Any, **kwargs: Any,
    ) -> None: ...  # fmt: skip


sgd = SGD
rmsprop = RMSprop
adagrad = Adagrad
adadelta = Adadelta
adam = Adam
adamax = Adamax

_CLASSES = lookup.by_lower_name(SGD, RMSprop, Adagrad, Adadelta, Adam, Adamax)


def get(identifier: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """An optimizer by its class's name or lower-case alias, or from ``{"name": …, **kwargs}``, which is left as it is.

    Anything else is given back. The release raises a plain Exception for an unknown name.
    """
    return lookup.exact(_CLASSES, identifier, kwargs, Exception)


def optimizer_from_config(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """An optimizer from ``{"class_name": …, "config": …}``, names in any case; the function came with Keras 1.0.7.

    Raises
    ------
    ValueError
        If the class is unknown.
    """
    return lookup.deserialize(_CLASSES, config, custom_objects)


def __getattr__(name: str) -> Any:
    hint = ": it came with Keras 1.0.5" if name in ("Nadam", "nadam") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
