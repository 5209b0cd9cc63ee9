"""Losses: values against real Keras, gradients against torch's autograd, and everything around them."""

import json
import pickle
import re
import warnings
from typing import Any, NamedTuple

import children
import numpy as np
import pytest
from fastopt.kernels.cpu import launch
from fastopt.kernels.cpu.rowwise import BLOCK
from fastopt.kernels.losses import loops
from keras_reference import import_keras
from optional_torch import torch
from rows import rows
from test_kernels import double_arithmetic, packed

import fastopt
from fastopt import losses
from fastopt.compat.keras_1_0 import objectives as keras_1_0
from fastopt.compat.keras_2_2 import losses as keras_2_2
from fastopt.compat.keras_2_3 import losses as keras_2_3

pytestmark = pytest.mark.xdist_group("losses")  # one worker compiles the kernels
EPSILON = 1e-7
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
over_dtypes = rows("dtype", DTYPES, ids=str)


class Case(NamedTuple):
    """A loss with options, the kind of arrays it takes, and the same formula in torch, of float64 tensors."""

    name: str
    kind: str
    torch: Any
    options: dict = {}  # noqa: RUF012  # never written

    def __str__(self):
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def data(self, dtype, shape=(7, 5), seed=3):
        rng = np.random.default_rng(seed)
        real, share = rng.normal(size=(2, *shape)) * 2, rng.uniform(0.02, 0.98, (2, *shape))
        labels = rng.integers(0, shape[-1], shape[:-1])
        one_hot = (labels[..., None] == np.arange(shape[-1])).astype(float)
        y_true, y_pred = {
            "real": real,
            "positive": (np.abs(real[0]), np.abs(real[1]) + 0.01),
            "share": share,
            "binary": (np.round(share[0]), share[1]),
            "binary of logits": (np.round(share[0]), real[1]),
            "signs": (np.sign(real[0]), real[1]),
            "one-hot": (one_hot, share[1]),
            "one-hot of logits": (one_hot, real[1]),
            "labels": (labels, share[1]),
            "labels of logits": (labels, real[1]),
        }[self.kind]
        return y_true if "labels" in self.kind else y_true.astype(dtype), y_pred.astype(dtype)

    @property
    def function(self):
        return getattr(losses, self.name)

    def value_and_grad(self, *args, **kwargs):
        return losses.value_and_grad(self.name, **self.options)(*args, **kwargs)


def clipped(x, high=1 - EPSILON):
    return torch.clip(x, EPSILON, high)


def shares(p):
    return clipped(p / p.sum(-1, keepdim=True))


def log_ratio(y, p):
    return torch.log((torch.clip(p, EPSILON) + 1) / (torch.clip(y, EPSILON) + 1))


def crossentropy(y, p):
    return -(y * torch.log(clipped(p)) + (1 - y) * torch.log(1 - clipped(p)))


def unit(x):
    return x / torch.clip(x.norm(dim=-1, keepdim=True), EPSILON)


def as_one_hot(y, p):
    return torch.nn.functional.one_hot(y.long(), p.shape[-1])


def hinge(y, p):
    return torch.relu(1 - y * p)


def binary_focal(y, p, gamma):
    return (y * (1 - p) + (1 - y) * p) ** gamma * crossentropy(y, p)


def focal(y, p, gamma):
    return -(y * (1 - p) ** gamma * torch.log(p)).sum(-1)


with_logits = torch.nn.functional.binary_cross_entropy_with_logits

