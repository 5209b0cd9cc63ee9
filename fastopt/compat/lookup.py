"""Optimizers by name, in the ways of Keras 1 and of Keras 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..optimizer import Optimizer

Classes = Mapping[str, type[Optimizer]]
"""The optimizer classes of a release, by lower-case name."""


def by_lower_name(*classes: type[Optimizer]) -> Classes:
    """Classes under their names in lower case."""
    return {kind.__name__.lower(): kind for kind in classes}


def exact(classes: Classes, identifier: Any, kwargs: Mapping[str, Any] | None, error: type[Exception]) -> Any:
    """``get`` of Keras 1: a class's name or its lower-case alias, ``{"name": …, **kwargs}``, or anything else."""
    if isinstance(identifier, Mapping):
        kwargs = dict(identifier)
        identifier = kwargs.pop("name", None)
    elif not isinstance(identifier, str):
        return identifier
    kind = classes.get(str(identifier).lower())
    if kind is None or identifier not in (kind.__name__, kind.__name__.lower()):
        raise error(f"Invalid optimizer: {identifier}")
    return kind(**(kwargs or {}))


def deserialize(classes: Classes, config: Any, custom_objects: Mapping[str, Any] | None) -> Any:
    """``deserialize`` of Keras 2: from ``{"class_name": …, "config": …}``; names of built-in classes in any case."""
    if not isinstance(config, Mapping) or "class_name" not in config or "config" not in config:
        raise ValueError(f"Improper config format: {config}")
    name = config["class_name"]
    kind = (custom_objects or {}).get(name) or classes.get(str(name).lower())
    if kind is None:
        raise ValueError(f"Unknown optimizer: {name}")
    return kind.from_config(config["config"])


def serialize(optimizer: Any) -> dict[str, Any] | None:
    """``{"class_name": …, "config": …}``; None for None."""
    if optimizer is None:
        return None
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"Cannot serialize {optimizer!r}: it is no optimizer")
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def keras_2(*kinds: type[Optimizer]) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """``get`` and ``deserialize`` of Keras 2 for the optimizer classes of a release."""
    classes = by_lower_name(*kinds)

    def get(identifier: Any) -> Any:
        """An optimizer from a name in any case (with its defaults) or a config of `serialize`; an optimizer as it is.

        Raises
        ------
        ValueError
            If the name is unknown or the identifier is of another kind.
        """
        if isinstance(identifier, Optimizer):
            return identifier
        if isinstance(identifier, str):
            identifier = {"class_name": identifier, "config": {}}
        if not isinstance(identifier, Mapping):
            raise ValueError(f"Could not interpret optimizer identifier: {identifier}")
        return from_config(identifier)

    def from_config(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """The optimizer that `serialize` described; names of built-in classes in any case.

        Raises
        ------
        ValueError
            If the class is unknown or the config lacks a key.
        """
        return deserialize(classes, config, custom_objects)

    return get, from_config
