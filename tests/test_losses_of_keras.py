"""Losses: that all of Keras's are there, and those that are not of rows: sets, pairs, sequences."""

import inspect
import json

import numpy as np
import pytest
from keras_reference import import_keras
from optional_torch import torch
from test_losses import EPSILON, over_dtypes, tolerance

from fastopt import losses

pytestmark = pytest.mark.xdist_group("losses")


@pytest.fixture
def keras():
    with np.errstate(all="ignore"):
        yield import_keras()


def differentiated(function, y_pred, weights=None, divisor=1.0):
    """Values of a torch function of float64 predictions, and the gradient of their weighted sum."""
    prediction = torch.tensor(np.asarray(y_pred, np.float64), requires_grad=True)
    values = function(prediction)
    weights = 1.0 if weights is None else torch.tensor(np.asarray(weights, np.float64))
    ((values * weights).sum() / divisor).backward()
    return values.detach().numpy(), prediction.grad.numpy()


# -- the list ----------------------------------------------------------------------------------------------------------


def test_all_of_keras_are_there_with_their_signatures(keras):
    """Whatever is public in the installed `keras.losses`."""
    names = [name for name in vars(keras.losses) if not name.startswith("_")]
    assert len(names) >= 48  # 22 classes, 22 functions, Loss, get, serialize and deserialize
    for name in names:
        mine, known = getattr(losses, name), getattr(keras.losses, name)
        assert name in losses.__all__
        if name in ("Loss", "get", "serialize", "deserialize"):
            continue
        found, wanted = inspect.signature(mine).parameters, inspect.signature(known).parameters
        assert [key for key in found if key != "options"] == list(wanted)
        for key, parameter in wanted.items():
            assert key == "name" or found[key].default == parameter.default
        if isinstance(known, type):
            config, of_keras = mine().get_config(), known().get_config()
            assert {key: config[key] for key in of_keras} == of_keras
            assert losses.get(name) == losses.deserialize(keras.losses.serialize(known())) == mine()
        else:
            assert losses.get(name) is mine
    for name, known in keras.losses.get.__globals__["ALL_OBJECTS_DICT"].items():
        if not isinstance(known, type):
            assert losses.get(name) is getattr(losses, known.__name__)


def test_configs_of_all_classes():
    for name in losses.__all__:
        kind = getattr(losses, name)
        if isinstance(kind, type) and kind is not losses.Loss:
            loss = kind(reduction="sum", name="mine", dtype="float64")
            assert kind.from_config(json.loads(json.dumps(loss.get_config()))) == loss != kind()
    loss = losses.CategoricalFocalCrossentropy(np.array([0.1, 0.9]), 1.5)
    assert json.loads(json.dumps(loss.get_config()))["alpha"] == [0.1, 0.9] and loss.options["gamma"] == 1.5


def test_dtype(keras):
    y_true, y_pred = np.random.default_rng(0).uniform(0.1, 0.9, (2, 4, 3))
    single = y_pred.astype(np.float32)
    for dtype in ("float64", np.float64, np.dtype("float64"), keras.DTypePolicy("float64")):
        loss = losses.BinaryCrossentropy(dtype=dtype, reduction="none")
        assert loss.dtype == "float64" and loss.get_config()["dtype"] == "float64"
        reference = keras.losses.BinaryCrossentropy(dtype="float64", reduction="none")
        assert loss(y_true, single).dtype == np.float64
        np.testing.assert_allclose(loss(y_true, single), reference(y_true, single), rtol=1e-6)  # Keras's ε is float32
        np.testing.assert_array_equal(loss(y_true, single), losses.binary_crossentropy(y_true, single.astype(float)))
    value, gradient = losses.value_and_grad(loss)(y_true, single)
    assert value.dtype == gradient.dtype == np.float64
    np.testing.assert_array_equal(gradient, losses.value_and_grad("bce")(y_true, single.astype(float), None, "none")[1])
    loss = losses.MeanSquaredError(dtype="float32", reduction=None)
    assert loss(y_true, y_pred.astype(np.float16)).dtype == loss(y_true, y_pred).dtype == np.float32
    assert losses.MeanSquaredError().dtype is None and "dtype" not in losses.MeanSquaredError().get_config()
    for wrong in ("float16", "bfloat16", int, 3):
        with pytest.raises(ValueError, match="dtype must be 'float32', 'float64' or None"):
            losses.MeanSquaredError(dtype=wrong)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64])
