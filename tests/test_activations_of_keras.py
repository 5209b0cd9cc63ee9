"""Activations: that all of Keras's are there, and what those that are not of single elements do."""

import inspect

import numpy as np
import pytest
from keras_reference import import_keras
from optional_torch import torch
from test_activations import arrays, over_dtypes, tolerance

from fastopt import activations

pytestmark = pytest.mark.xdist_group("activations")
SEVERAL = [(0, 2), (2, 0), (1,), (0, 1, 2), [1, -1], None]


def names_of_keras():
    return [name for name in vars(import_keras().activations) if not name.startswith("_")]


def test_all_of_keras_are_there_with_their_signatures():
    """Whatever is public in the installed `keras.activations`."""
    theirs = import_keras().activations
    assert len({getattr(theirs, name) for name in names_of_keras()}) >= 33  # 30, get, serialize and deserialize
    for name in names_of_keras():
        function, known = getattr(activations, name), getattr(theirs, name)
        assert name in activations.__all__
        if name in ("get", "serialize", "deserialize"):
            continue
        mine = inspect.signature(function).parameters
        wanted = inspect.signature(known).parameters
        assert [key for key in mine if key != "out"] == list(wanted)
        assert {key: mine[key].default for key in wanted} == {key: value.default for key, value in wanted.items()}
        assert activations.get(name) is function and function.__name__ == known.__name__
    for name, known in theirs.get.__globals__["ALL_OBJECTS_DICT"].items():
        assert activations.get(name).__name__ == known.__name__


def test_configs():
    for config in ("gelu", {"class_name": "function", "config": "gelu"}):
        assert activations.deserialize(config) is activations.get(config) is activations.gelu
    with pytest.raises(ValueError, match="expected a name"):
        activations.get({"class_name": "ReLU"})
    with pytest.raises(ValueError, match="unknown activation"):
        activations.deserialize({"class_name": "function", "config": "len_of"})


