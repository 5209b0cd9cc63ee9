"""Gradients for some rows on a GPU give the bits of the host's: the compiled kernels are executed on the CPU."""

import copy

import numpy as np
import pytest
from fastopt.kernels.cuda import row_sort
from gpu_arrays import KINDS, DeviceNDArray, Interface
from gpu_twins import Twins, assert_same_bits, on_gpu
from test_cuda_steps import DTYPES, F32, F64, WAYS, strided

import fastopt
from fastopt import RowGradient

pytestmark = pytest.mark.usefixtures("gpus")

in_every_way = pytest.mark.parametrize("way", WAYS, indirect=True)

RULES = {
    "SGD": lambda **options: fastopt.SGD(0.1, **options),
    "momentum": lambda **options: fastopt.SGD(0.1, momentum=0.9, nesterov=True, **options),
    "Adam": lambda **options: fastopt.Adam(0.01, **options),
    "AdamW": lambda **options: fastopt.AdamW(0.01, weight_decay=0.1, **options),
    "Adagrad": lambda **options: fastopt.Adagrad(0.1, **options),
    "RowwiseAdagrad": lambda **options: fastopt.RowwiseAdagrad(0.1, **options),
    "Ftrl": lambda **options: fastopt.Ftrl(0.1, l1_regularization_strength=0.1, beta=0.5, **options),
}
SHAPES = {"vector": (700,), "3": (700, 3), "64": (400, 8, 8), "5000": (40, 5000)}
COUNTS = (0, 1, 5, 300, 3000)


def drawn(rng, shape, count, dtype=F32, index=np.int64):
    """Indices, more often small ones, and values."""
    indices = (shape[0] * rng.random(count) ** 3).astype(index)
    return indices, rng.normal(size=(count, *shape[1:])).astype(dtype)


def rows_on_gpu(indices, values):
    """Memory of the host as a gradient for rows on the GPU."""
    return RowGradient(DeviceNDArray(indices), DeviceNDArray(values))