CASES = [
    Case("mean_squared_error", "real", lambda y, p: ((p - y) ** 2).mean(-1)),
    Case("mean_absolute_error", "real", lambda y, p: (p - y).abs().mean(-1)),
    Case(
        "mean_absolute_percentage_error",
        "real",
        lambda y, p: 100 * ((p - y) / torch.clip(y.abs(), EPSILON)).abs().mean(-1),
    ),
    Case("mean_squared_logarithmic_error", "positive", lambda y, p: (log_ratio(y, p) ** 2).mean(-1)),
    Case("mean_squared_logarithmic_error", "real", lambda y, p: (log_ratio(y, p) ** 2).mean(-1)),
    Case("hinge", "signs", lambda y, p: hinge(y, p).mean(-1)),
    Case("hinge", "binary of logits", lambda y, p: hinge(2 * y - 1, p).mean(-1)),
    Case("squared_hinge", "signs", lambda y, p: (hinge(y, p) ** 2).mean(-1)),
    Case("squared_hinge", "real", lambda y, p: (hinge(y, p) ** 2).mean(-1)),
    Case(
        "categorical_hinge",
        "one-hot of logits",
        lambda y, p: torch.relu(((1 - y) * p).amax(-1) - (y * p).sum(-1) + 1),
    ),
    Case("huber", "real", lambda y, p: torch.nn.functional.huber_loss(p, y, reduction="none").mean(-1)),
    Case(
        "huber",
        "real",
        lambda y, p: torch.nn.functional.huber_loss(p, y, reduction="none", delta=2.5).mean(-1),
        {"delta": 2.5},
    ),
    Case("log_cosh", "real", lambda y, p: torch.log(torch.cosh(p - y)).mean(-1)),
    Case("kl_divergence", "share", lambda y, p: (clipped(y, 1) * torch.log(clipped(y, 1) / clipped(p, 1))).sum(-1)),
    Case("kl_divergence", "real", lambda y, p: (clipped(y, 1) * torch.log(clipped(y, 1) / clipped(p, 1))).sum(-1)),
    Case("poisson", "positive", lambda y, p: (p - y * torch.log(p + EPSILON)).mean(-1)),
    Case("cosine_similarity", "real", lambda y, p: -(unit(y) * unit(p)).sum(-1)),
    Case("binary_crossentropy", "binary", lambda y, p: crossentropy(y, p).mean(-1)),
    Case(
        "binary_crossentropy", "share", lambda y, p: crossentropy(0.8 * y + 0.1, p).mean(-1), {"label_smoothing": 0.2}
    ),
    Case(
        "binary_crossentropy",
        "binary of logits",
        lambda y, p: with_logits(p, 0.7 * y + 0.15, reduction="none").mean(-1),
        {"from_logits": True, "label_smoothing": 0.3},
    ),
    Case("categorical_crossentropy", "one-hot", lambda y, p: -(y * torch.log(shares(p))).sum(-1)),
    Case(
        "categorical_crossentropy",
        "share",
        lambda y, p: -((0.9 * y + 0.1 / y.shape[-1]) * torch.log(shares(p))).sum(-1),
        {"label_smoothing": 0.1},
    ),
    Case(
        "categorical_crossentropy",
        "share",
        lambda y, p: -((0.9 * y + 0.1 / y.shape[-1]) * torch.log_softmax(p, -1)).sum(-1),
        {"from_logits": True, "label_smoothing": 0.1},
    ),
    Case(
        "categorical_crossentropy",
        "one-hot of logits",
        lambda y, p: -(y * torch.log_softmax(p, -1)).sum(-1),
        {"from_logits": True},
    ),
    Case("binary_focal_crossentropy", "binary", lambda y, p: binary_focal(y, p, 2).mean(-1)),
    Case(
        "binary_focal_crossentropy",
        "binary of logits",
        lambda y, p: ((0.3 + 0.4 * (0.8 * y + 0.1)) * binary_focal(0.8 * y + 0.1, torch.sigmoid(p), 0.7)).mean(-1),
        {"from_logits": True, "gamma": 0.7, "alpha": 0.7, "apply_class_balancing": True, "label_smoothing": 0.2},
    ),
    Case("categorical_focal_crossentropy", "one-hot", lambda y, p: 0.25 * focal(y, shares(p), 2)),
    Case(
        "categorical_focal_crossentropy",
        "one-hot of logits",
        lambda y, p: 0.5 * focal(0.9 * y + 0.1 / y.shape[-1], shares(torch.softmax(p, -1)), 1.5),
        {"from_logits": True, "gamma": 1.5, "alpha": 0.5, "label_smoothing": 0.1},
    ),
    Case(
        "categorical_generalized_cross_entropy",
        "labels",
        lambda y, p: (1 - (as_one_hot(y, p) * p).sum(-1) ** 0.7) / 0.7,
        {"q": 0.7},
    ),
    Case("dice", "share", lambda y, p: 1 - 2 * (y * p).sum(-1) / ((y + p).sum(-1) + EPSILON), {"axis": -1}),
    Case(
        "tversky",
        "share",
        lambda y, p: 1 - (y * p).sum(-1) / ((y * p + 0.3 * y * (1 - p) + 0.9 * p * (1 - y)).sum(-1) + EPSILON),
        {"axis": -1, "alpha": 0.3, "beta": 0.9},
    ),
    Case(
        "sparse_categorical_crossentropy",
        "labels",
        lambda y, p: -(as_one_hot(y, p) * torch.log(shares(p))).sum(-1),
    ),
    Case(
        "sparse_categorical_crossentropy",
        "labels of logits",
        lambda y, p: -(as_one_hot(y, p) * torch.log_softmax(p, -1)).sum(-1),
        {"from_logits": True},
    ),
]
over_cases = pytest.mark.parametrize("case", CASES, ids=str)
SHARES_ALONE = ("binary_focal_crossentropy", "categorical_focal_crossentropy", "dice", "tversky")
"""Whose targets are shares: of others their products and powers overflow."""
BY_NAME = {case.name: case for case in CASES}
FEW = [BY_NAME[name] for name in ("mean_squared_error", "cosine_similarity", "sparse_categorical_crossentropy")]
over_few = pytest.mark.parametrize("case", FEW, ids=str)


def tolerance(dtype, loose=1):
    return {
        "rtol": loose * (2e-5 if dtype.itemsize == 4 else 1e-11),
        "atol": loose * 2e-6 if dtype.itemsize == 4 else 1e-12,
    }


def autograd(case, y_true, y_pred, weights=None, divisor=1.0):
    """Value and gradient by torch, in float64."""
    prediction = torch.tensor(np.asarray(y_pred, np.float64), requires_grad=True)
    values = case.torch(torch.tensor(np.asarray(y_true, np.float64)), prediction)
    weights = 1.0 if weights is None else torch.tensor(np.asarray(weights, np.float64))
    total = (values * weights).sum() / divisor
    total.backward()
    return total.item(), prediction.grad.numpy(), values.detach().numpy()


@pytest.fixture
def keras():
    """The real one, which computes in float32 and divides by zero before it looks."""
    with np.errstate(all="ignore"):
        yield import_keras()


@pytest.fixture
def threads():
    before = dict(launch._state)
    yield fastopt.set_num_threads
    launch._state.update(before)


# -- values and gradients ----------------------------------------------------------------------------------------------


