"""Activations: values against Keras and torch, derivatives against torch's autograd, and everything around them."""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastopt.kernels import maths
from fastopt.kernels.activations import loops
from fastopt.kernels.cpu import launch
from keras_reference import import_keras
from optional_torch import torch
from rows import rows
from test_kernels import double_arithmetic

import fastopt
from fastopt import activations
from fastopt.activations.registry import FUNCTIONS
from fastopt.compat.keras_1_0 import activations as keras_1_0
from fastopt.compat.keras_2_2 import activations as keras_2_2
from fastopt.compat.keras_2_3 import activations as keras_2_3

functional = torch.nn.functional
pytestmark = pytest.mark.xdist_group("activations")  # one worker compiles the kernels
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
over_dtypes = rows("dtype", DTYPES, ids=str)


class Case(NamedTuple):
    """An activation with options, the same in torch, and what backward can do without."""

    name: str
    torch: Any
    options: dict = {}  # noqa: RUF012  # never written
    reads: str = "y"

    def __str__(self):
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def forward(self, x, **kwargs):
        return getattr(activations, self.name)(x, **self.options, **kwargs)

    def backward(self, *args, **kwargs):
        return activations.backward(self.name, **self.options)(*args, **kwargs)

    def autograd(self, x, dy):
        given = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
        y = self.torch(given)
        y.backward(torch.tensor(np.asarray(dy, np.float64)))
        return y.detach().numpy(), given.grad.numpy()


def general_relu(x, slope=0.0, maximum=None, threshold=0.0):
    y = torch.where(x > threshold, x, torch.zeros_like(x))
    y = y if maximum is None else torch.clip(y, 0, maximum)
    return y - slope * torch.relu(threshold - x)


def sparsemax(x):
    """Martins & Astudillo's algorithm 1. Keras 3.15's has another threshold, and its values do not add up to 1."""
    x = x - x.amax(-1, keepdim=True)
    ordered = x.sort(-1, descending=True).values
    number = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    thresholds = (ordered.cumsum(-1) - 1) / number
    kept = (ordered > thresholds).sum(-1, keepdim=True)
    rest = x - thresholds.gather(-1, kept - 1)
    return torch.where(rest > 0, rest, 0 * rest)


def sparse_plus(x):
    return torch.where(x <= -1, 0 * x, torch.where(x < 1, (x + 1) ** 2 / 4, x))


def celu(x, alpha):
    return torch.relu(x) + alpha * torch.expm1(torch.clip(x, max=0) / alpha)  # torch's own derivative is float32's


CASES = [
    Case("linear", lambda x: x * 1),
    Case("softmax", lambda x: torch.softmax(x, -1)),
    Case("softmax", lambda x: torch.softmax(x, 0), {"axis": 0}),
    Case("softplus", lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    Case("softsign", functional.softsign, reads="x"),
    Case("relu", torch.relu, reads="either"),
    Case("relu", lambda x: general_relu(x, 0.25, 1.5), {"negative_slope": 0.25, "max_value": 1.5}, "either"),
    Case("relu", lambda x: general_relu(x, 0.0, 6.0), {"max_value": 6.0}, "either"),
    Case("relu", lambda x: general_relu(x, threshold=1.0), {"threshold": 1.0}, "x"),
    Case(
        "relu",
        lambda x: general_relu(x, 0.5, 1.0, -0.5),
        {"negative_slope": 0.5, "max_value": 1.0, "threshold": -0.5},
        "x",
    ),
    Case("leaky_relu", lambda x: functional.leaky_relu(x, 0.2), reads="either"),
    Case("tanh", torch.tanh),
    Case("sigmoid", torch.sigmoid),
    Case("hard_sigmoid", lambda x: torch.clip(x / 6 + 0.5, 0, 1)),
    Case("elu", functional.elu),
    Case("elu", lambda x: functional.elu(x, 0.3), {"alpha": 0.3}),
    Case("selu", torch.selu),
    Case("gelu", functional.gelu, reads="x"),
    Case("gelu", lambda x: functional.gelu(x, approximate="tanh"), {"approximate": True}, "x"),
    Case("silu", functional.silu, reads="x"),
    Case("exponential", torch.exp),
    Case("log_softmax", lambda x: torch.log_softmax(x, -1)),
    Case("log_softmax", lambda x: torch.log_softmax(x, 0), {"axis": 0}),
    Case("sparsemax", sparsemax),
    Case("relu6", functional.relu6, reads="either"),
    Case("celu", lambda x: celu(x, 1.0)),
    Case("celu", lambda x: celu(x, 0.3), {"alpha": 0.3}),
    Case("squareplus", lambda x: (x + torch.hypot(x, torch.full_like(x, 2.0))) / 2, reads="x"),
    Case("squareplus", lambda x: (x + torch.hypot(x, torch.full_like(x, 0.5))) / 2, {"b": 0.25}, "x"),
    Case("sparse_plus", sparse_plus, reads="x"),
    Case("soft_shrink", functional.softshrink, reads="x"),
    Case("soft_shrink", lambda x: functional.softshrink(x, 1.25), {"threshold": 1.25}, "x"),
    Case("hard_shrink", functional.hardshrink, reads="x"),
    Case("threshold", lambda x: functional.threshold(x, -0.5, 7.0), {"threshold": -0.5, "default_value": 7.0}, "x"),
    Case("tanh_shrink", functional.tanhshrink, reads="x"),
    Case("hard_tanh", functional.hardtanh),
    Case("log_sigmoid", functional.logsigmoid),
    Case("sparse_sigmoid", lambda x: torch.clip((x + 1) / 2, 0, 1)),
    Case("hard_silu", functional.hardswish, reads="x"),
    Case("mish", functional.mish, reads="x"),
]
OF_ROWS = ("softmax", "log_softmax", "sparsemax")
LIKE_KERAS = [case for case in CASES if case.name != "sparsemax"]
over_cases = pytest.mark.parametrize("case", CASES, ids=str)


def arrays(dtype, shape=(9, 13), seed=4):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 3).astype(dtype), rng.normal(size=shape).astype(dtype)


