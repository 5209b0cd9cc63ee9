"""How the eras looked a function up by its name, and what they said when there was none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def find_1(identifier: Any, functions: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """Keras 1: a name is looked up, all else is returned as it is.

    Raises
    ------
    ValueError
        "Invalid objective: …"; 1.0 raised a plain Exception, which a ValueError is too.
    """
    if not isinstance(identifier, str):
        return identifier
    if identifier not in functions:
        raise ValueError(f"Invalid {kind}: {identifier}; the names are {', '.join(functions)}")
    return functions[identifier]


def find_2(identifier: Any, functions: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """Keras 2: a name is looked up, a callable is returned as it is, all else is refused.

    Raises
    ------
    ValueError
        "Unknown loss function:…", "Could not interpret loss function identifier".
    """
    if isinstance(identifier, str):
        if identifier not in functions:
            raise ValueError(f"Unknown {kind}:{identifier}; the names are {', '.join(functions)}")
        return functions[identifier]
    if callable(identifier):
        return identifier
    raise ValueError(f"Could not interpret {kind} identifier: {identifier!r}")