def test_integers_become_floating(dtype):
    """As lists do; Keras makes them float32."""
    y_true, y_pred = np.array([[0, 1, 1], [1, 0, 0]]), np.array([[1, 1, 0], [0, 1, 1]], dtype)
    for name in ("mse", "hinge", "binary_crossentropy", "cosine_similarity", "dice"):
        value, gradient = losses.value_and_grad(name)(y_true, y_pred)
        assert gradient.dtype == np.float64
        expected, slopes = losses.value_and_grad(name)(y_true, y_pred.astype(float))
        assert value == expected
        np.testing.assert_array_equal(gradient, slopes)


# -- focal and generalized ---------------------------------------------------------------------------------------------


@over_dtypes
@pytest.mark.parametrize("from_logits", [True, False])
def test_a_weight_of_each_class(from_logits, dtype, keras):
    rng, alpha = np.random.default_rng(1), [0.1, 0.2, 0.0, 0.4]
    y_true, y_pred = np.eye(4)[rng.integers(0, 4, 6)], rng.uniform(0.05, 0.9, (6, 4)).astype(dtype)
    options = {"alpha": alpha, "from_logits": from_logits, "label_smoothing": 0.1, "gamma": 1.5}
    values, gradient = losses.value_and_grad("categorical_focal_crossentropy", **options)(y_true, y_pred, None, "none")
    expected = keras.losses.categorical_focal_crossentropy(y_true, y_pred.astype(float), **options)
    np.testing.assert_allclose(values, expected, rtol=2e-6)

    def formula(p):
        p = torch.softmax(p, -1) if from_logits else p / p.sum(-1, keepdim=True)
        t = torch.tensor(0.9 * y_true + 0.1 / 4) * torch.tensor(alpha, dtype=torch.float64)
        return -(t * (1 - p) ** 1.5 * torch.log(p)).sum(-1)

    values_of_torch, slopes = differentiated(formula, y_pred)
    np.testing.assert_allclose(values, values_of_torch, **tolerance(dtype))
    np.testing.assert_allclose(gradient, slopes, **tolerance(dtype))
    moved = np.ascontiguousarray(y_pred.T)
    np.testing.assert_array_equal(losses.categorical_focal_crossentropy(y_true.T, moved, axis=0, **options), values)
    with pytest.raises(ValueError, match="one per class"):
        losses.categorical_focal_crossentropy(y_true, y_pred, alpha=[0.5, 0.5])


@over_dtypes
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.0, 0.5])
def test_focal_of_what_is_no_probability(gamma, dtype, keras):
    """Powers of negative numbers have the sign that Keras's have, and NaN for fractions."""
    y_true, y_pred = np.array([[1, 0, 1, 0, 1.0]]), np.array([[1.5, -0.5, 0.5, 1.0, 0.0]], dtype)
    values, gradient = losses.value_and_grad("binary_focal_crossentropy", gamma=gamma)(
        y_true.T, y_pred.T, reduction="none"
    )
    expected = keras.losses.binary_focal_crossentropy(y_true.T, y_pred.T.astype(float), gamma=gamma)
    np.testing.assert_allclose(values, expected, rtol=0.2)  # Keras computes in float32, where 1 − (1 − ε) is 1.19 ε
    t = torch.tensor(y_true.T)

    def formula(p):
        clipped = torch.clip(p, EPSILON, 1 - EPSILON)
        loss = -(t * torch.log(clipped) + (1 - t) * torch.log(1 - clipped))
        return ((t * (1 - p) + (1 - t) * p) ** gamma * loss).mean(-1)

    of_torch, slopes = differentiated(formula, y_pred.T)
    np.testing.assert_allclose(values, of_torch, rtol=0.2 if dtype.itemsize == 4 else 1e-8)
    np.testing.assert_allclose(gradient, slopes, rtol=0.2 if dtype.itemsize == 4 else 1e-8)