@over_dtypes
@over_cases
def test_values_are_those_of_keras(case, dtype, keras):
    for shape in ((7, 5), (2, 3, 4), (1, 1), (6,)):
        y_true, y_pred = case.data(dtype, shape)
        values = case.function(y_true, y_pred, **case.options)
        with warnings.catch_warnings():
            for kind in (SyntaxWarning, UserWarning):  # of one class
                warnings.simplefilter("ignore", kind)
            reference = getattr(keras.losses, case.name)(np.asarray(y_true), y_pred.astype(np.float64), **case.options)
        assert values.dtype == dtype and values.shape == y_pred.shape[:-1]
        np.testing.assert_allclose(values, reference, **tolerance(DTYPES[0]), err_msg=str(shape))
        np.testing.assert_allclose(values, autograd(case, y_true, y_pred)[2], **tolerance(dtype))


@over_dtypes
@over_cases
def test_gradients_are_those_of_autograd(case, dtype):
    y_true, y_pred = case.data(dtype)
    before = y_true.copy(), y_pred.copy()
    weights = np.linspace(0.0, 3.0, len(y_pred)).astype(dtype)
    for given, reduction, divisor in (
        (None, "sum_over_batch_size", 7),
        (weights, "mean", 7),
        (None, "sum", 1),
        (weights, "mean_with_sample_weight", weights.sum(dtype=np.float64)),
        (weights, "none", 1),
    ):
        value, gradient = case.value_and_grad(y_true, y_pred, given, reduction)
        total, slopes, values = autograd(case, y_true, y_pred, given, divisor)
        if reduction == "none":
            np.testing.assert_allclose(value, values * weights, **tolerance(dtype))
        else:
            assert isinstance(value, float)
            np.testing.assert_allclose(value, total, **tolerance(dtype))
        assert gradient.dtype == dtype and gradient.shape == y_pred.shape
        np.testing.assert_allclose(gradient, slopes, **tolerance(dtype, 5), err_msg=str(reduction))
    np.testing.assert_array_equal(before[0], y_true)
    np.testing.assert_array_equal(before[1], y_pred)


@over_cases
@rows("shape", [(3, BLOCK - 1), (2, BLOCK), (2, 2 * BLOCK + 17), (BLOCK + 5, 2), (1000, 1), (40000,)])
def test_rows_of_any_length(case, shape):
    if case.kind.startswith("labels") and len(shape) == 1:
        return
    y_true, y_pred = case.data(DTYPES[1], shape)
    weights = np.random.default_rng(1).uniform(size=shape[:-1])
    value, gradient = case.value_and_grad(y_true, y_pred, weights, "sum")
    total, slopes, values = autograd(case, y_true, y_pred, weights)
    np.testing.assert_allclose(value, total, rtol=1e-10)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(case.function(y_true, y_pred, **case.options), values, rtol=1e-10, atol=1e-14)


@over_dtypes
@over_cases
def test_results_do_not_depend_on_threads(case, dtype, threads):
    y_true, y_pred = case.data(dtype, (3001, 17))
    weights = np.random.default_rng(1).uniform(size=3001)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        value, gradient = case.value_and_grad(y_true, y_pred, weights)
        runs.append((value, gradient.tobytes(), case.function(y_true, y_pred, **case.options).tobytes()))
    assert runs[0] == runs[1] == runs[2]


@over_dtypes
@over_cases
def test_gradient_in_place_and_strided(case, dtype):
    y_true, y_pred = case.data(dtype, (6, 9))
    value, gradient = case.value_and_grad(y_true, y_pred)
    wide = np.zeros((12, 18), dtype)
    wide[::2, ::2] = y_pred
    strided = wide[::2, ::2]
    for prediction in (y_pred.copy(), np.asfortranarray(y_pred), strided):
        out = np.empty_like(prediction)
        again, same = case.value_and_grad(y_true, prediction, out=out)
        assert same is out and again == value
        np.testing.assert_array_equal(out, gradient)
        again, same = case.value_and_grad(y_true, prediction, out=prediction)
        assert same is prediction and again == value
        np.testing.assert_array_equal(prediction, gradient)
    assert not wide[1::2].any() and not wide[:, 1::2].any()


AXES = [BY_NAME[name] for name in ("cosine_similarity", "binary_crossentropy", "categorical_crossentropy")] + CASES[-2:]


@pytest.mark.parametrize("case", AXES, ids=str)
def test_any_axis(case):
    y_true, y_pred = case.data(DTYPES[1], (3, 4, 5))
    values = case.function(y_true, y_pred, **case.options)
    value, gradient = case.value_and_grad(y_true, y_pred)
    moved = np.ascontiguousarray(np.moveaxis(y_pred, -1, 1))
    target = y_true if case.kind.startswith("labels") else np.moveaxis(y_true, -1, 1)
    np.testing.assert_array_equal(case.function(target, moved, axis=1, **case.options), values)
    for out in (None, moved):
        again, other = case.value_and_grad(target, moved, axis=-2, out=out)
        assert again == value
        np.testing.assert_array_equal(np.moveaxis(other, 1, -1), gradient)


ELEMENTWISE = [case for case in CASES if case.function.form(case.options).formula.loop is loops.elements]


@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_float32_elements_are_computed_in_float32(case):
    """And in vectors. Sums are all that is float64."""
    formula = case.function.form(case.options).formula
    bindings = {"DTYPE": np.float32, "SCALARS": formula.scalars, **dict(formula.functions)}
    (text,) = launch.compiled(formula.loop, bindings, "test", None).compiled.inspect_llvm().values()
    assert [line for line in double_arithmetic(text) if not re.search("fpext|fadd", line)] == []
    assert max(packed(text, "fmul")) >= 4


