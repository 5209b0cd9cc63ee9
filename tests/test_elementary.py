"""The exponentials and logarithms of compiled kernels, against the C library's in extended precision."""

import math

import numpy as np
import pytest
from fastopt.kernels import maths
from fastopt.kernels.compile import folds, tuples
from fastopt.kernels.compile._jit import specialise
from numba import types
from test_kernels import double_arithmetic, packed

pytestmark = pytest.mark.xdist_group("elementary")
TYPES = {np.float32: types.float32, np.float64: types.float64}
over_dtypes = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)

RANGES = {
    "exp": [(-1.0, 1.0), (-87.0, 88.5), (-103.0, -87.0)],
    "exp_decreasing": [(-1.0, 0.0), (-87.0, 0.0), (-103.0, -87.0)],
    "expm1": [(-1e-3, 1e-3), (-1.0, 1.0), (-80.0, 88.5)],
    "log": [(0.5, 2.0), (0.0, 1e3), (0.0, 1e-37)],
    "log1p": [(-1e-3, 1e-3), (-0.999, 5.0), (0.0, 1e5)],
    "log1p_of_share": [(0.0, 1e-3), (0.0, 1.0)],
    "tanh": [(-1e-3, 1e-3), (-0.02, 0.02), (-12.0, 12.0)],
}
MAXIMUM = {"exp": 0.95, "expm1": 2.5, "log": 2.1, "log1p": 2.5, "tanh": 3.2}
MAXIMUM |= {"exp_decreasing": 0.95, "log1p_of_share": 2.0}
"""Units in the last place, as documented."""
DOMAIN = {"exp_decreasing": (-np.inf, 0.0), "log1p_of_share": (0.0, 1.0)}
SPECIAL = [-math.inf, math.inf, math.nan, 0.0, -0.0, 1.0, -1.0, -2.0, 1e-40, 88.7, 89.5, 709.7, 710.5, -104.5, -750.0]
FUNCTION = None


def apply(x, y):
    for i in range(x.size):
        y[i] = FUNCTION(x[i])


def compiled(name, dtype):
    array = types.Array(TYPES[dtype], 1, "C")
    return specialise(apply, name, types.void(array, array), {"FUNCTION": getattr(maths, name)})


def result(kernel, x):
    y = np.empty_like(x)
    kernel(x, y)
    return y


def reference(name):
    return getattr(np, name.removesuffix("_decreasing").removesuffix("_of_share"))


@over_dtypes
@pytest.mark.parametrize("name", RANGES)
def test_errors_are_those_that_are_documented(name, dtype):
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant and dtype is np.float64:
        pytest.skip("this machine has no precision to compare float64 with")
    kernel, rng = compiled(name, dtype), np.random.default_rng(2)
    for low, high in RANGES[name]:
        x = rng.uniform(low, high, 200_003).astype(dtype)
        exact = reference(name)(x.astype(np.longdouble))
        units = np.abs(result(kernel, x) - exact) / np.spacing(np.abs(exact).astype(dtype))
        assert units.max() < MAXIMUM[name], (low, high)


@over_dtypes
@pytest.mark.parametrize("name", RANGES)
def test_special_values(name, dtype):
    with np.errstate(all="ignore"):
        x = np.array(SPECIAL, dtype)
        x = np.clip(x, *DOMAIN.get(name, (-np.inf, np.inf)))
        expected = reference(name)(x)
    np.testing.assert_allclose(result(compiled(name, dtype), x), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [*RANGES, "erf"])
def test_loops_over_float32_are_packed(name):
    (text,) = compiled(name, np.float32).inspect_llvm().values()
    assert max(packed(text, "fmul")) >= 4
    assert double_arithmetic(text) == []


def apply_power(x, exponents, y):
    for i in range(x.size):
        y[i] = maths.power(x[i], exponents[i])


def powers(x, exponents):
    """Compiled."""
    array = types.Array(TYPES[x.dtype.type], 1, "C")
    y = np.empty_like(x)
    specialise(apply_power, "power", types.void(array, array, array), {})(x, exponents, y)
    return y


