"""What users bring as scalar formulas, for a loss or an activation: options and a trial run."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable, Container, Mapping
from typing import Any

from .parameters import check_number


def check_name(name: Any, taken: Container[str], kind: str) -> None:
    """Refuse what cannot be the name of a new loss or activation."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")
    if name in taken:
        raise ValueError(f"{name} is a built-in {kind}: choose another name")


def scalar_options(name: str, options: Mapping[str, Any] | None) -> dict[str, float]:
    """Options as numbers, in their order."""
    options = dict(options or {})
    for key, value in options.items():
        check_number(f"{name}: {key}", value)
    return {key: float(value) for key, value in options.items()}


def scalars_class(options: Mapping[str, float]) -> Any:
    """A NamedTuple class with the options as fields."""
    return namedtuple("Scalars", list(options))


def try_formulas(name: str, formulas: Mapping[str, Callable[..., Any]], numbers: tuple[float, ...], s: Any) -> None:
    """Run each formula on plain numbers.

    Raises
    ------
    TypeError
        If one fails, or gives no number.
    """
    for role, formula in formulas.items():
        try:
            float(formula(*numbers, s))
        except Exception as error:
            raise TypeError(f"{name}: the {role} fails on {numbers}: {error!r}") from error


def describer(
    name: str,
    doc: str,
    arguments: tuple[str, ...],
    defaults: Mapping[str, float],
    make: Callable[[tuple[float, ...]], Any],
) -> Callable[..., Any]:
    """A function ``(*arguments, **options)`` that returns ``make(values of the options)``, with that signature."""
    kinds = inspect.Parameter
    parameters = [kinds(key, kinds.POSITIONAL_OR_KEYWORD) for key in arguments]
    parameters += [kinds(key, kinds.KEYWORD_ONLY, default=default) for key, default in defaults.items()]
    signature = inspect.Signature(parameters)

    def describe(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return make(tuple(scalar_options(name, {key: bound.arguments[key] for key in defaults}).values()))

    describe.__name__ = describe.__qualname__ = name
    describe.__doc__ = doc
    describe.__signature__ = signature  # type: ignore[attr-defined]
    return describe
