"""Reading where NumPy arrays lie in compiled code, and what is done where that is not possible."""

import pickle

import numpy as np
import pytest
from fastopt.kernels.cpu import exchange
from fastopt.kernels.cpu.exchange import Expected, Reader, expected_array
from fastopt.kernels.layout import ADDRESS, DIRECT, LAYOUT

import fastopt

SHAPES = ((), (7,), (3, 4), (2, 3, 4), (0, 3), (2, 1, 3, 1, 2, 1, 2))


def arrays(dtype=np.float32):
    return tuple(np.zeros(shape, dtype) for shape in SHAPES)


def test_arrays_can_be_read():
    """If this fails, steps are right still, and slower."""
    assert exchange.obstacle() == ""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_addresses_are_those_that_numpy_tells(dtype):
    found = np.full((2, len(SHAPES)), 7)
    reader = Reader(list(map(expected_array, arrays(dtype))), found)
    for _ in range(3):
        given = arrays(dtype)
        assert reader.read(given) == reader.count == len(SHAPES)
        assert found[ADDRESS].tolist() == [array.ctypes.data for array in given]
        assert np.all(found[LAYOUT] == DIRECT)


class Own(np.ndarray):
    """A class of the user's."""


def unaligned():
    return np.zeros(29, np.uint8)[1:].view(np.float32)


STRANGE = {
    "dtype": lambda: np.zeros(7),
    "byte order": lambda: np.zeros(7, ">f4"),
    "shape": lambda: np.zeros((1, 7), np.float32),
    "length": lambda: np.zeros(8, np.float32),
    "strides": lambda: np.zeros(14, np.float32)[::2],
    "backwards": lambda: np.zeros(7, np.float32)[::-1],
    "unaligned": unaligned,
    "class": lambda: np.zeros(7, np.float32).view(Own),
    "none": lambda: None,
    "list": lambda: [0.0] * 7,
    "read-only": lambda: np.broadcast_to(np.float32(1), (7,)),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_strange_ends_the_reading(case):
    reader = Reader(list(map(expected_array, arrays())))
    given = list(arrays())
    given[1] = STRANGE[case]()
    assert reader.read(tuple(given), exchange.WRITEABLE) == 1


def test_a_certain_object_at_its_place():
    one, other = np.zeros(3, np.float32), np.zeros(3, np.float32)
    assert Reader([expected_array(one, object=id(one))]).read((other,)) == 0
    assert Reader([expected_array(one, object=id(one))]).read((one,)) == 1
    assert Reader([expected_array(one, address=one.ctypes.data)]).read((one,)) == 1
    assert Reader([expected_array(one, address=other.ctypes.data)]).read((one,)) == 0
    assert Reader([(Expected(object=id("x")), (), ())]).read(("x",)) == 1


def test_occupied_memory_ends_the_reading():
    memory = np.zeros(64, np.float32)
    start = memory.ctypes.data
    ranges = np.array([[start + 16, start + 32], [start + 64, start + 128]])
    reader = Reader([expected_array(memory[:4])], None, ranges)
    for first, is_free in [
        (0, True),
        (1, False),
        (4, False),
        (7, False),
        (8, True),
        (12, True),
        (13, False),
        (32, True),
    ]:
        assert reader.read((memory[first : first + 4],)) == is_free, first


def test_nothing_to_read():
    assert Reader([]).read(()) == 0


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (exchange, "is_interpreted", lambda: True, "NUMBA_DISABLE_JIT is set"),
        (exchange.sys, "_is_gil_enabled", lambda: False, "this Python runs without the GIL"),
        (exchange.sys, "byteorder", "big", "it takes CPython"),
    ],
)
def test_what_is_in_the_way_is_said(module, name, value, reason, monkeypatch):
    monkeypatch.setattr(module, name, value, raising=False)
    assert reason in exchange.obstacle.__wrapped__()


@pytest.mark.parametrize(
    ("read", "reason"), [(0, "lays its arrays out in another way"), (1, "keeps addresses elsewhere")]
)
def test_arrays_that_are_read_wrongly_are_noticed(read, reason, monkeypatch):
    monkeypatch.setattr(Reader, "read", lambda self, *arguments: read)
    assert reason in exchange.obstacle.__wrapped__()


def test_dtypes_are_the_same_if_they_are_equal():
    one = np.zeros(3, np.float32)
    other = pickle.loads(pickle.dumps(one))
    assert one.dtype is not other.dtype
    assert Reader([expected_array(one)]).read((other,)) == Reader([expected_array(other)]).read((one,)) == 1
    assert Reader([expected_array(one)]).read((np.zeros(3, np.int32),)) == 0


def test_unpickled_optimizers_step_as_quickly():
    """Their gradients need no second look."""
    optimizer = fastopt.Adam()
    optimizer.build(list(arrays()))
    optimizer = pickle.loads(pickle.dumps(optimizer))
    assert optimizer._gradients._are_read(arrays(), False)
    assert optimizer._gradients._are_read(pickle.loads(pickle.dumps(arrays())), False)


def test_without_it_steps_have_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    grads = [[rng.normal(size=shape).astype(np.float32) for shape in SHAPES] for _ in range(6)]
    results = []
    for reason in ("", "the test forbids it"):
        monkeypatch.setattr(exchange, "obstacle", lambda reason=reason: reason)
        params = arrays()
        optimizer = fastopt.Adam(0.1, global_clipnorm=1.0)
        optimizer.build(list(params))
        for step in grads:
            optimizer.apply(step, zero_grads=False)
        optimizer.apply([np.array(grad, order="F") for grad in grads[0]], zero_grads=True)
        results.append([param.tobytes() for param in params])
        assert (optimizer._gradients._readers is None) == bool(reason)
    assert results[0] == results[1]