def tolerance(dtype):
    return {"rtol": 2e-5, "atol": 2e-6} if dtype.itemsize == 4 else {"rtol": 1e-11, "atol": 1e-13}


@pytest.fixture
def threads():
    before = dict(launch._state)
    yield fastopt.set_num_threads
    launch._state.update(before)


# -- values and derivatives --------------------------------------------------------------------------------------------


@over_dtypes
@over_cases
def test_values_and_derivatives(case, dtype):
    x, dy = arrays(dtype)
    y = case.forward(x)
    expected, slopes = case.autograd(x, dy)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, **tolerance(dtype))
    np.testing.assert_allclose(case.backward(dy, x, y), slopes, **tolerance(dtype))


@pytest.mark.parametrize("case", LIKE_KERAS, ids=str)
def test_values_are_those_of_keras(case):
    x, _ = arrays(DTYPES[0])
    expected = getattr(import_keras().activations, case.name)(x, **case.options)
    np.testing.assert_allclose(case.forward(x), expected, rtol=1e-5, atol=2e-6)


@over_dtypes
@over_cases
def test_extremes(case, dtype):
    """Nothing overflows into NaN that torch keeps finite, and NaN stays NaN."""
    x = np.array([-np.inf, -1e4, -90.0, -0.0, 0.0, 90.0, 1e4], dtype)
    if case.name in OF_ROWS:
        x = x[1:]  # infinity alone has no softmax
    with np.errstate(over="ignore"):
        expected = case.autograd(x, np.ones_like(x))[0].astype(dtype)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(
        case.forward(x)[finite], expected[finite], rtol=3e-5, atol=1e-30 if dtype.itemsize > 4 else 1e-6
    )
    assert np.isnan(case.forward(np.array([np.nan, 1.0], dtype))[0])


@over_dtypes
@over_cases
def test_slopes_at_extremes(case, dtype):
    """Those of torch, where it has them, at the largest numbers and at infinity; NaN for NaN."""
    largest = np.finfo(dtype).max
    x = np.array([[-np.inf, 0.25], [-largest, 0.25], [largest, 0.25], [np.inf, 0.25], [np.nan, 0.25]], dtype)
    if case.name in OF_ROWS:
        x = x[1:3]
    tensor = torch.tensor(x, requires_grad=True)
    case.torch(tensor).backward(torch.ones(x.shape, dtype=tensor.dtype))
    expected, dy, y = tensor.grad.numpy(), np.ones_like(x), case.forward(x)
    ways = [(x, y), (x, None), (None, y)] if case.reads == "either" else [(x, y)]
    for way in ways:
        slopes = case.backward(dy, *way)
        known = ~np.isnan(expected) & ~np.isnan(x)
        np.testing.assert_allclose(slopes[known], expected[known], rtol=1e-5, atol=1e-6)
        if case.name != "linear":  # which reads neither
            np.testing.assert_array_equal(np.isnan(slopes[np.isnan(x)]), True)