# -- what is extreme ---------------------------------------------------------------------------------------------------


@over_dtypes
@pytest.mark.parametrize("large", [1e4, np.inf])
def test_extreme_logits(dtype, large):
    logits = np.array([[large, -large], [-large, large]], dtype)
    value, gradient = losses.value_and_grad("binary_crossentropy", from_logits=True)(
        np.eye(2), logits, reduction="none"
    )
    np.testing.assert_array_equal(value, [0, 0])
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))
    value, gradient = losses.value_and_grad("bce", from_logits=True)(1 - np.eye(2), logits, reduction="none")
    np.testing.assert_array_equal(value, [large, large])
    np.testing.assert_array_equal(gradient, [[0.5, -0.5], [-0.5, 0.5]])


@over_dtypes
def test_extreme_softmax(dtype):
    logits = np.array([[1e4, -1e4, 0.0], [3.0, -np.inf, 3.0]], dtype)
    value, gradient = losses.softmax_crossentropy(logits, [0, 2], reduction="none")
    np.testing.assert_allclose(value, [0.0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [0.5, 0, -0.5]], atol=1e-7)
    value, _ = losses.softmax_crossentropy(logits, [1, 1], reduction="none")
    np.testing.assert_array_equal(value, [2e4, np.inf])


@over_dtypes
def test_infinite_logits_cost_nothing_where_the_target_is_zero(dtype):
    """torch's crossentropy of indices, and the limit of finite logits; optax.safe_softmax_cross_entropy says the same.

    With smoothing no target is zero: both say infinity, also when the label's own class gets all of it from there.
    """
    logits = np.array([[0.0, 1.0, -np.inf], [2.0, -np.inf, -np.inf], [0.5, -np.inf, 1.5]], dtype)
    labels, tensor = np.array([0, 0, 2]), torch.tensor(logits, requires_grad=True)
    values = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels), reduction="none")
    values.sum().backward()
    one_hot = np.eye(3)[labels]
    for loss in (losses, keras_2_3):
        compute = loss.value_and_grad("categorical_crossentropy", from_logits=True)
        value, gradient = compute(one_hot, logits, reduction="none")
        np.testing.assert_allclose(value, values.detach(), rtol=1e-6)
        np.testing.assert_allclose(gradient, tensor.grad, atol=1e-6)
        np.testing.assert_array_equal(compute(one_hot, np.maximum(logits, -1e30), reduction="none")[0], value)
    for given in (labels, one_hot):
        np.testing.assert_array_equal(losses.softmax_crossentropy(logits, given, reduction="none")[0], value)
        for smoothing in (0.1, 1.0):
            value_of_smoothed, slopes = losses.softmax_crossentropy(
                logits, (labels + 1) % 3, reduction="none", label_smoothing=smoothing
            )
            np.testing.assert_array_equal(value_of_smoothed, np.inf)
            assert np.isfinite(slopes).all()
    nan = np.where(np.isinf(logits), np.nan, logits)
    assert np.isnan(losses.softmax_crossentropy(nan, one_hot, reduction="none")[0]).all()


@over_dtypes
def test_other_losses_where_a_target_of_zero_meets_infinity(dtype, keras):
    """Keras's values of finite predictions that go to infinity."""
    one_hot = np.array([[1.0, 0, 0], [0, 1, 0]], dtype)
    scores = np.array([[0.5, -np.inf, -np.inf], [0.25, 1.0, -np.inf]], dtype)
    value, gradient = losses.value_and_grad("categorical_hinge")(one_hot, scores, reduction="none")
    limit, slopes = losses.value_and_grad("categorical_hinge")(one_hot, np.maximum(scores, -1e30), reduction="none")
    np.testing.assert_allclose(value, keras.losses.categorical_hinge(one_hot, np.maximum(scores, -1e30)))
    np.testing.assert_array_equal(value, limit)
    np.testing.assert_array_equal(gradient, slopes)
    value, gradient = losses.value_and_grad("poisson")(np.zeros((1, 2), dtype), np.array([[np.inf, 2.0]], dtype))
    assert value == np.inf and (gradient == 0.5).all()
    value = losses.poisson(np.zeros((1, 2), dtype), np.array([[3.0, 2.0]], dtype))
    np.testing.assert_allclose(value, keras.losses.poisson(np.zeros((1, 2)), np.array([[3.0, 2.0]])))
    for value in (losses.kl_divergence(one_hot, one_hot), losses.categorical_crossentropy(one_hot, one_hot)):
        np.testing.assert_allclose(value, 0, atol=1e-6)


@over_dtypes
@over_cases
def test_nan_stays_nan(case, dtype):
    y_true, y_pred = case.data(dtype, (4, 3))
    y_pred[1, np.argmax(y_true[1]) if "one-hot" in case.kind else 2] = np.nan
    if case.kind.startswith("labels"):
        y_true[1] = 2
    values, gradient = case.value_and_grad(y_true, y_pred, reduction="none")
    assert np.isnan(values).tolist() == [False, True, False, False]
    assert np.isnan(gradient[1]).any() and np.isfinite(np.delete(gradient, 1, 0)).all()


@over_dtypes
@over_cases
def test_nan_targets_and_clipped_predictions(case, dtype):
    """A NaN reaches the gradient of its element even where a clip holds the prediction back."""
    for column in range(0 if case.kind.startswith("labels") else 3):
        for prediction in (-5.0, 0.0, 0.5, 5.0):
            y_true, y_pred = case.data(dtype, (1, 3))
            y_true[0, column], y_pred[0, column] = np.nan, prediction
            values, gradient = case.value_and_grad(y_true, y_pred, reduction="none")
            assert np.isnan(values[0]) and np.isnan(gradient[0, column])


