"""Addresses that kernels hold stay good, whatever happens to the containers that the arrays came in."""

import gc
import weakref

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from optional_torch import torch

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


class Liar(np.ndarray):
    """Says of itself what is not so; what NumPy keeps in the array is the truth."""

    __array_interface__ = property(lambda self: {"data": (8, False), "shape": (1,), "typestr": "<f4", "version": 3})
    shape = property(lambda self: (99,))
    strides = property(lambda self: (0,))
    dtype = property(lambda self: np.dtype("int8"))
    flags = property(lambda self: None)
    ctypes = property(lambda self: None)


def test_arrays_are_where_numpy_has_them_whatever_a_subclass_says():
    memory, optimizer = np.zeros((3, 2), F32), fastopt.Adam(0.5)
    twin, mirror = np.zeros((3, 2), F32), fastopt.Adam(0.5)
    optimizer.build([memory.view(Liar)])
    mirror.build([twin])
    for _ in range(4):
        optimizer.apply([np.ones((3, 2), F32).view(Liar)])
        mirror.apply([np.ones((3, 2), F32)])
    assert memory.tobytes() == twin.tobytes()


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "gradient_accumulation_steps": 2}])
def test_memory_that_kernels_write_cannot_be_resized(options):
    """NumPy's ``resize(refcheck=False)`` frees memory, unless the array is a view or somebody has a weak reference."""
    buffer = fastopt.pack([np.zeros(5, F32), np.zeros((2, 3), F32)])
    own = np.zeros(4, F32)
    optimizer = fastopt.Adam(**options)
    optimizer.build([buffer, own])
    arrays = [buffer.flat, *buffer.arrays, buffer.like().flat, own]
    arrays += [array for slots in optimizer.slots.values() for array in slots]
    while arrays:
        array = arrays.pop()
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(1000, refcheck=False)
        if isinstance(array.base, np.ndarray):
            arrays.append(array.base)


def test_memory_is_let_go_with_its_last_reference():
    buffer = fastopt.pack([np.zeros(5, F32)])
    owner = weakref.ref(buffer.flat.base)
    del buffer
    gc.collect()
    assert owner() is None


READ_ONLY = {
    "list": lambda buffer: [np.ones(5, F32), np.ones((2, 3), F32)],
    "other dtype": lambda buffer: [np.ones(5), np.ones((2, 3))],
    "buffer": lambda buffer: buffer.like(),
    "flat": lambda buffer: buffer.like().flat,
    "columns": lambda buffer: [np.ones(10, F32)[::2], np.ones((3, 2), F32).T],
}


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("kind", READ_ONLY)
def test_parameters_made_read_only_are_not_written(kind, steps):
    """``flags.writeable = False`` is NumPy's word for it; after four steps they go the short way."""
    buffer = fastopt.pack([np.zeros(5, F32), np.zeros((2, 3), F32)])
    optimizer = fastopt.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer.build(buffer)
    for _ in range(steps):
        optimizer.apply(READ_ONLY[kind](buffer))
    before = buffer.flat.copy()
    buffer.arrays[1].flags.writeable = False
    for call in (
        lambda: optimizer.apply(READ_ONLY[kind](buffer)),
        optimizer.finalize_variable_values,
        lambda: optimizer.evaluation_weights().__enter__(),
    ):
        with pytest.raises(ValueError, match="parameter 1: has been made read-only since build"):
            call()
    assert optimizer.iterations == steps
    assert (buffer.flat == before).all()
    buffer.arrays[1].flags.writeable = True
    optimizer.apply(READ_ONLY[kind](buffer))
    assert optimizer.iterations == steps + 1


@pytest.mark.parametrize("steps", [0, 4])
def test_parameters_whose_memory_was_exchanged_are_not_written(steps):
    """Python's own ``__setstate__``, which unpickling calls, gives an array new memory and frees the old."""
    param, optimizer = np.zeros(3, F32), fastopt.SGD(1.0)
    optimizer.build([param])
    for _ in range(steps):
        optimizer.apply([np.ones(3, F32)])
    param.__setstate__(np.zeros(100, F32).__reduce__()[2])
    keeps_the_place = np.zeros(3, F32)
    param.__setstate__(np.full(3, 5, F32).__reduce__()[2])
    with pytest.raises(RuntimeError, match=r"parameter 0 has moved in memory since build\(\)"):
        optimizer.apply([keeps_the_place])
    assert param.tolist() == [5] * 3


def test_frozen_parameters_may_be_made_read_only():
    params = [np.zeros(3, F32), np.zeros(3, F32)]
    optimizer = fastopt.SGD(1.0)
    optimizer.build(params, {"1": {"trainable": False}})
    params[1].flags.writeable = False
    optimizer.apply([np.ones(3, F32)] * 2)
    assert (params[0][0], params[1][0]) == (-1, 0)


@pytest.mark.parametrize("skips", [False, True])
def test_tensors_on_the_cpu_are_gradients_read_and_zeroed_where_they_lie(skips):
    grads = [torch.full((2, 3), float("nan")) if skips else torch.ones(2, 3), torch.ones(3, dtype=torch.float64)]
    params = [np.zeros((2, 3), F32), np.zeros(3, F32)]
    optimizer = fastopt.SGD(1.0, nonfinite="skip")
    optimizer.build(params)
    optimizer.apply(grads, zero_grads=True)
    assert [param.ravel()[0] for param in params] == ([0, 0] if skips else [-1, -1])
    assert not any(grad.any() for grad in grads)


def test_one_flat_tensor_is_the_gradient_of_a_buffer():
    buffer = fastopt.pack([np.zeros(5, F32), np.zeros((2, 3), F32)])
    optimizer = fastopt.SGD(1.0)
    optimizer.build(buffer)
    optimizer.apply(torch.ones(buffer.size))
    assert all((view == -1).all() for view in buffer.arrays)


def test_arrays_of_jax_on_the_cpu_are_gradients():
    """They are read-only, so nobody can zero them."""
    jax = pytest.importorskip("jax", reason="comes with the extra bench")
    params, grads = [np.zeros(3, F32), np.zeros(2, F32)], [jax.numpy.ones(3), jax.numpy.ones(2)]
    optimizer = fastopt.SGD(1.0)
    optimizer.build(params)
    optimizer.apply(grads)
    assert [param[0] for param in params] == [-1, -1]
    with pytest.raises(ValueError, match="gradient 0: is read-only, so zero_grads cannot zero it"):
        optimizer.apply(grads, zero_grads=True)
    assert [param[0] for param in params] == [-1, -1]


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
