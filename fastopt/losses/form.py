"""What a loss function computes, and the decorator that makes functions of such descriptions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, cast

from ..parameters import check_flag, check_number


class Form(NamedTuple):
    """A formula of the kernels, and how a call's arrays reach it."""

    formula: Any
    scalars: tuple[float, ...] = ()
    mean: bool = True  # over the row; else the sum
    axis: int = -1
    smoothing: float = 0.0
    classes: bool = False  # smoothing goes to one of so many classes, not to one of two
    binary_labels: bool = False  # targets that are all 0 or 1 become -1 or 1
    ignore_class: int | None = None


_Arguments = ParamSpec("_Arguments")


class LossFunction(Protocol[_Arguments]):
    """A loss function: gives one value per sample; its ``form`` takes the options alone."""

    __name__: str
    form: Callable[[dict[str, Any]], Form]

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        """One value per sample."""


def loss_function(describe: Callable[_Arguments, Any]) -> LossFunction[_Arguments]:
    """Decorator: a function whose body returns the `Form` for its options becomes one that computes it.

    The result has the signature of what is decorated, and gives one value per sample. `value_and_grad` takes it too.
    """
    signature = inspect.signature(describe)

    @functools.wraps(describe)
    def function(*args: Any, **kwargs: Any) -> Any:
        from .evaluation import values

        bound = signature.bind(*args, **kwargs)
        form = describe(*bound.args, **bound.kwargs)
        return values(form, *bound.args[:2])

    result = cast("LossFunction[_Arguments]", function)
    result.form = lambda options: describe(None, None, **options)  # type: ignore
    return result


def check_smoothing(from_logits: Any, label_smoothing: Any) -> None:
    """Refuse what crossentropies cannot take as these arguments."""
    check_flag("from_logits", from_logits)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