@over_dtypes
@over_cases
@rows("opposite", [1, -1])
def test_the_largest_numbers_give_no_nan_where_keras_has_none(case, dtype, opposite, keras):
    largest = np.finfo(dtype).max
    for size in (largest, -largest, np.sqrt(largest), np.finfo(dtype).smallest_normal):
        for targets_too in (False, not case.kind.startswith("labels") and case.name not in SHARES_ALONE):
            y_true, y_pred = case.data(dtype, (1, 3))
            y_pred[0, 0] = size
            if targets_too:
                y_true[0, 0] = opposite * size
            values, gradient = case.value_and_grad(y_true, y_pred, reduction="none")
            reference = getattr(keras.losses, case.name)(y_true, y_pred, **case.options)
            assert np.isnan(reference).any() or not np.isnan(values).any()
            slopes = autograd(case, y_true, y_pred)[1]
            assert not (np.isnan(gradient) & ~np.isnan(slopes)).any()


@over_dtypes
@rows("of_target", [0.0, 1e-30, 1e-5, 1.0, 1e30])
@rows("of_prediction", [0.0, 1e-39, 1e-30, 1e-9, 1e30])
def test_cosine_of_any_size(dtype, of_target, of_prediction):
    """Squares neither overflow nor vanish; ε takes the place of small norms."""
    if dtype.itemsize == 8:  # as far out as its range allows; torch's own squares do not reach that far
        of_target, of_prediction = of_target**5, of_prediction**5
    y_true = np.array([[of_target, 0.3, 0.1]]) * [1, of_target, of_target]
    y_pred = np.array([[of_prediction, 0.6, 0.2]]) * [1, of_prediction, of_prediction]
    y_true, y_pred = y_true.astype(dtype), y_pred.astype(dtype)
    value, gradient = losses.value_and_grad("cosine")(y_true, y_pred)
    exact_true, exact = y_true.astype(np.longdouble), y_pred.astype(np.longdouble)
    epsilon = np.longdouble(1) * dtype.type(EPSILON)
    norm, norm_of_true = np.sqrt((exact**2).sum()), np.sqrt((exact_true**2).sum())
    unit_true = exact_true / max(norm_of_true, epsilon)
    similarity = (unit_true * exact).sum() / max(norm, epsilon)
    slopes = (exact / norm * similarity if norm > epsilon else 0) - unit_true
    least = np.finfo(dtype).smallest_normal
    np.testing.assert_allclose(value, -similarity, rtol=1e-6, atol=least)
    slopes = slopes / max(norm, epsilon)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=least + 2e-7 * np.abs(slopes).max())


@over_dtypes
def test_zeros_and_clips(dtype, keras):
    zeros, ones = np.zeros((2, 3), dtype), np.ones((2, 3), dtype)
    for name in ("binary_crossentropy", "kl_divergence", "cosine_similarity", "poisson", "mape", "msle"):
        values, gradient = losses.value_and_grad(name)(ones, zeros, reduction="none")
        reference = getattr(keras.losses, losses.get(name).__name__)(ones, zeros)
        np.testing.assert_allclose(values, reference, rtol=1e-6)
        assert np.isfinite(gradient).all()


# -- reductions, weights, masks ----------------------------------------------------------------------------------------

REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over_few
def test_reductions_are_those_of_keras(case, reduction, keras):
    class_name = _class_name(case.name)
    for shape, weights in [
        ((6, 4), None),
        ((6, 4), np.arange(6.0)),
        ((6, 4), np.arange(6.0)[:, None]),
        ((6, 4), np.zeros(6)),
        ((6, 4), 2.0),
        ((2, 3, 4), np.arange(6.0).reshape(2, 3)),
        ((2, 3, 4), np.arange(2.0)[:, None]),
        ((4,), 3.0),
    ]:
        y_true, y_pred = case.data(DTYPES[1], shape)
        if not np.shape(y_true):
            y_true = np.asarray(y_true)
        reference = getattr(keras.losses, class_name)(reduction=reduction, dtype="float64", **case.options)
        expected = reference(y_true, y_pred, sample_weight=weights)
        value, _ = case.value_and_grad(y_true, y_pred, weights, reduction)
        np.testing.assert_allclose(value, np.reshape(expected, np.shape(value)), rtol=1e-5)
        instance = getattr(losses, class_name)(reduction=reduction, **case.options)
        np.testing.assert_array_equal(instance(y_true, y_pred, weights), value)


