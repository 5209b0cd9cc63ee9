"""Optimizers by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from .optimizer import Optimizer

_Kind = TypeVar("_Kind", bound=type[Optimizer])

_OLD_RELEASES = "fastopt.compat."

_CLASSES: dict[str, type[Optimizer]] = {}
_BUILT_IN: set[str] = set()


def add(kind: _Kind, *, built_in: bool = False) -> _Kind:
    """Make a class known under its name.

    Raises
    ------
    ValueError
        If a built-in optimizer has that name.
    """
    key = kind.__name__.lower()
    if key in _BUILT_IN:
        raise ValueError(f"{kind.__name__} is a built-in optimizer: choose another name")
    _CLASSES[key] = kind
    if built_in:
        _BUILT_IN.add(key)
    return kind


def is_built_in(name: str) -> bool:
    """Whether a name, in any case, belongs to fastopt itself."""
    return name.lower() in _BUILT_IN


def is_known(kind: type[Optimizer]) -> bool:
    """Whether `deserialize` finds a class again that `serialize` has named."""
    return _CLASSES.get(kind.__name__.lower()) is kind or kind.__module__.startswith(_OLD_RELEASES)


def names() -> list[str]:
    """The names that `get` knows."""
    return [kind.__name__ for kind in _CLASSES.values()]


def find(name: str) -> type[Optimizer]:
    """The optimizer class of a name, whatever its case.

    Raises
    ------
    ValueError
        If there is none: the message lists the valid names.
    """
    try:
        return _CLASSES[name.lower()]
    except (KeyError, AttributeError):
        raise ValueError(f"unknown optimizer {name!r}: the names are {', '.join(names())}") from None


def get(identifier: Any) -> Any:
    """An optimizer from a name (with its defaults), a config of `serialize`, or an optimizer, returned as it is.

    Parameters
    ----------
    identifier : str, mapping, Optimizer or None
        None gives None, as in Keras.

    Raises
    ------
    ValueError, TypeError
        If the name is unknown or the identifier is of another kind.
    """
    if identifier is None or isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, str):
        return find(identifier)()
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    raise TypeError(f"expected a name, a config or an Optimizer, got {type(identifier).__name__}")


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """``{"class_name": …, "config": …}``, JSON-able; for a class of an old release also ``"module"``."""
    kind = type(optimizer)
    elsewhere = {} if _CLASSES.get(kind.__name__.lower()) is kind else {"module": kind.__module__}
    return {**elsewhere, "class_name": kind.__name__, "config": optimizer.get_config()}


def deserialize(config: Mapping[str, Any]) -> Any:
    """The optimizer that `serialize` described.

    Raises
    ------
    ValueError
        If the config lacks its keys or names an unknown class.
    """
    if "class_name" not in config or "config" not in config:
        raise ValueError(f'expected {{"class_name": …, "config": …}}, got the keys {sorted(config)}')
    name, module = config["class_name"], str(config.get("module"))
    old = module.startswith(_OLD_RELEASES)  # Keras's own modules may stand there too; nothing else is imported
    kind = getattr(importlib.import_module(module), name) if old else find(name)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ValueError(f"{module}.{name} is no optimizer")
    return kind.from_config(config["config"])
