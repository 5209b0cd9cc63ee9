"""Losses and activations that torch has, too: what both sides compute, from the same numbers.

Of an activation forward and backward by themselves; of a loss value and gradient, torch's by a forward and a backward.
Each once with ``out=``, into memory that is reused, and once into a new array, as torch always does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from .. import activations, losses
from .memory import Array

SHAPE = (4_096, 1_000)


class Function(NamedTuple):
    """Something that both can compute."""

    name: str
    ours: Callable[[Array | None], Any]  # of `out`
    theirs: Callable[[], Any]
    result: Array  # what is like it can be `out`
    loose: float = 1.0  # factor on the tolerance


class Activation(NamedTuple):
    """torch's function for one of fastopt's."""

    name: str
    theirs: Any
    options: dict[str, Any] = {}  # noqa: RUF012
    label: str = ""


ACTIVATIONS = [
    Activation("celu", functional.celu),
    Activation("elu", functional.elu),
    Activation("exponential", torch.exp),
    Activation("gelu", functional.gelu),
    Activation("gelu", functools.partial(functional.gelu, approximate="tanh"), {"approximate": True}, "gelu-tanh"),
    Activation("glu", functional.glu),
    Activation("hard_shrink", functional.hardshrink),
    Activation("hard_sigmoid", functional.hardsigmoid),
    Activation("hard_silu", functional.hardswish),
    Activation("hard_tanh", functional.hardtanh),
    Activation("leaky_relu", functools.partial(functional.leaky_relu, negative_slope=0.2)),
    Activation("log_sigmoid", functional.logsigmoid),
    Activation("log_softmax", functools.partial(functional.log_softmax, dim=-1)),
    Activation("mish", functional.mish),
    Activation("relu", functional.relu),
    Activation("relu6", functional.relu6),
    Activation("selu", functional.selu),
    Activation("sigmoid", torch.sigmoid),
    Activation("silu", functional.silu),
    Activation("soft_shrink", functional.softshrink),
    Activation("softmax", functools.partial(functional.softmax, dim=-1)),
    Activation("softplus", functional.softplus),
    Activation("softsign", functional.softsign),
    Activation("tanh", torch.tanh),
    Activation("tanh_shrink", functional.tanhshrink),
    Activation("threshold", lambda x: functional.threshold(x, 0.5, 0.25), {"threshold": 0.5, "default_value": 0.25}),
]


class Loss(NamedTuple):
    """torch's function, of predictions and targets, for one of fastopt's."""

    name: str
    targets: str
    predictions: str
    theirs: Any
    options: dict[str, Any] = {}  # noqa: RUF012
    label: str = ""
    loose: float = 1.0


def _kl_divergence(predictions: Any, targets: Any) -> Any:
    return functional.kl_div(predictions.log(), targets, reduction="batchmean")


def _poisson(predictions: Any, targets: Any) -> Any:
    return functional.poisson_nll_loss(predictions, targets, log_input=False, eps=1e-7)


def _cosine_similarity(predictions: Any, targets: Any) -> Any:
    return -functional.cosine_similarity(predictions, targets, dim=-1).mean()


OF_LOGITS = {"from_logits": True}
LOSSES = [
    Loss("mean_squared_error", "real", "x", functional.mse_loss),
    Loss("mean_absolute_error", "real", "x", functional.l1_loss),
    Loss("huber", "real", "x", functional.huber_loss),
    Loss("binary_crossentropy", "binary", "probability", functional.binary_cross_entropy),
    Loss("binary_crossentropy", "binary", "x", functional.binary_cross_entropy_with_logits, OF_LOGITS, "bce-logits"),
    Loss("categorical_crossentropy", "share", "x", functional.cross_entropy, OF_LOGITS, "ce-logits"),
    Loss("sparse_categorical_crossentropy", "label", "x", functional.cross_entropy, OF_LOGITS, "sparse-ce-logits"),
    Loss("kl_divergence", "share", "probability", _kl_divergence, loose=10.0),  # it adds up shares that nearly cancel
    Loss("poisson", "probability", "other_probability", _poisson),
    Loss("cosine_similarity", "real", "x", _cosine_similarity, loose=10.0),  # torch's squares are added in float32
]


def title_of(each: Activation | Loss) -> str:
    """Return what tells one from the others."""
    return each.label or each.name


def names() -> list[str]:
    """Name all functions, in order."""
    both = [f"{title_of(each)}/{way}" for each in ACTIVATIONS for way in ("forward", "backward")]
    return [*both, *map(title_of, LOSSES)]


def _numbers(seed: int) -> dict[str, Any]:
    """Name → numbers of a kind."""
    rng = np.random.default_rng(seed)
    rows, columns = SHAPE
    shares = rng.random(SHAPE, np.float32)
    return {
        "x": 3 * rng.standard_normal(SHAPE, np.float32),
        "real": rng.standard_normal(SHAPE, np.float32),
        "probability": 0.01 + 0.98 * rng.random(SHAPE, np.float32),
        "other_probability": 0.01 + 0.98 * rng.random(SHAPE, np.float32),
        "binary": rng.integers(0, 2, SHAPE).astype(np.float32),
        "share": shares / shares.sum(1, keepdims=True),
        "label": rng.integers(0, columns, rows),
    }


def functions(seed: int = 0) -> Iterator[Function]:
    """All of them, on arrays that belong to the seed."""
    given = _numbers(seed)
    for activation in ACTIVATIONS:
        yield from _both_ways(activation, given["x"], given["real"])
    for loss in LOSSES:
        yield _valued(loss, given[loss.targets], given[loss.predictions])


def _both_ways(activation: Activation, x: Array, slopes: Array) -> Iterator[Function]:
    """Forward and backward."""
    name, theirs, options, _ = activation
    ours, label = getattr(activations, name), title_of(activation)
    tensor, leaf = torch.from_numpy(x), torch.from_numpy(x).requires_grad_()
    y = ours(x, **options)
    yield Function(f"{label}/forward", lambda out: ours(x, out=out, **options), lambda: theirs(tensor).numpy(), y)
    dy, derivative = np.ascontiguousarray(slopes[:, : y.shape[1]]), activations.backward(name, **options)
    result, slope = theirs(leaf), torch.from_numpy(dy)
    yield Function(
        f"{label}/backward",
        lambda out: derivative(dy, x, y, out=out),
        lambda: _slopes(result, leaf, slope),
        x,
    )


def _slopes(result: Any, leaf: Any, slope: Any) -> Array:
    """dx by torch."""
    found: Any = torch.autograd.grad(result, leaf, slope, retain_graph=True)[0]
    return np.asarray(found)


def _valued(loss: Loss, targets: Any, predictions: Array) -> Function:
    """Value and gradient."""
    ours = losses.value_and_grad(loss.name, **loss.options)
    leaf: Any = torch.from_numpy(predictions).requires_grad_()
    given = torch.from_numpy(targets)

    def theirs() -> tuple[float, Array]:
        leaf.grad = None
        value = loss.theirs(leaf, given)
        value.backward()
        return value.item(), leaf.grad.numpy()

    return Function(title_of(loss), lambda out: ours(targets, predictions, out=out), theirs, predictions, loss.loose)


def check(function: Function) -> None:
    """Have both sides compute the same.

    Raises
    ------
    AssertionError
        If they do not.
    """
    found, expected = function.ours(None), function.theirs()
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for one, two in pairs:
        limit = function.loose * 2e-6 * np.abs(two).max()
        np.testing.assert_allclose(one, two, rtol=function.loose * 2e-5, atol=limit, err_msg=function.name)