@over_dtypes
@pytest.mark.parametrize("exponent", [-3.0, -0.7, 0.3, 0.5, 1.0, 1.7, 15.9])
def test_powers(dtype, exponent):
    """Errors as documented, over all magnitudes that do not overflow."""
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant and dtype is np.float64:
        pytest.skip("this machine has no precision to compare float64 with")
    most = math.log10(np.finfo(dtype).max) * 0.98 / max(1, abs(exponent))
    rng = np.random.default_rng(3)
    for bound in (0.1, most):
        x = (10.0 ** rng.uniform(-bound, bound, 200_003)).astype(dtype)
        exponents = np.full_like(x, exponent)
        exact = x.astype(np.longdouble) ** exponents.astype(np.longdouble)
        units = np.abs(powers(x, exponents) - exact) / np.spacing(np.abs(exact).astype(dtype))
        assert units.max() < 1.7


@over_dtypes
def test_special_powers(dtype):
    bases = [0.0, 1e-40, 1.0, 2.0, 1e38, math.inf, math.nan]
    pairs = np.array([(x, y) for x in bases for y in (0.0, 0.5, 1.0, -2.0, 40.0, -40.0, math.nan)], dtype)
    x, exponents = pairs.T.copy()
    with np.errstate(all="ignore"):
        expected = x**exponents
    expected[(x == 1) & np.isnan(exponents)] = math.nan  # the C library says 1: here no NaN is lost
    np.testing.assert_allclose(powers(x, exponents), expected, rtol=1e-5)
    assert np.isnan(powers(np.array([-1.0], dtype), np.array([0.5], dtype)))
    largest = np.finfo(dtype).max  # the largest number or, one rounding later, infinity
    x, exponents = np.array([[largest, 1], [np.sqrt(largest), 2], [1 / largest, -1]], dtype).T.copy()
    assert (powers(x, exponents) > 0.99 * largest).all()


@over_dtypes
def test_plain_python_gives_the_same_bits_of_powers(dtype):
    """What is interpreted runs it."""
    rng = np.random.default_rng(4)
    x, exponents = (10 ** rng.uniform(-30, 30, 300)).astype(dtype), rng.uniform(-1, 1, 300).astype(dtype)
    plain = [maths.power(*pair) for pair in zip(x, exponents, strict=True)]
    assert {type(value) for value in plain} == {dtype}
    assert np.array_equal(powers(x, exponents), plain)


@over_dtypes
def test_erf(dtype):
    x = np.append(np.linspace(-7, 7, 100_001), [0.0, math.inf, -math.inf]).astype(dtype)
    expected = [math.erf(value) for value in x.astype(float)]
    values = result(compiled("erf", dtype), x)
    units = np.abs(values.astype(float) - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert units.max() < (8 if dtype is np.float32 else 1)
    assert np.isnan(result(compiled("erf", dtype), np.array([math.nan], dtype)))


@over_dtypes
def test_plain_python_gives_the_same(dtype):
    """Which oracles run."""
    for name in [*RANGES, "erf", "sigmoid", "softplus"]:
        x = np.clip(np.array([0.25, 0.5, 3.0], dtype), *DOMAIN.get(name, (-np.inf, np.inf)))
        plain = [getattr(maths, name)(value) for value in x]
        assert {type(value) for value in plain} == {dtype}
        np.testing.assert_allclose(result(compiled(name, dtype), x), plain, rtol=4 * np.finfo(dtype).eps)


@over_dtypes
def test_plain_python_multiplies_and_adds_with_one_rounding(dtype):
    """`fused` of compiled code, where processors do it, or the C library."""
    rng = np.random.default_rng(5)
    exponents = rng.uniform(-15, 15, (3, 2000))
    x, y, z = (rng.choice([-1, 1], (3, 2000)) * 10**exponents).astype(dtype)
    z[::2] = -(x * y)[::2]  # what is left is the rounding error of the product
    special = np.array([(0, -1, 0), (np.inf, 0, 1), (1, np.nan, 1), (1e30, 1e30, -np.inf), (3e38, 9, 0)], dtype)
    largest = np.finfo(dtype).max
    special = np.append(special, np.array([(largest, -2, 0), (largest, 2, -largest)], dtype), 0)
    x, y, z = (np.append(one, other) for one, other in zip((x, y, z), special.T, strict=True))
    with np.errstate(all="ignore"):
        plain = [tuples.fused(*numbers) for numbers in zip(x, y, z, strict=True)]
    assert {type(value) for value in plain} == {dtype}
    array = types.Array(TYPES[dtype], 1, "C")
    found = np.empty_like(x)
    specialise(apply_fused, "fused", types.void(array, array, array, array), {})(x, y, z, found)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(plain))