def table(shape, dtype=F32, seed=0):
    """A parameter."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class RowTwins(Twins):
    """Twins whose gradients are arrays, None, or pairs of indices and values."""

    def step(self, *grads, check=True, **options):
        """A step with these, each side with its own copy; what they then are is compared too."""
        own, other = copy.deepcopy(grads), copy.deepcopy(grads)
        self.host.apply(_on_host(own), **options)
        self.gpu.apply(_on_gpu(other), **options)
        if check:
            self.check()
            for left, right in zip(other, own, strict=True):
                if right is not None:
                    assert_same_bits(*((g[1] if isinstance(g, tuple) else g) for g in (left, right)), "gradient")


def _on_host(grads):
    return [RowGradient(*grad) if isinstance(grad, tuple) else grad for grad in grads]


def _on_gpu(grads):
    return [rows_on_gpu(*grad) if isinstance(grad, tuple) else on_gpu(grad) for grad in grads]


def twins_of(name, *shapes, dtype=F32, overrides=None, **options):
    """Twins of one of the `RULES`, with tables of such shapes."""
    make = [(shape, dtype) for shape in shapes]
    return RowTwins(lambda: RULES[name](**options), lambda: [table(*each) for each in make], overrides)


# -- bits --------------------------------------------------------------------------------------------------------------


def combinations():
    """Every rule, dtype, shape and way."""
    for name in RULES:
        for dtype in DTYPES:
            for width, shape in SHAPES.items():
                for way in WAYS:
                    always = dtype == F32 and way == "races" and (name == "Adam" or width == "3")
                    marks = [] if always else [pytest.mark.full]
                    yield pytest.param(name, dtype, shape, way, id=f"{name}-{dtype}-{width}-{way}", marks=marks)


@pytest.mark.parametrize(("name", "dtype", "shape", "way"), list(combinations()), indirect=["way"])
def test_bits(name, dtype, shape):
    """Of any number of places, from none to several for each row."""
    rng, twins = np.random.default_rng(1), twins_of(name, shape, dtype=dtype)
    for count in COUNTS[: 4 if shape == SHAPES["5000"] else 5]:
        twins.step(drawn(rng, shape, count, dtype, np.int32 if count % 2 else np.int64))


TWO = ((50, 3), (7, 5), (300,))
"""Two tables with a whole parameter between them."""


def two_and_whole(rng, dtype=F32, places=(40, 90)):
    """Gradients for them."""
    whole = rng.normal(size=TWO[1]).astype(dtype)
    return drawn(rng, TWO[0], places[0], dtype), whole, drawn(rng, TWO[2], places[1], dtype)


CLIPPED = [
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.1},
    {"nonfinite": "skip"},
    {"nonfinite": "raise"},
    {"global_clipnorm": 0.5, "nonfinite": "skip"},
    {"loss_scale_factor": 8.0, "clipnorm": 0.7},
]


@pytest.mark.parametrize("way", ["races"], indirect=True)
@pytest.mark.parametrize("options", CLIPPED, ids=str)
@pytest.mark.parametrize("name", ["AdamW", "RowwiseAdagrad"])
def test_clipping_and_whole_gradients(name, options):
    """Tables beside whole gradients, and beside none; norms are of merged rows."""
    rng, twins = np.random.default_rng(2), twins_of(name, *TWO, **options)
    twins.step(*two_and_whole(rng))
    first, whole, last = two_and_whole(rng, places=(40, 0))
    twins.step(rng.normal(size=TWO[0]).astype(F32), whole, last)
    with pytest.warns(UserWarning, match="no gradient for"):
        twins.step(first, None, last)
    twins.step(*two_and_whole(rng, places=(0, 200)))


@pytest.mark.parametrize("shape", [(9, 5000), (700, 3)], ids=str)
def test_norms_of_wide_and_of_many_rows(shape):
    """A row of more elements than a chunk has, and more rows than there are lanes."""
    rng = np.random.default_rng(3)
    for options in ({"clipnorm": 0.1}, {"global_clipnorm": 0.1}):
        for dtype in DTYPES:
            twins = twins_of("SGD", shape, dtype=dtype, **options)
            twins.step(drawn(rng, shape, 400 if shape[1] == 3 else 20, dtype))
            assert twins.gpu.last_grad_norm > 1


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("where", range(3))
def test_gradients_that_are_not_finite(where, bad):
    rng, shapes = np.random.default_rng(4), TWO
    skips = twins_of("Adam", *shapes, nonfinite="skip")
    raises = twins_of("Adam", *shapes, nonfinite="raise", global_clipnorm=1.0)
    for step in range(3):
        grads = two_and_whole(rng)
        if step != 1:
            skips.step(*grads)
            raises.step(*grads)
            continue
        (grads[where] if where == 1 else grads[where][1])[3] = bad
        with np.errstate(invalid="ignore"):
            skips.step(*grads)
            assert skips.gpu.last_step_skipped
            with pytest.raises(FloatingPointError) as host:
                raises.host.apply(_on_host(grads))
            with pytest.raises(FloatingPointError) as gpu:
                raises.gpu.apply(_on_gpu(grads))
        assert str(host.value) == str(gpu.value)
        raises.check()


def test_the_sum_overflows_and_no_element_does():
    twins = twins_of("SGD", (5, 2), dtype=F64, nonfinite="skip", global_clipnorm=1.0)
    with np.errstate(over="ignore"):
        twins.step((np.array([3]), np.full((1, 2), 1e200)))
    assert twins.gpu.last_step_skipped


def test_dynamic_loss_scale():
    rng = np.random.default_rng(5)
    twins = RowTwins(lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.01), 2.0**10, 2), lambda: [table((50, 3))])
    for step in range(6):
        indices, values = drawn(rng, (50, 3), 30)
        if step == 2:
            values[4, 1] = np.inf
        twins.step((indices, values), zero_grads=step % 2 == 0)
        assert twins.host.dynamic_scale == twins.gpu.dynamic_scale


def test_overrides_and_frozen_parameters():
    overrides = {
        "0": {"learning_rate_multiplier": 0.5, "weight_decay": 0.0},
        "1": {"trainable": False},
        "2": {"weight_decay": 0.7},
    }
    rng, twins = np.random.default_rng(6), twins_of("AdamW", (50, 3), (40, 2), (300,), overrides=overrides)
    for zero_grads in (False, True):
        twins.step(*(drawn(rng, shape, 60) for shape in ((50, 3), (40, 2), (300,))), zero_grads=zero_grads)


@pytest.mark.parametrize("options", [{"clipnorm": 0.5}, {"global_clipnorm": 0.5, "nonfinite": "skip"}], ids=str)
def test_two_dtypes_share_a_norm(options):
    rng = np.random.default_rng(7)
    params = [((50, 3), F32), ((40, 2), F64), ((30,), F32), ((60,), F64)]
    twins = RowTwins(lambda: fastopt.Adam(**options), lambda: [table(*each) for each in params])
    for by_rows in ((0,), (1,), (0, 1, 3), (2, 3)):
        grads = [
            drawn(rng, shape, 50, dtype) if k in by_rows else rng.normal(size=shape).astype(dtype)
            for k, (shape, dtype) in enumerate(params)
        ]
        twins.step(*grads)


def test_many_tables():
    """As of a model for clicks; some have no places."""
    shapes = [(3 + 5 * k, 4) for k in range(26)]
    rng, twins = np.random.default_rng(8), twins_of("Adagrad", *shapes, clipnorm=1.0)
    for _ in range(2):
        twins.step(*(drawn(rng, shape, k % 7 * 9) for k, shape in enumerate(shapes)))


@pytest.mark.parametrize("count", [row_sort.TILE - 1, row_sort.TILE, row_sort.TILE + 1, 4 * row_sort.TILE + 3])
@in_every_way
def test_sizes_of_sorts(count):
    rng, twins = np.random.default_rng(9), twins_of("SGD", (5000,))
    twins.step(drawn(rng, (5000,), count))


# -- how they lie ------------------------------------------------------------------------------------------------------


def other_dtype(values):
    return values.astype(F64 if values.dtype == F32 else F32)


def every_other(values):
    return np.repeat(values, 2, axis=0)[::2]


def last_axis_first(values):
    return np.asfortranarray(values)


def broadcast(values):
    return np.broadcast_to(values[:1], values.shape)


def unaligned(values):
    """At an address that is no multiple of 16."""
    memory = np.zeros(values.size + 8, values.dtype)
    moved = memory[1 : 1 + values.size].reshape(values.shape)
    moved[...] = values
    return moved


@pytest.mark.parametrize("put", [other_dtype, every_other, strided, last_axis_first, broadcast, unaligned])
def test_values_of_any_layout(put):
    shape, rng = (60, 3, 4), np.random.default_rng(10)
    for dtype in DTYPES:
        twins = twins_of("Adam", shape, dtype=dtype, clipnorm=1.0)
        for _ in range(2):
            indices, values = drawn(rng, shape, 90, dtype)
            twins.host.apply([RowGradient(indices, put(values))])
            twins.gpu.apply([rows_on_gpu(np.repeat(indices, 3)[::3], put(values))])
            twins.check()
            twins.step(rng.normal(size=shape).astype(dtype))  # whole: no record of its layout is left


@pytest.mark.parametrize("place", [unaligned, lambda array: np.moveaxis(np.moveaxis(array, 1, 2).copy(), 2, 1)])
def test_parameters_of_any_layout(place):
    """Whose rows lie in one piece."""
    rng = np.random.default_rng(11)
    twins = RowTwins(lambda: fastopt.Adam(0.1, clipnorm=1.0), lambda: [place(table((30, 3, 5)))])
    for _ in range(2):
        twins.step(drawn(rng, (30, 3, 5), 50))


@pytest.mark.parametrize("kind", ["torch", "cupy", "numba"])
def test_every_library(kind, monkeypatch):
    rng, make = np.random.default_rng(12), KINDS[kind]
    params, expected = table((30, 3)), table((30, 3))
    optimizer, reference = fastopt.Adam(0.1), fastopt.Adam(0.1)
    optimizer.build([make(params, monkeypatch)])
    reference.build([expected])
    for count in (20, 60):
        indices, values = drawn(rng, (30, 3), count)
        optimizer.apply([RowGradient(make(indices, monkeypatch), make(values, monkeypatch))])
        reference.apply([RowGradient(indices, values)])
    assert optimizer.iterations == 2
    assert_same_bits(params, expected, "table")


def test_zeroed_gradients():
    rng, twins = np.random.default_rng(13), twins_of("SGD", *TWO)
    twins.step(*two_and_whole(rng), zero_grads=True)


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_nothing_is_as_large_as_the_table(gpus):
    """Neither what is allocated, nor how many blocks are launched."""
    twins, rng = twins_of("Adam", (40_000, 8)), np.random.default_rng(14)
    twins.step(drawn(rng, (40_000, 8), 100))
    known = set(gpus.blocks)
    twins.step(drawn(rng, (40_000, 8), 150))
    assert sum(nbytes for address, (_, nbytes, _) in gpus.blocks.items() if address not in known) < 50_000


def test_programs_of_steps_that_were_left_out():
    """The GPU is behind the host when a gradient for rows comes."""
    twins, rng = twins_of("Adam", (50, 3), nonfinite="skip"), np.random.default_rng(15)
    twins.set(learning_rate=fastopt.schedules.ExponentialDecay(0.1, 3, 0.5))
    for step in range(5):
        indices, values = drawn(rng, (50, 3), 20)
        if step in (1, 2):
            values[3] = np.nan
        with np.errstate(invalid="ignore"):
            twins.step((indices, values), check=False)
    twins.check()


# -- what is refused ---------------------------------------------------------------------------------------------------


def gradient(indices=(3, 1), values=None, width=3):
    """Of NumPy arrays."""
    return np.array(indices), np.ones((len(indices), width), F32) if values is None else values


REFUSED = {
    "beyond": (gradient([3, 50, 1]), ValueError, "index 50 at place 1 is out of range: the parameter has 50 rows"),
    "negative": (gradient([3, 4, -1]), ValueError, "index -1 at place 2 is out of range"),
    "huge": (gradient([2**62, 4]), ValueError, r"index \d+ at place 0 is out of range"),
    "smallest": (gradient([4, -(2**63)]), ValueError, r"index -\d+ at place 1 is out of range"),
    "int32": (gradient(np.array([1, -(2**31)], np.int32)), ValueError, "at place 1 is out of range"),
    "shape": (gradient(width=4), ValueError, "expected values of shape"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_nothing_is_written(which):
    """A step that is refused, between others, beside a whole gradient; in each table."""
    grad, error, message = REFUSED[which]
    rng = np.random.default_rng(16)
    twins = twins_of("Adam", (50, 3), (7,), (50, 3), global_clipnorm=1.0)
    whole = np.ones(7, F32)
    for place in (0, 2):
        good = [drawn(rng, (50, 3), 20), whole, drawn(rng, (50, 3), 20)]
        twins.step(*good)
        bad = [*good]
        bad[place] = grad
        with pytest.raises(error, match=message):
            twins.gpu.apply(_on_gpu(bad))
        twins.check()


@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_state_that_needs_whole_gradients(options):
    twins = twins_of("Adam", (50, 3), **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        twins.gpu.apply([rows_on_gpu(*gradient())])
    twins.check()


@pytest.mark.parametrize("name", ["Lamb", "Adafactor", "Muon"])
def test_rules_that_need_whole_gradients(name):
    twins = RowTwins(lambda: getattr(fastopt, name)(0.1), lambda: [table((50, 3))])
    told = []
    for side, grad in ((twins.host, RowGradient(*gradient())), (twins.gpu, rows_on_gpu(*gradient()))):
        with pytest.raises(TypeError, match="needs whole gradients") as error:
            side.apply([grad])
        told.append(str(error.value))
    assert told[0] == told[1]
    twins.check()


def test_captures():
    twins, rng = twins_of("Adam", (50, 3)), np.random.default_rng(17)
    with pytest.raises(RuntimeError, match="RowGradient waits for the GPU"):
        fastopt.capture(twins.gpu, [rows_on_gpu(*gradient())])
    twins.step(drawn(rng, (50, 3), 20))
    grad = np.ones((50, 3), F32)
    graph = fastopt.capture(twins.gpu, [on_gpu(grad)])  # whole: the table takes part again
    twins.host.apply([grad])
    graph.replay()
    twins.check()


def test_arrays_elsewhere():
    twins = twins_of("Adam", (50, 3))
    indices, values = gradient()
    for grad in (RowGradient(indices, DeviceNDArray(values)), RowGradient(DeviceNDArray(indices), values)):
        with pytest.raises(TypeError, match="is a NumPy array"):
            twins.gpu.apply([grad])
    twins.check()


def test_memory_of_the_parameter():
    params = [table((50, 3))]
    optimizer = fastopt.SGD(0.1)
    optimizer.build(on_gpu(params))
    with pytest.raises(ValueError, match="overlaps a parameter"):
        optimizer.apply([rows_on_gpu(np.array([1, 2]), params[0][:2])])


def test_rows_that_do_not_lie_in_one_piece():
    twins = RowTwins(lambda: fastopt.SGD(0.1), lambda: [np.asfortranarray(table((50, 3)))])
    with pytest.raises(ValueError, match="does not lie in one piece"):
        twins.gpu.apply([rows_on_gpu(*gradient())])
    twins.check()


def test_what_is_no_array():
    with pytest.raises(TypeError, match="indices must be an array"):
        RowGradient(Interface(np.arange(2)), np.ones((2, 3)))