@over_dtypes
@over_cases
@rows("way", ["contiguous", "fortran", "strided", "reversed", "0-d", "empty", "transposed"])
def test_any_layout_and_in_place(case, dtype, way):
    x, dy = arrays(dtype, (6, 8))
    if way in ("0-d", "empty") and case.name in OF_ROWS:
        return
    view = {
        "contiguous": lambda a: a.copy(),
        "fortran": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "reversed": lambda a: a.copy()[::-1],
        "0-d": lambda a: np.array(a[0, 0]),
        "empty": lambda a: a[:0].copy(),
        "transposed": lambda a: a.T.copy().T,
    }[way]
    x, dy = view(x), view(dy)
    y = case.forward(np.ascontiguousarray(x))
    y = y.reshape(x.shape)
    dx = case.backward(np.ascontiguousarray(dy).reshape(x.shape), np.ascontiguousarray(x).reshape(x.shape), y)
    np.testing.assert_array_equal(case.forward(x), y)
    np.testing.assert_array_equal(case.backward(dy, x, y), dx)
    for target in ("dy", "x", "y"):
        given = {"dy": view_copy(dy), "x": view_copy(x), "y": y.copy()}
        if target != "dy" and case.reads not in ("either", target):
            continue
        assert case.backward(**given, out=given[target]) is given[target]
        np.testing.assert_array_equal(given[target], dx)
    inside = view_copy(x)
    assert case.forward(inside, out=inside) is inside
    np.testing.assert_array_equal(inside, y)


def view_copy(array):
    """A copy with the same strides, as far as the memory order goes."""
    return array.copy(order="K")


@over_cases
def test_backward_reads_only_what_it_says(case):
    x, dy = arrays(DTYPES[1])
    y = case.forward(x)
    expected = case.backward(dy, x, y)
    if case.reads in ("x", "either"):
        np.testing.assert_array_equal(case.backward(dy, x), expected)
    if case.reads in ("y", "either"):
        np.testing.assert_array_equal(case.backward(dy, y=y), expected)
    if case.name != "either":
        with pytest.raises(ValueError, match="needs"):
            case.backward(dy)


@over_dtypes
@over_cases
def test_results_do_not_depend_on_threads(case, dtype, threads):
    x, dy = arrays(dtype, (301, 173))
    runs = []
    for count in (1, 2, 3):
        threads(count)
        y = case.forward(x)
        runs.append((y.tobytes(), case.backward(dy, x, y).tobytes()))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in OF_ROWS], ids=str)
def test_float32_is_computed_in_float32(case):
    """And in vectors. Sums over rows, which softmax has, are all that is float64."""
    form = getattr(activations, case.name).form(**case.options).activation
    for loop, formula in ((loops.forward, form.forward), (loops.backward, form.derivative)):
        kernel = launch.compiled(loop, {"DTYPE": np.float32, "SCALARS": form.scalars, "FORMULA": formula}, "test", None)
        (text,) = kernel.compiled.inspect_llvm().values()
        assert double_arithmetic(text) == []
        assert "x float>" in text


# -- names and functions of one's own ----------------------------------------------------------------------------------


def test_names():
    assert activations.get(None) is activations.linear and activations.get(len) is len
    for name in FUNCTIONS:
        assert activations.get(activations.serialize(activations.get(name))) is activations.get(name)
    for wrong, error in (("rely", ValueError), (3, TypeError)):
        with pytest.raises(error):
            activations.get(wrong)
    with pytest.raises(TypeError, match="not known"):
        activations.backward(len)


def leaky_square(x, s):
    """x² for x > 0, else a · x."""
    return x * x if x > maths.constant(0, x) else s.a * x


def leaky_square_slope(x, y, s):
    return x + x if x > maths.constant(0, x) else s.a


@over_dtypes
def test_registered_formulas(dtype):
    mine = activations.register("leaky_square", leaky_square, leaky_square_slope, options={"a": 0.5})
    x, dy = arrays(dtype)
    assert activations.get("leaky_square") is mine
    y = mine(x, a=0.25)
    np.testing.assert_allclose(y, np.where(x > 0, x * x, x * dtype.type(0.25)), rtol=1e-6)
    dx = activations.backward(mine, a=0.25)(dy, x, y)
    np.testing.assert_allclose(dx, dy * np.where(x > 0, 2 * x, dtype.type(0.25)), rtol=1e-6)
    with pytest.raises(ValueError, match="built-in"):
        activations.register("relu", leaky_square, leaky_square_slope)
    with pytest.raises(TypeError, match="the derivative fails"):
        activations.register("broken", leaky_square, lambda x: x, options={"a": 0.5})
    with pytest.raises(TypeError, match="unexpected"):
        mine(x, b=1.0)


# -- the eras ----------------------------------------------------------------------------------------------------------


