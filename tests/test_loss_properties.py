"""Losses and activations over generated shapes and values, the largest and smallest among them, against Keras."""

import warnings

import numpy as np
import pytest
import test_activations
import test_losses
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from keras_reference import import_keras
from test_properties import EXAMPLES

pytestmark = pytest.mark.xdist_group("losses")
F32 = np.dtype(np.float32)
LARGEST, TINY = float(np.finfo(F32).max), float(np.finfo(F32).tiny)
EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-7, 1 - 1e-7, 88.0, -104.0, 1e4, -1e4, 1e19, -1e19, LARGEST, -LARGEST)
MODERATE = 8.0
"""Up to where the formulas that Keras computes in float32 are well conditioned: beyond, only NaN is looked at."""

extreme = st.sampled_from(EXTREMES)
anything = st.floats(-MODERATE, MODERATE, width=32) | st.floats(width=32, allow_nan=False) | extreme
TARGETS = {
    "real": st.floats(-MODERATE, MODERATE, width=32)
    | st.floats(width=32, allow_nan=False, allow_infinity=False)
    | extreme,
    "positive": st.floats(0, MODERATE, width=32),
    "share": st.floats(0, 1, width=32),
    "binary": st.sampled_from((0.0, 1.0)),
    "signs": st.sampled_from((-1.0, 1.0)),
}


@st.composite
def calls(draw, kind):
    """Targets and predictions of one shape; of a distribution, one-hot targets; of labels, whole numbers."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=6))
    predictions = draw(arrays(F32, shape, elements=anything))
    base = kind.removesuffix(" of logits")
    if base in TARGETS:
        return draw(arrays(F32, shape, elements=TARGETS[base])), predictions
    labels = draw(arrays(np.int64, shape[:-1], elements=st.integers(0, shape[-1] - 1)))
    return (labels if base == "labels" else (labels[..., None] == np.arange(shape[-1])).astype(F32)), predictions


def quiet(function, *args, **kwargs):
    """The function's value, without what Keras says of overflows and of axes of one element."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(function(*args, **kwargs))


def is_short(*arrays_given):
    """Whether a row is so near to zero that Keras's NumPy backend, unlike all others, does without its epsilon."""
    return any(np.any(np.linalg.norm(array, axis=-1) < 1e-6) for array in arrays_given)


def has_a_sum(predictions):
    """Whether the sum of a row is neither zero nor what rounding has left of a cancellation."""
    total, size = (quiet(np.sum, array.astype(np.float64), axis=-1) for array in (predictions, np.abs(predictions)))
    return np.abs(total) >= np.maximum(1e-5 * size, TINY)


def is_moderate(*arrays_given):
    return all(np.all(np.abs(array) <= MODERATE) for array in arrays_given)


@pytest.mark.parametrize("case", test_losses.CASES, ids=str)
def test_losses_of_anything(case):
    keras = import_keras()

    @EXAMPLES
    @given(calls(case.kind))
    def check(call):
        y_true, y_pred = call
        values = quiet(case.function, y_true, y_pred, **case.options)
        expected = quiet(getattr(keras.losses, case.name), y_true, y_pred, **case.options)
        assert values.shape == y_pred.shape[:-1] and values.dtype == F32
        assert not np.any(np.isnan(values) & ~np.isnan(expected)), (values, expected)
        if is_moderate(y_true, y_pred) and not (case.name == "cosine_similarity" and is_short(y_true, y_pred)):
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        weighted, gradient = case.value_and_grad(y_true, y_pred, reduction="none")
        np.testing.assert_array_equal(weighted, values)
        assert gradient.shape == y_pred.shape
        defined = np.isfinite(values) & np.all(np.isfinite(y_pred), axis=-1)
        if "categorical_crossentropy" in case.name and not case.options.get("from_logits"):
            defined &= has_a_sum(y_pred)  # which it is divided by
        assert not np.any(np.isnan(gradient[defined])), (y_true, y_pred, gradient)

    check()


@pytest.mark.parametrize("case", test_activations.LIKE_KERAS, ids=str)
def test_activations_of_anything(case):
    keras = import_keras()

    @EXAMPLES
    @given(arrays(F32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=anything))
    def check(x):
        y = quiet(case.forward, x)
        expected = quiet(getattr(keras.activations, case.name), x, **case.options)
        assert not np.any(np.isnan(y) & ~np.isnan(expected)), (x, y, expected)
        slopes = case.backward(np.ones_like(x), x, y)
        _, autograd = case.autograd(x, np.ones_like(x))
        assert not np.any(np.isnan(slopes) & ~np.isnan(autograd)), (x, slopes, autograd)
        if is_moderate(x):
            np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)

    check()