def _class_name(name):
    return "".join(word.capitalize() for word in name.split("_"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@rows("from_logits", [True, False])
@rows("ignored", [-1, 1, 255])
def test_ignored_class(ignored, from_logits, reduction, keras):
    y_true, y_pred = np.array([0, ignored, 2, ignored]), CASES[-2].data(DTYPES[1], (4, 3))[1]
    for weights in (None, np.array([1.0, 2.0, 3.0, 4.0])):
        options = {"from_logits": from_logits, "ignore_class": ignored}
        reference = keras.losses.SparseCategoricalCrossentropy(reduction=reduction, dtype="float64", **options)
        compute = losses.value_and_grad("sparse_categorical_crossentropy", **options)
        value, gradient = compute(y_true, y_pred, weights, reduction)
        np.testing.assert_allclose(value, reference(y_true, y_pred, weights), rtol=1e-5)
        assert not gradient[[1, 3]].any() and gradient[[0, 2]].all()
    everything, gradient = compute(np.full(4, ignored), y_pred)
    assert everything == 0 and not gradient.any()


def test_empty_batches():
    for case in CASES:
        y_true, y_pred = np.zeros((0,) if case.kind.startswith("labels") else (0, 5)), np.zeros((0, 5), np.float32)
        value, gradient = case.value_and_grad(y_true, y_pred)
        assert value == 0 and gradient.shape == (0, 5)
        assert case.function(y_true, y_pred, **case.options).shape == (0,)
    value, gradient = losses.value_and_grad("mse")(np.zeros((3, 0)), np.zeros((3, 0)))
    assert np.isnan(value) and gradient.shape == (3, 0)


def test_ranks_that_differ_by_one(keras):
    rng = np.random.default_rng(0)
    for true, pred in [((4,), (4, 1)), ((4, 1), (4,)), ((4, 3, 1), (4, 3)), ((4, 3), (4, 3, 1))]:
        y_true, y_pred = rng.normal(size=true), rng.normal(size=pred)
        values = losses.mean_squared_error(y_true, y_pred)
        np.testing.assert_allclose(values, keras.losses.mean_squared_error(y_true, y_pred), rtol=1e-5)
        _, gradient = losses.value_and_grad("mse")(y_true, y_pred, reduction="sum")
        columns = 3 if len(true) + len(pred) == 5 else 1
        np.testing.assert_allclose(gradient, 2 * (y_pred - y_true.reshape(pred)) / columns)
        losses.value_and_grad("mse")(y_true, y_pred, reduction="sum", out=y_pred)
        np.testing.assert_array_equal(y_pred, gradient)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint8, np.float16, np.float32])
def test_targets_of_any_dtype(dtype):
    y_true, y_pred = BY_NAME["binary_crossentropy"].data(DTYPES[1])
    assert losses.BinaryCrossentropy()(y_true.astype(dtype), y_pred) == losses.BinaryCrossentropy()(y_true, y_pred)
    labels, shares_ = BY_NAME["sparse_categorical_crossentropy"].data(DTYPES[1], (5, 2))
    expected = losses.sparse_categorical_crossentropy(labels, shares_)
    np.testing.assert_array_equal(losses.sparse_categorical_crossentropy(labels.astype(dtype), shares_), expected)
    np.testing.assert_array_equal(losses.sparse_categorical_crossentropy(labels[:, None], shares_), expected)


def test_softmax_crossentropy_of_labels_and_of_distributions():
    labels, logits = CASES[-1].data(DTYPES[1], (50, 7))
    for smoothing in (0.0, 0.25):
        one = losses.softmax_crossentropy(logits, labels, label_smoothing=smoothing)
        other = losses.softmax_crossentropy(logits, np.eye(7)[labels], label_smoothing=smoothing)
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
        )
        np.testing.assert_allclose([one[0], other[0]], expected.item(), rtol=1e-12)
        np.testing.assert_allclose(one[1], other[1], atol=1e-15)


# -- names, classes, functions of one's own ----------------------------------------------------------------------------


def test_every_name_of_keras(keras):
    for name, known in keras.src.losses.ALL_OBJECTS_DICT.items():
        if name in ("Loss", "LossFunctionWrapper"):
            continue
        assert losses.get(name).__class__.__name__ == (known.__name__ if isinstance(known, type) else "function")
    for era in (keras_1_0, keras_2_2, keras_2_3):
        for name in era.FUNCTIONS:
            assert callable(losses.get(name)), name
            losses.value_and_grad(era.get(name))
    assert losses.get(None) is None and losses.get(len) is len
    with pytest.raises(ValueError, match="mean_squared_error"):
        losses.get("mean_sqared_error")
    with pytest.raises(TypeError):
        losses.get(3)


def test_configs():
    for loss in (losses.Huber(delta=2.0, reduction="sum"), losses.get("KLDivergence"), losses.huber):
        for copied in (losses.deserialize(losses.serialize(loss)), pickle.loads(pickle.dumps(loss))):
            assert losses.serialize(copied) == losses.serialize(loss)
    assert losses.value_and_grad(losses.Huber(delta=2.0, reduction="sum"))([[0.0]], [[3.0]])[0] == 4.0
    assert losses.get({"class_name": "Huber", "config": {"delta": 3.0}}).options == {"delta": 3.0}
    with pytest.raises(ValueError, match="class_name"):
        losses.get({})
    loss = losses.Huber(delta=np.float32(2))
    assert losses.Huber.from_config(json.loads(json.dumps(loss.get_config()))) == loss != losses.Huber(delta=3.0)
    assert hash(losses.Huber(delta=2.0)) == hash(loss) and loss != losses.LogCosh()
    for make in (losses.Loss, lambda: losses.get(losses.Loss)):
        with pytest.raises(TypeError, match="abstract"):
            make()
    with pytest.raises(ValueError, match="no loss that a name"):
        losses.serialize(len)


def cubed(target, prediction, s):
    """|p − t|³ times a factor."""
    return abs(prediction - target) ** 3 * s.factor


def cubed_slope(target, prediction, s):
    error = prediction - target
    return s.factor * 3 * error * abs(error)