def over_axes(function, x, axes):
    """The function of torch over several axes, by way of one."""
    axes = tuple(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.permute(*kept, *axes)
    y = function(moved.reshape([x.shape[axis] for axis in kept] + [-1]), -1).reshape(moved.shape)
    return y.permute(*np.argsort([*kept, *axes]).tolist())


@over_dtypes
@pytest.mark.parametrize("axes", SEVERAL, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_over_several_axes(name, axes, dtype):
    x, dy = arrays(dtype, (3, 4, 5))
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = over_axes(getattr(torch, name), tensor, axes)
    expected.backward(torch.tensor(dy.astype(np.float64)))
    y = getattr(activations, name)(x, axes)
    np.testing.assert_allclose(y, expected.detach(), **tolerance(dtype))
    if not isinstance(axes, list):  # Keras takes tuples
        of_keras = getattr(import_keras().activations, name)(x, axes)
        np.testing.assert_allclose(y, of_keras, rtol=2e-5, atol=2e-6)
    backward = activations.backward(name, axis=axes)
    np.testing.assert_allclose(backward(dy, y=y), tensor.grad, **tolerance(dtype))
    for way in (np.asfortranarray, lambda array: np.repeat(array, 2, 1)[:, ::2]):
        inside, slopes = way(x), way(dy)
        np.testing.assert_array_equal(getattr(activations, name)(inside, axes, out=inside), y)
        np.testing.assert_array_equal(backward(slopes, y=inside, out=slopes), backward(dy, y=y))


def test_rows_longer_than_a_block_and_ties():
    """The projection onto the simplex is what it is: sums are 1, and what is kept is above the rest by one number."""
    rng = np.random.default_rng(5)
    for x in (rng.normal(size=(3, 5000)), np.repeat(rng.normal(size=(2, 50)), 60, 1), np.zeros((2, 7))):
        y = activations.sparsemax(x)
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-12)
        for row, values in zip(x, y, strict=True):
            (threshold,) = np.unique(np.round((row - values)[values > 0], 12))
            assert (row[values == 0] <= threshold + 1e-12).all()


@pytest.mark.parametrize("name", ["relu", "sigmoid", "softmax", "log_softmax", "sparse_plus", "glu", "hard_shrink"])
def test_integers_become_floating(name):
    """As lists do; Keras makes them float32, the values are the same."""
    values = np.array([[-2, 0, 1, 3]])
    function, expected = getattr(activations, name), getattr(import_keras().activations, name)
    for dtype in (bool, np.int8, np.int64, np.uint16):
        x = np.abs(values).astype(dtype) if dtype in (bool, np.uint16) else values.astype(dtype)
        y = function(x)
        assert y.dtype == np.float64
        np.testing.assert_array_equal(y, function(x.tolist()))
        np.testing.assert_allclose(y, expected(x.astype(np.float32)), rtol=1e-6)
    y = function(values)
    slopes = activations.backward(name)(np.ones(y.shape, int), values, y)
    np.testing.assert_array_equal(slopes, activations.backward(name)(np.ones(y.shape), values.astype(float), y))


# -- glu ---------------------------------------------------------------------------------------------------------------


@over_dtypes
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 6), -1), ((4, 6), 0), ((2, 4, 3), 1), ((2,), 0), ((3, 10000), 1), ((2, 0), 1), ((0, 2), 1)]
)
def test_glu(shape, axis, dtype):
    x, _ = arrays(dtype, shape)
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = torch.nn.functional.glu(tensor, axis)
    dy = np.random.default_rng(7).normal(size=tuple(expected.shape)).astype(dtype)
    expected.backward(torch.tensor(dy.astype(np.float64)))
    y = activations.glu(x, axis)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected.detach(), **tolerance(dtype))
    if x.size:
        np.testing.assert_allclose(y, import_keras().activations.glu(x, axis), rtol=1e-5, atol=2e-6)
    backward = activations.backward("glu", axis=axis)
    dx = backward(dy, x)
    np.testing.assert_allclose(dx, tensor.grad, **tolerance(dtype))
    for way in (lambda array: array.copy(order="F"), lambda array: np.repeat(array, 2, 0)[::2], np.array):
        given, out = way(x), way(np.zeros_like(y))
        assert activations.glu(given, axis, out=out) is out
        np.testing.assert_array_equal(out, y)
        assert backward(way(dy), given, out=given) is given
        np.testing.assert_array_equal(given, dx)


@over_dtypes
def test_glu_at_extremes(dtype):
    largest = np.finfo(dtype).max
    x = np.array([[largest, -largest, 1, 1, np.nan, 0, -largest, largest, -np.inf, np.inf, 0, np.nan]], dtype)
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.glu(tensor)
    expected.backward(torch.ones_like(expected))
    np.testing.assert_allclose(activations.glu(x), expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(activations.backward("glu")(np.ones((1, 6), dtype), x), tensor.grad, rtol=1e-6)


def test_glu_refuses():
    x, y = np.ones((2, 6)), np.full((2, 3), 7.0)
    for error, message, arguments in (
        (ValueError, "even number of elements along axis -1", (x[:, :5], -1, y)),
        (ValueError, "overlaps x", (x, -1, x[:, :3])),
        (ValueError, "half of x", (x, -1, x)),
        (TypeError, "half of x", (x, -1, y.astype(np.float32))),
        (ValueError, "axis", (x, None, y)),
    ):
        with pytest.raises(error, match=message):
            activations.glu(*arguments[:2], out=arguments[2])
    backward = activations.backward("glu")
    memory = np.ones((2, 6))
    for error, message, arguments in (
        (ValueError, "needs x", (y, None)),
        (ValueError, "dy: expected shape", (x, x)),
        (ValueError, "dy: expected shape", (y.astype(np.float32), x)),
        (ValueError, "overlaps dy", (memory[:, :3], x)),
    ):
        with pytest.raises(error, match=message):
            backward(*arguments, out=memory)
    assert (x == 1).all() and (y == 7).all() and (memory == 1).all()