def test_activations_of_the_eras():
    x, dy = arrays(DTYPES[1], (4, 5))
    for era in (keras_1_0, keras_2_2, keras_2_3):
        np.testing.assert_allclose(era.hard_sigmoid(x), np.clip(0.2 * x + 0.5, 0, 1))
        np.testing.assert_allclose(era.relu(x, 0.1, 2.0), general_relu(torch.tensor(x), 0.1, 2.0).numpy())
        np.testing.assert_array_equal(era.softmax(x), activations.softmax(x))
        assert era.get(None) is activations.linear
        slopes = era.backward("hard_sigmoid")(dy, x, era.hard_sigmoid(x))
        np.testing.assert_allclose(slopes, dy * np.where(np.abs(x) < 2.5, 0.2, 0))
        with pytest.raises(ValueError, match="Cannot apply softmax to a tensor that is"):
            era.softmax(x[0])
    np.testing.assert_array_equal(keras_2_3.relu(x, threshold=1.0), activations.relu(x, threshold=1.0))
    np.testing.assert_array_equal(keras_2_2.softmax(x, axis=0), activations.softmax(x, axis=0))
    with pytest.raises(ValueError, match=r"not 2D or 3D\. Here, ndim=4"):
        keras_1_0.softmax(np.zeros((1, 2, 3, 4)))
    with pytest.raises(TypeError):
        keras_1_0.relu(x, threshold=1.0)
    with pytest.raises(ValueError, match="Invalid activation function: elu"):
        keras_1_0.get("elu")
    with pytest.raises(ValueError, match="Unknown activation function:gelu"):
        keras_2_2.get("gelu")
    with pytest.raises(ValueError, match="Could not interpret activation function identifier"):
        keras_2_3.get(5)


# -- hostile input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=str)
def test_bad_input_is_refused_before_anything_is_written(case):
    memory = np.arange(20.0)
    x, same = memory[:12].reshape(3, 4), np.full((3, 4), 7.0)
    for error, message, arguments in (
        (TypeError, "x: expected float32 or float64", (x.astype(np.float16), same)),
        (TypeError, "numbers", (x * 1j, same)),
        (ValueError, "shape", (x, np.ones((4, 3)))),
        (TypeError, "dtype", (x, np.ones((3, 4), np.float32))),
        (ValueError, "in part", (x, memory[4:16].reshape(3, 4))),
    ):
        with pytest.raises(error, match=message):
            case.forward(arguments[0], out=arguments[1])
    for wrong in (x[:2], x.astype(np.float32)):
        with pytest.raises(ValueError, match="like dy"):
            case.backward(x, wrong, wrong, out=same)
    np.testing.assert_array_equal(memory, np.arange(20.0))
    assert (same == 7).all()


def test_tensors_are_refused():
    out = np.full((3, 4), 7.0)
    with pytest.raises(TypeError, match="numpy"):
        activations.relu(torch.ones(3, 4), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu", {"max_value": -1.0}),
        ("relu", {"threshold": np.nan}),
        ("elu", {"alpha": -1.0}),
        ("softmax", {"axis": 2}),
        ("softmax", {"axis": 0.5}),
        ("softmax", {"axis": True}),
        ("softmax", {"axis": (0, -2)}),
        ("log_softmax", {"axis": (0, 2)}),
        ("celu", {"alpha": 0}),
        ("soft_shrink", {"threshold": -0.5}),
        ("squareplus", {"b": -1.0}),
        ("threshold", {"threshold": 1.0}),
        ("glu", {"axis": 2}),
        ("gelu", {"approximate": "tanh"}),
        ("tanh", {"alpha": 1.0}),
    ],
)
def test_bad_options_are_refused(name, options):
    x = np.ones((2, 2))
    with pytest.raises((TypeError, ValueError)):
        functools.partial(activations.get(name), **options)(x)
    with pytest.raises((TypeError, ValueError)):
        activations.backward(name, **options)(x, x, x)


def test_options_that_are_equal_and_not_the_same():
    """Zeros of either sign, one after the other: what is kept between calls tells them apart."""
    x = np.array([-1.0, 2.0], np.float32)
    signs = [np.signbit(activations.threshold(x, 0.5, value)[0]) for value in (0.0, -0.0, 0.0)]
    assert signs == [False, True, False]


def test_formulas_may_name_arguments():
    x = np.array([-1.5, 2.0], np.float32)
    size = activations.register(
        "named_size", lambda x, s: maths.where(x > 0, yes=x, no=-x), lambda x, y, s: maths.constant(like=x, value=1)
    )
    np.testing.assert_array_equal(size(x), np.abs(x))