def test_registered_formulas():
    mine = losses.register("cubed", cubed, cubed_slope, options={"factor": 2.0})
    y_true, y_pred = CASES[0].data(DTYPES[0])
    assert losses.get("cubed") is mine
    np.testing.assert_allclose(mine(y_true, y_pred), 2 * (np.abs(y_pred - y_true) ** 3).mean(-1), rtol=1e-5)
    value, gradient = losses.value_and_grad("cubed", factor=1.0)(y_true, y_pred)
    case = Case("cubed", "real", lambda y, p: ((p - y).abs() ** 3).mean(-1))
    total, slopes, _ = autograd(case, y_true, y_pred, divisor=7)
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5)
    with pytest.raises(ValueError, match="built-in"):
        losses.register("mse", cubed, cubed_slope)
    with pytest.raises(TypeError, match="the value fails"):
        losses.register("broken", lambda target: target, cubed_slope)
    with pytest.raises(TypeError, match="unexpected"):
        losses.value_and_grad("cubed", power=1.0)


def test_functions_of_ones_own():
    def loss(y_true, y_pred):
        return np.square(y_pred - y_true).mean(-1)

    def slope(y_true, y_pred):
        return 2 * (y_pred - y_true) / y_pred.shape[-1]

    y_true, y_pred = CASES[0].data(DTYPES[1])
    weights = np.arange(7.0)
    for reduction in REDUCTIONS:
        value, gradient = losses.value_and_grad(loss, gradient=slope)(y_true, y_pred, weights, reduction)
        expected, slopes = losses.value_and_grad("mse")(y_true, y_pred, weights, reduction)
        np.testing.assert_allclose(value, expected)
        np.testing.assert_allclose(gradient, slopes)
    with pytest.raises(TypeError, match="gradient="):
        losses.value_and_grad(loss)
    with pytest.raises(TypeError, match="leave gradient= out"):
        losses.value_and_grad("mse", gradient=slope)
    with pytest.raises(ValueError, match="one value per sample"):
        losses.value_and_grad(lambda y, p: np.zeros(2), gradient=slope)(y_true, y_pred)
    with pytest.raises(ValueError, match="must have the shape"):
        losses.value_and_grad(loss, gradient=lambda y, p: np.zeros(2))(y_true, y_pred)


# -- the eras ----------------------------------------------------------------------------------------------------------


def test_cosine_proximity_of_the_eras():
    y_true, y_pred = BY_NAME["cosine_similarity"].data(DTYPES[1])
    now = losses.cosine_similarity(y_true, y_pred)
    np.testing.assert_allclose(keras_1_0.cosine_proximity(y_true, y_pred), now / 5)
    for era in (keras_2_2, keras_2_3):
        np.testing.assert_allclose(era.cosine_proximity(y_true, y_pred), now)
    value, gradient = keras_1_0.value_and_grad("cosine_proximity")(y_true, y_pred)
    expected, slopes = losses.value_and_grad("cosine_proximity")(y_true, y_pred)
    np.testing.assert_allclose(value, expected / 5)
    np.testing.assert_allclose(gradient, slopes / 5)
    np.testing.assert_allclose(keras_2_2.cosine(y_true, y_pred * 0), 0)


def test_hinge_of_the_eras():
    y_true, y_pred = np.array([[0, 1, 1]]), np.array([[0.5, 0.5, 2.0]])
    for era in (keras_1_0, keras_2_2):
        np.testing.assert_allclose(era.hinge(y_true, y_pred), [1.5 / 3])
        np.testing.assert_allclose(era.squared_hinge(y_true, y_pred), [1.25 / 3])
    np.testing.assert_allclose(keras_2_3.hinge(y_true, y_pred), [2.0 / 3])
    assert keras_2_3.hinge is losses.hinge


def test_options_and_names_of_the_eras():
    y_true, y_pred = BY_NAME["binary_crossentropy"].data(DTYPES[1])
    for era in (keras_1_0, keras_2_2):
        with pytest.raises(TypeError):
            era.binary_crossentropy(y_true, y_pred, from_logits=True)
        assert not {"huber_loss", "cosine_similarity"} & set(era.FUNCTIONS)
    assert "logcosh" not in keras_1_0.FUNCTIONS and "kullback_leibler_divergence" in keras_1_0.FUNCTIONS
    expected = losses.binary_crossentropy(y_true, y_pred, True, 0.25)
    np.testing.assert_array_equal(keras_2_3.binary_crossentropy(y_true, y_pred, True, 0.25), expected)
    np.testing.assert_array_equal(keras_2_3.huber_loss(y_true, y_pred, 0.1), losses.huber(y_true, y_pred, 0.1))
    np.testing.assert_array_equal(keras_2_2.logcosh(y_true, y_pred), losses.log_cosh(y_true, y_pred))
    assert isinstance(keras_2_3.get("CosineSimilarity"), keras_2_3.CosineSimilarity)
    assert keras_1_0.get(None) is None and keras_2_2.get(None) is None
    with pytest.raises(ValueError, match="Invalid objective: nothing"):
        keras_1_0.get("nothing")
    for era in (keras_2_2, keras_2_3):
        with pytest.raises(ValueError, match="Unknown loss function:nothing"):
            era.get("nothing")
        with pytest.raises(ValueError, match="Could not interpret loss function identifier"):
            era.get(7)


# -- hostile input -----------------------------------------------------------------------------------------------------

