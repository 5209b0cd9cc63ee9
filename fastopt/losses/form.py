"""What a loss function computes."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def check_smoothing(from_logits: Any, label_smoothing: Any) -> None:
    """Refuse what crossentropies cannot take as these arguments."""
    check_flag("from_logits", from_logits)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