@over_dtypes
def test_generalized_crossentropy_at_the_ends(dtype, keras):
    y_pred = np.array([[0.0, 1.0], [1.0, 0.5], [1e-30, 0.5]], dtype)
    values, gradient = losses.value_and_grad("categorical_generalized_cross_entropy", q=0.5)([[0], [0], [0]], y_pred)
    values = losses.CategoricalGeneralizedCrossEntropy(reduction=None)([0, 0, 0], y_pred)
    np.testing.assert_allclose(values, keras.losses.categorical_generalized_cross_entropy(np.zeros(3), y_pred, 0.5))
    assert gradient[0, 0] == -np.inf and not gradient[:, 1].any()
    for q in (0, 1, 2.0):
        with pytest.raises(ValueError, match=r"q must be in \(0, 1\)"):
            losses.CategoricalGeneralizedCrossEntropy(q)
    with pytest.raises(TypeError, match="'q'"):
        losses.categorical_generalized_cross_entropy([0, 0, 0], y_pred)


# -- sets --------------------------------------------------------------------------------------------------------------


@over_dtypes
@pytest.mark.parametrize("axis", [None, 0, (1, 2), (2, 0), (-3, -2, -1)], ids=str)
@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_sets_over_several_axes(name, axis, dtype, keras):
    rng = np.random.default_rng(2)
    y_true, y_pred = np.round(rng.uniform(size=(3, 4, 5))), rng.uniform(size=(3, 4, 5)).astype(dtype)
    options = {"alpha": 0.3, "beta": 0.9} if name == "tversky" else {}
    axes = tuple(range(3)) if axis is None else axis
    t, (alpha, beta) = torch.tensor(y_true), options.values() or (0.5, 0.5)

    def formula(p):
        both = (t * p).sum(axes)
        rest = alpha * (t * (1 - p)).sum(axes) + beta * (p * (1 - t)).sum(axes)
        return 1 - both / (both + rest + (EPSILON if name == "tversky" else EPSILON / 2))

    values = getattr(losses, name)(y_true, y_pred, axis=axis, **options)
    expected = getattr(keras.losses, name)(y_true, y_pred.astype(float), axis=axis, **options)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    weights = rng.uniform(size=values.shape)
    expected, slopes = differentiated(formula, y_pred, weights)
    np.testing.assert_allclose(values, expected, **tolerance(dtype))
    compute = losses.value_and_grad(name, axis=axis, **options)
    value, gradient = compute(y_true, y_pred, weights, "sum")
    np.testing.assert_allclose(value, (values * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, **tolerance(dtype))
    for way in (lambda array: array.copy(order="F"), lambda array: np.repeat(array, 2, 1)[:, ::2], np.array):
        inside = way(y_pred)
        assert compute(y_true, inside, weights, "sum", out=inside)[1] is inside
        np.testing.assert_array_equal(inside, gradient)
    kind = {"dice": "Dice", "tversky": "Tversky"}[name]
    of_keras = getattr(keras.losses, kind)(axis=axis, dtype="float64", **options)
    instance = getattr(losses, kind)(axis=axis, **options)
    np.testing.assert_allclose(instance(y_true, y_pred), of_keras(y_true, y_pred), rtol=1e-6)


def test_sets_refuse():
    y = np.ones((2, 3))
    for axis in ((0, -2), 2, 0.5, True, (0, None)):
        with pytest.raises(ValueError, match="axis"):
            losses.dice(y, y, axis=axis)
    with pytest.raises(ValueError, match="one weight per value"):
        losses.Dice()(y, y, np.ones(2))
    with pytest.raises(ValueError, match="alpha must be finite"):
        losses.Tversky(np.inf)
    with pytest.raises(ValueError, match="axis must be an int"):
        losses.categorical_crossentropy(y, y, axis=None)


# -- pairs -------------------------------------------------------------------------------------------------------------


def circle(p, labels, of_references=None, references=None, remove_diagonal=True, gamma=80.0, margin=0.4):
    """Keras 3.15's steps, in torch."""
    of_references = labels if of_references is None else of_references
    same = torch.tensor(np.reshape(labels, (-1, 1)) == np.reshape(of_references, (1, -1)))
    positive = same & ~torch.eye(*same.shape, dtype=torch.bool) if remove_diagonal else same
    others = p if references is None else torch.tensor(references)
    distance = torch.relu(1 - p @ others.T)
    near = -gamma * torch.relu(margin + distance) * (margin - distance)
    far = gamma * torch.relu(1 + margin - distance) * (1 - margin - distance)
    infinity = torch.tensor(-torch.inf, dtype=p.dtype)
    sums = [torch.logsumexp(torch.where(mask, x, infinity), 1) for mask, x in ((positive, near), (~same, far))]
    return torch.nn.functional.softplus(sums[0] + sums[1], threshold=1e6)


def embeddings(count, seed=3):
    x = np.random.default_rng(seed).normal(size=(count, 4))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


OPTIONS = [{}, {"gamma": 2.0, "margin": 0.1}, {"remove_diagonal": False, "gamma": 10.0}]
REFERENCES = [{}, {"ref_labels": [0, 1, 2, 0, 1, 3], "ref_embeddings": embeddings(6, 5)}]


@over_dtypes
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("references", REFERENCES, ids=["batch", "references"])
def test_circle(options, references, dtype, keras):
    labels, y_pred = np.array([0, 1, 0, 2, 1, 1, 3]), (0.99 * embeddings(7)).astype(dtype)  # distances are not 0
    arguments = {**options, **references}
    values = losses.circle(labels, y_pred, **arguments)
    of_keras = keras.losses.circle(labels, y_pred, **{key: np.asarray(given) for key, given in arguments.items()})
    np.testing.assert_allclose(values, of_keras, rtol=1e-5, atol=1e-5)
    weights = np.linspace(0, 2, 7)
    expected, slopes = differentiated(lambda p: circle(p, labels, *references.values(), **options), y_pred, weights)
    loose = {key: 50 * bound for key, bound in tolerance(dtype).items()}  # exponents are 80 times as exact
    np.testing.assert_allclose(values, expected, **loose)
    compute = losses.value_and_grad("circle", **arguments)
    value, gradient = compute(labels[:, None], y_pred, weights, "sum")
    np.testing.assert_allclose(value, (values * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, **loose)
    inside = np.asfortranarray(y_pred)
    assert compute(labels, inside, weights, "sum", out=inside)[1] is inside
    np.testing.assert_array_equal(inside, gradient)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none"])
def test_circle_counts_what_is_not_zero(reduction, keras):
    """Label 3 is alone: its loss is 0, and Keras's means are over the others."""
    labels, y_pred = np.array([0, 1, 0, 3, 1, 1, 2]), embeddings(7)
    reference = keras.losses.Circle(10.0, 0.3, reduction=reduction, dtype="float64")
    loss = losses.Circle(10.0, 0.3, reduction=reduction)
    for weights in (None, np.linspace(0, 1, 7)):
        value, gradient = losses.value_and_grad(loss)(labels, y_pred, weights)
        np.testing.assert_allclose(value, reference(labels, y_pred, weights), rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(value, loss(labels, y_pred, weights))
    step = np.zeros_like(y_pred)
    step[2, 1] = 1e-6
    if reduction != "none":
        ahead, behind = (loss(labels, y_pred + sign * step, weights) for sign in (1, -1))
        np.testing.assert_allclose(gradient[2, 1], (ahead - behind) / 2e-6, rtol=1e-5)
    assert losses.value_and_grad(loss)(np.arange(7), y_pred)[1].any() == 0


def test_circle_extremes_and_refusals():
    value, gradient = losses.value_and_grad("circle")(np.zeros(0, int), np.zeros((0, 3)))
    assert value == 0 and gradient.shape == (0, 3)
    y_pred = embeddings(3)
    y_pred[1, 0] = np.nan
    values, gradient = losses.value_and_grad("circle")([0, 0, 1], y_pred, reduction="none")
    assert np.isnan(values).all() and np.isnan(gradient).all()
    good = embeddings(3)
    for message, arguments, options in (
        ("embeddings of shape", ([0], good[0]), {}),
        ("one label for each of 3", ([0, 1], good), {}),
        ("whole numbers", ([0, 1, 0.5], good), {}),
        ("expected 4 columns", ([0, 1, 0], good), {"ref_embeddings": good[:, :2], "ref_labels": [0, 1, 0]}),
        ("one label for each of 2", ([0, 1, 0], good), {"ref_embeddings": good[:2]}),
        ("margin must be finite", ([0, 1, 0], good), {"margin": np.nan}),
    ):
        with pytest.raises(ValueError, match=message):
            losses.circle(*arguments, **options)


# -- sequences ---------------------------------------------------------------------------------------------------------

LABELS = np.array([[1, 2, 2, 0], [3, 0, 0, 0], [1, 1, 1, 2], [0, 0, 0, 0], [1, 2, 3, 1]])


def ctc(p, labels):
    lengths = torch.tensor((labels != 0).sum(1))
    steps = torch.full((len(labels),), p.shape[1])
    logarithms = torch.log_softmax(p, -1).transpose(0, 1)
    return torch.nn.functional.ctc_loss(logarithms, torch.tensor(labels), steps, lengths, reduction="none")


@over_dtypes
@pytest.mark.parametrize("steps", [7, 12, 40])
def test_ctc(steps, dtype, keras):
    y_pred = (3 * np.random.default_rng(4).normal(size=(5, steps, 4))).astype(dtype)
    before, weights = y_pred.copy(), np.linspace(0.5, 2, 5)
    values = losses.ctc(LABELS, y_pred)
    np.testing.assert_allclose(values, keras.losses.ctc(LABELS, y_pred), rtol=1e-4)
    expected, slopes = differentiated(lambda p: ctc(p, LABELS), y_pred, weights, 5)
    assert values.dtype == dtype
    np.testing.assert_allclose(values, expected, **tolerance(dtype))
    compute = losses.value_and_grad("ctc")
    value, gradient = compute(LABELS.astype(float), y_pred, weights)
    np.testing.assert_allclose(value, (values * weights).mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, **tolerance(dtype))
    np.testing.assert_array_equal(y_pred, before)
    for way in (lambda array: array.copy(order="F"), np.array):
        inside = way(y_pred)
        assert compute(LABELS, inside, weights, out=inside)[1] is inside
        np.testing.assert_array_equal(inside, gradient)
    np.testing.assert_allclose(losses.CTC(reduction="sum")(LABELS, y_pred), values.sum(dtype=float), rtol=1e-6)


@over_dtypes
def test_ctc_extremes(dtype):
    """As torch has them: too few steps, no labels, classes that cannot be, NaN."""
    y_pred = np.random.default_rng(6).normal(size=(4, 4, 4)).astype(dtype)
    labels = np.array([[1, 1, 1], [1, 2, 3], [0, 0, 0], [2, 0, 0]])
    y_pred[1, 0, 3], y_pred[3, 2, 1] = -np.inf, np.nan
    values, gradient = losses.value_and_grad("ctc")(labels, y_pred, reduction="none")
    expected = differentiated(lambda p: ctc(p, labels), y_pred)[0]
    np.testing.assert_allclose(values, expected, **tolerance(dtype))
    _, slopes = differentiated(lambda p: ctc(p, labels), np.maximum(y_pred, -1e3))  # of -inf torch's are NaN
    assert values[0] == np.inf and np.isnan(gradient[0]).all() and np.isnan(values[3])
    np.testing.assert_allclose(gradient[1:3], slopes[1:3], **tolerance(dtype))
    assert losses.value_and_grad("ctc")(np.zeros((0, 2)), np.zeros((0, 3, 4)))[0] == 0
    np.testing.assert_allclose(losses.ctc(np.zeros((1, 0)), np.zeros((1, 2, 4), dtype)), 2 * np.log(4), rtol=1e-6)


def test_ctc_does_not_depend_on_threads():
    from fastopt.kernels.cpu import launch

    import fastopt

    before, rng = dict(launch._state), np.random.default_rng(8)
    labels, y_pred = rng.integers(1, 6, (60, 12)), rng.normal(size=(60, 100, 6)).astype(np.float32)
    runs = set()
    try:
        for count in (1, 2, 3):
            fastopt.set_num_threads(count)
            value, gradient = losses.value_and_grad("ctc")(labels, y_pred)
            runs.add((value, gradient.tobytes()))
    finally:
        launch._state.update(before)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("message", "y_true", "y_pred"),
    [
        ("logits of shape", LABELS, np.zeros((5, 4))),
        ("logits of shape", LABELS, np.zeros((5, 0, 4))),
        (r"shape \(2, most labels\)", LABELS, np.zeros((2, 7, 4))),
        ("0 is the blank", [[0, 1]], np.zeros((1, 7, 4))),
        (r"in \[0, 4\), got 4", [[4, 0]], np.zeros((1, 7, 4))),
        (r"got -1", [[1, -1]], np.zeros((1, 7, 4))),
        ("whole numbers", [[0.5, 0]], np.zeros((1, 7, 4))),
    ],
)
def test_ctc_refuses(message, y_true, y_pred):
    out = np.full(y_pred.shape, 7.0)
    with pytest.raises(ValueError, match=message):
        losses.value_and_grad("ctc")(y_true, y_pred, out=out)
    assert (out == 7).all()
