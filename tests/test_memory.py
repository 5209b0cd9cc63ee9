"""Addresses that kernels hold stay good, whatever happens to the containers that the arrays came in."""

import gc
import weakref

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastopt
from fastopt.device.strides import overlaps_itself

F32 = np.float32
LARGE = 2_000_000  # beyond what an allocator keeps mapped after it is freed


@pytest.mark.parametrize("hold", [list, lambda leaves: dict(enumerate(leaves)), lambda leaves: {"0": leaves[0]}])
def test_gradients_outlive_a_container_that_is_emptied_during_the_step(hold):
    param, grads = np.zeros(LARGE, F32), hold([np.ones(LARGE, F32)])

    def rate():
        grads.clear()
        gc.collect()
        return 0.5

    optimizer = fastopt.SGD(rate)
    optimizer.build([param])
    optimizer.apply(grads)
    assert (param == -0.5).all()


@pytest.mark.parametrize("dtype", [F32, np.float64])
def test_gradients_are_let_go_after_the_step(dtype):
    optimizer = fastopt.Adam()
    optimizer.build([np.ones(3, F32)])
    grad = np.ones(3, dtype)
    alive = weakref.ref(grad)
    optimizer.apply([grad])
    del grad
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("view", [lambda base: base, lambda base: base[10:], lambda base: base.reshape(2, -1)[1]])
def test_a_parameter_cannot_be_resized(view):
    base = np.ones(1000, F32)
    optimizer = fastopt.SGD(0.5)
    optimizer.build([view(base)])
    with pytest.raises(ValueError, match="resize"):
        base.resize((10,), refcheck=False)


def test_a_flat_gradient_has_the_size_that_was_built():
    params = fastopt.pack([np.zeros(1000, F32)])
    optimizer = fastopt.SGD(0.5)
    optimizer.build(params)
    params.flat = params.flat[:16].copy()
    with pytest.raises(ValueError, match="1008 elements"):
        optimizer.apply(np.ones(16, F32))


@pytest.mark.parametrize("threads", [10**6, 10**20])
def test_any_number_of_threads(threads):
    before = fastopt.get_num_threads()
    param = np.zeros(100_000, F32)
    optimizer = fastopt.SGD(0.5)
    optimizer.build([param])
    try:
        fastopt.set_num_threads(threads)
        optimizer.apply([np.ones(100_000, F32)])
    finally:
        fastopt.set_num_threads(before)
    assert (param == -0.5).all()


def test_gradients_are_zeroed_where_all_parameters_are_frozen():
    optimizer, grad = fastopt.SGD(), np.ones(3, F32)
    optimizer.build([np.ones(3, F32)], {".": {"trainable": False}})
    optimizer.apply([grad], zero_grads=True)
    assert not grad.any()


def test_overlaps_are_what_numpy_finds():
    """Numbers that all differ are there again, unless two of them were written to one place."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        axes = rng.integers(0, 4)
        shape, strides = rng.integers(0, 6, axes).tolist(), (4 * rng.integers(-6, 9, axes)).tolist()
        array = as_strided(np.zeros(400, F32)[150:], shape, strides)
        numbers = np.arange(array.size).reshape(shape)
        array[...] = numbers
        found.append(overlaps_itself(array))
        assert found[-1] == (not np.array_equal(array, numbers)), (shape, strides)
    assert 50 < sum(found) < 350  # of either kind enough