GOOD = np.full((3, 2), 0.5)
BAD_CALLS = {
    "shape": (ValueError, "same shape", "mse", (np.ones((3, 1)), GOOD), {}),
    "number": (ValueError, "at least one axis", "mse", (1.0, 2.0), {}),
    "half": (TypeError, "y_pred: expected float32 or float64", "mse", (GOOD, GOOD.astype(np.float16)), {}),
    "byte order": (TypeError, "float64, got >f8", "mse", (GOOD, GOOD.astype(">f8")), {}),
    "complex": (TypeError, "y_true: expected numbers", "mse", (GOOD * 1j, GOOD), {}),
    "text": (TypeError, "y_true: expected numbers", "mse", (np.array(["a"]), GOOD), {}),
    "ragged": (ValueError, "y_true: not an array", "mse", ([[1], [1, 2]], GOOD), {}),
    "reduction": (ValueError, "reduction must be one of", "mse", (GOOD, GOOD), {"reduction": "avg"}),
    "weights": (ValueError, "sample_weight: shape", "mse", (GOOD, GOOD, np.ones(2)), {}),
    "option": (TypeError, "unexpected", "mse", (GOOD, GOOD), {"delta": 1.0}),
    "delta": (ValueError, "delta", "huber", (GOOD, GOOD), {"delta": -1.0}),
    "smoothing": (ValueError, "label_smoothing", "bce", (GOOD, GOOD), {"label_smoothing": 1.5}),
    "logits": (TypeError, "from_logits", "bce", (GOOD, GOOD), {"from_logits": 1}),
    "axis": (ValueError, "axis must be in", "cosine", (GOOD, GOOD), {"axis": 2}),
    "bool axis": (ValueError, "axis must be an int", "cosine", (GOOD, GOOD), {"axis": True}),
    "label": (
        ValueError,
        r"in \[0, 2\), got 2",
        "sparse_categorical_crossentropy",
        ([0, 1, 2], GOOD),
        {},
    ),
    "negative": (ValueError, r"got -1", "sparse_categorical_crossentropy", ([0, 1, -1], GOOD), {}),
    "huge": (
        ValueError,
        f"got {2**64 - 1}",
        "sparse_categorical_crossentropy",
        (np.array([0, 1, 2**64 - 1], np.uint64), GOOD),
        {"ignore_class": -1},
    ),
    "fraction": (ValueError, "whole numbers", "sparse_categorical_crossentropy", ([0, 0.5, 1], GOOD), {}),
    "nan": (ValueError, "whole numbers", "sparse_categorical_crossentropy", ([0, np.nan, 1], GOOD), {}),
    "labels": (ValueError, "one label per sample", "sparse_categorical_crossentropy", ([0, 1], GOOD), {}),
    "ignore": (TypeError, "ignore_class", "sparse_categorical_crossentropy", ([0, 1, 1], GOOD), {"ignore_class": 0.5}),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_before_anything_is_written(name):
    error, message, loss, arguments, options = BAD_CALLS[name]
    out = np.full((3, 2), 7.0)
    with pytest.raises(error, match=message):
        losses.value_and_grad(loss)(*arguments, out=out, **options)
    assert (out == 7.0).all()


def test_tensors_are_refused():
    out = np.full((3, 2), 7.0)
    with pytest.raises(TypeError, match="numpy"):
        losses.value_and_grad("mse")(GOOD, torch.ones(3, 2), out=out)
    assert (out == 7.0).all()


def test_bad_outputs_are_refused():
    read_only = np.ones((3, 2))
    read_only.flags.writeable = False
    y_true, y_pred, weights, memory = GOOD.copy(), GOOD.copy(), np.ones((3, 1)), np.full((4, 2), 0.5)
    for error, message, prediction, out in (
        (ValueError, "shape", y_pred, np.ones((2, 3))),
        (TypeError, "dtype", y_pred, np.ones((3, 2), np.float32)),
        (ValueError, "read-only", y_pred, read_only),
        (ValueError, "overlaps y_true", y_pred, y_true),
        (ValueError, "in part", memory[1:], memory[:3]),
        (ValueError, "share memory", y_pred, np.lib.stride_tricks.as_strided(memory, (3, 2), (8, 8))),
        (TypeError, "numpy", y_pred, [[0.0]]),
    ):
        own = losses.value_and_grad(lambda y, p: (p - y).mean(-1), gradient=lambda y, p: np.ones_like(p))
        for compute in (losses.value_and_grad("mse"), own):
            with pytest.raises(error, match=message):
                compute(y_true, prediction, weights, out=out)
    assert (y_true == 0.5).all() and (memory == 0.5).all() and (read_only == 1).all()


# -- the cache ---------------------------------------------------------------------------------------------------------

RUN_FORMULAS = """
    import sys, children
    sys.path.insert(0, {folder!r})
    import numpy as np, formulas_of_a_user as formulas
    from fastopt import losses
    from fastopt.kernels.compile import _jit
    losses.register("mine", formulas.value, formulas.derivative, options={{"a": 1.0}})
    value, _ = losses.value_and_grad("mine")(np.zeros((2, 3)), np.ones((2, 3)))
    children.report(value=value, compiled=_jit.compilations)
"""


def test_registered_formulas_are_cached_until_they_change(tmp_path):
    source, cache = tmp_path / "formulas_of_a_user.py", str(tmp_path / "cache")
    code = "def value(t, p, s):\n    return {} * s.a * p\n\ndef derivative(t, p, s):\n    return {} * s.a\n"
    for factor, fresh in ((2.0, True), (2.0, False), (3.5, True)):
        source.write_text(code.format(factor, factor))
        found = children.run(RUN_FORMULAS.format(folder=str(tmp_path)), FASTOPT_CACHE_DIR=cache)
        assert found["value"] == factor
        assert bool(found["compiled"]) == fresh