def apply_fused(x, y, z, result):
    for i in range(x.size):
        result[i] = tuples.fused(x[i], y[i], z[i])


FOLDS = {
    "sum_row": lambda x: np.sum(x, dtype=np.float64),
    "sum_of": lambda x: np.sum(x, dtype=np.float64),
    "sum_row_products": lambda x: np.sum(x * x[::-1], dtype=np.float64),
    "maximum_of_row": lambda x: np.max(x, initial=-np.inf),
    "largest_of_row": lambda x: np.max(x[x == x], initial=-np.inf),
}


def fold_one(x):
    return FUNCTION(x)


def fold_two(x, y):
    return FUNCTION(x, y)


@over_dtypes
@pytest.mark.parametrize("name", FOLDS)
def test_rows_are_folded_to_the_same_bits_by_plain_python(name, dtype):
    """Of every size around the lanes, with infinities and NaN; and no element beyond the row is read."""
    array, fold = types.Array(TYPES[dtype], 1, "C"), getattr(folds, name)
    kernel = fold_two if name == "sum_row_products" else fold_one
    arrays = (array, array) if kernel is fold_two else (array,)
    compiled_fold = specialise(kernel, name, arrays, {"FUNCTION": fold})
    rng = np.random.default_rng(6)
    for size in [*range(70), 100, 127, 128, 129, 255, 257, 1000, 4099]:
        for special in ([], [np.inf], [np.nan], [-np.inf, np.nan], [np.inf, -np.inf]):
            row = np.full(size + 40, 1e30 if dtype is np.float64 else 1e10, dtype)  # what must not be read
            x = row[:size]
            x[:] = rng.standard_normal(size)
            where = rng.integers(0, max(size, 1), len(special))
            if size:
                x[where] = special
            given = (x, np.ascontiguousarray(x[::-1])) if kernel is fold_two else (x,)
            with np.errstate(all="ignore"):
                found, plain, expected = compiled_fold(*given), fold(*given), FOLDS[name](x)
            np.testing.assert_array_equal(found, plain, err_msg=f"{size} {special}")
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def fold_scaled(x, scale):
    return folds.sum_of_squares(x, scale)


@over_dtypes
@pytest.mark.parametrize("scale", [1.0, 0.37, 0.0, np.inf])
def test_squares_are_summed_to_the_same_bits_by_plain_python(dtype, scale):
    """What lanes hold beyond the array is zero, whatever the scale."""
    array, scale = types.Array(TYPES[dtype], 1, "C"), dtype(scale)
    compiled_fold = specialise(fold_scaled, "squares", (array, TYPES[dtype]), {})
    rng = np.random.default_rng(7)
    for size in [0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 1000, 4096, 4099]:
        x = np.full(size + 130, np.inf, dtype)[:size]  # what lies beyond must not be read
        x[:] = rng.standard_normal(size)
        with np.errstate(all="ignore"):
            plain, expected = folds.sum_of_squares(x, scale), np.sum((x * scale).astype(np.float64) ** 2)
        np.testing.assert_array_equal(compiled_fold(x, scale), plain, err_msg=str(size))
        np.testing.assert_allclose(plain, expected, rtol=1e-12)
