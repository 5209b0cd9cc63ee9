"""Losses by name, and users' own formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..formulas import check_name, describer, scalar_options, scalars_class, try_formulas
from ..kernels.losses import engine
from . import classes, crossentropies, functions
from .classes import Loss
from .evaluation import loss_function
from .form import Form

_NAMES = {
    "mean_squared_error": ("mse", "MSE"),
    "mean_absolute_error": ("mae", "MAE"),
    "mean_absolute_percentage_error": ("mape", "MAPE"),
    "mean_squared_logarithmic_error": ("msle", "MSLE"),
    "squared_hinge": (),
    "hinge": (),
    "categorical_hinge": (),
    "binary_crossentropy": ("bce", "BCE"),
    "categorical_crossentropy": (),
    "sparse_categorical_crossentropy": (),
    "kl_divergence": ("kld", "KLD", "kullback_leibler_divergence"),
    "poisson": (),
    "cosine_similarity": ("cosine", "cosine_proximity"),
    "huber": ("huber_loss",),
    "log_cosh": ("logcosh",),
    "binary_focal_crossentropy": (),
    "categorical_focal_crossentropy": (),
    "categorical_generalized_cross_entropy": (),
    "dice": (),
    "tversky": (),
    "circle": (),
    "ctc": (),
}
"""Names of the functions → what else they are, or were, called in Keras."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    alias: getattr(crossentropies if hasattr(crossentropies, name) else functions, name)
    for name, aliases in _NAMES.items()
    for alias in (name, *aliases)
}
"""Every name → function."""


CLASSES: dict[str, type[Loss]] = {
    name: kind for name, kind in vars(classes).items() if isinstance(kind, type) and kind.__base__ is Loss
}
"""Class name → class."""

_BUILT_IN = {*FUNCTIONS, *CLASSES}


def get(identifier: Any) -> Any:
    """A loss function from its name, an instance from a class's name or a config; a callable is returned as it is.

    Parameters
    ----------
    identifier : str, mapping, callable or None
        Names of Keras 1 to 3, as they are written there; None gives None.

    Raises
    ------
    ValueError
        If the name is unknown: the message lists the valid ones.
    TypeError
        If the identifier is of another kind.
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        if identifier in FUNCTIONS:
            return FUNCTIONS[identifier]
        if identifier in CLASSES:
            return CLASSES[identifier]()
        raise ValueError(f"unknown loss {identifier!r}: the names are {', '.join([*FUNCTIONS, *CLASSES])}")
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if callable(identifier):
        return identifier() if isinstance(identifier, type) else identifier
    raise TypeError(f"expected a name, a config or a callable, got {type(identifier).__name__}")


def serialize(loss: Any) -> Any:
    """The name of a loss function; ``{"class_name": …, "config": …}`` of a `Loss`.

    Raises
    ------
    ValueError
        If the loss is not known by a name.
    """
    if isinstance(loss, Loss):
        return {"class_name": type(loss).__name__, "config": loss.get_config()}
    name = getattr(loss, "__name__", None)
    if name not in FUNCTIONS or FUNCTIONS[name] is not loss:
        raise ValueError(f"{loss!r} is no loss that a name stands for")
    return name


def deserialize(config: Any) -> Any:
    """Make what `serialize` described.

    Raises
    ------
    ValueError
        If it names an unknown loss, or lacks its keys.
    """
    if not isinstance(config, Mapping):
        return get(config)
    if "class_name" not in config or "config" not in config:
        raise ValueError(f'expected {{"class_name": …, "config": …}}, got the keys {sorted(config)}')
    if config["class_name"] not in CLASSES:
        raise ValueError(f"unknown loss class {config['class_name']!r}: the names are {', '.join(CLASSES)}")
    return CLASSES[config["class_name"]].from_config(config["config"])


def register(
    name: str,
    value: Callable[..., Any],
    derivative: Callable[..., Any],
    *,
    options: Mapping[str, float] | None = None,
    mean: bool = True,
) -> Callable[..., Any]:
    """Make a loss function of your own scalar formulas, compiled into the same fused kernels as the built-in ones.

    Parameters
    ----------
    name : str
        `get` knows it by this name; built-in names are taken.
    value, derivative : functions
        ``(target, prediction, s)`` over numbers, in the language that Numba compiles: an element's loss, and its
        derivative by the prediction. A bare literal turns float32 into float64: ``fastopt.kernels.maths`` has
        ``constant(0.5, prediction)`` and functions that keep their argument's type.
    options : mapping
        Name → default, a number: they become keyword arguments of the loss and fields of ``s``.
    mean : bool
        Whether a sample's value is the mean over its elements, or their sum.

    Returns
    -------
    function
        ``(y_true, y_pred, **options)``, one value per sample; `value_and_grad` takes it too.

    Raises
    ------
    TypeError, ValueError
        If the pieces do not fit together; the formulas are tried on plain numbers first.
    """
    check_name(name, _BUILT_IN, "loss")
    defaults = scalar_options(name, options)
    scalars = scalars_class(defaults)
    try_formulas(name, {"value": value, "derivative": derivative}, (0.25, 0.5), scalars(**defaults))
    formula = engine.from_formulas(value, derivative, scalars)

    doc = value.__doc__ or f"The loss {name}."
    describe = describer(name, doc, ("y_true", "y_pred"), defaults, lambda values: Form(formula, values, mean=mean))
    FUNCTIONS[name] = loss_function(describe)
    return FUNCTIONS[name]
