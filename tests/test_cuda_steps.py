"""Steps on a GPU give the bits of those on the host: the compiled kernels are executed on the CPU."""

import copy
import pickle
import warnings
from typing import NamedTuple

import gpu_arrays
import numpy as np
import pytest
from compare import with_schedule
from fastopt.kernels.cuda.gpu import Kernel
from fastopt.kernels.cuda.tables import device_tables_at
from fastopt.kernels.layout import ADDRESS, OFFSET
from fastopt.kernels.maths import constant, sqrt
from gpu_arrays import Interface
from gpu_twins import Twins, assert_same_bits, memory_of, on_gpu
from table import CASES, RATES

import fastopt
from fastopt import schedules
from fastopt.compat import keras_1_0, keras_2_2, keras_2_3
from fastopt.steps import gpu

pytestmark = pytest.mark.usefixtures("gpus")

F32, F64 = np.dtype("float32"), np.dtype("float64")
DTYPES = (F32, F64)
over_dtypes = pytest.mark.parametrize("dtype", [F32, pytest.param(F64, marks=pytest.mark.full)], ids=str)
SHAPES = ((7, 5), (33,), ())


def drawn(seed, shapes=SHAPES, dtype=F32):
    """Arrays of normal numbers, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def made_of(seed, shapes=SHAPES, dtype=F32):
    """Makes `drawn` arrays, each time anew."""
    return lambda: drawn(seed, shapes, dtype)


def twins_of(name, shapes=SHAPES, dtype=F32, **options):
    """Twins of a class of fastopt."""
    return Twins(lambda: getattr(fastopt, name)(**options), made_of(0, shapes, dtype))


def run(twins, steps=4, shapes=SHAPES, dtype=F32, **options):
    """So many steps, each checked."""
    for seed in range(1, steps + 1):
        twins.step(made_of(seed, shapes, dtype), **options)


# -- the table ---------------------------------------------------------------------------------------------------------

WAYS = {
    "in order": {"order": 0},
    "backwards": {"order": 1},
    "at random": {"order": 2, "resident": 4},
    "races": {"order": 2, "resident": 4, "races": True},
}
"""How threads and blocks take turns: see `ptx.kernel.Kernel.launch`."""


@pytest.fixture
def way(request):
    """At random, unless a test says otherwise."""
    return WAYS[getattr(request, "param", "at random")]


def rows():
    """Every row in both dtypes."""
    for case in CASES:
        for dtype in DTYPES:
            yield pytest.param(case, dtype, id=f"{case.id}-{dtype}", marks=[pytest.mark.full] * case.full)


in_every_way = pytest.mark.parametrize("way", WAYS, indirect=True)


@pytest.mark.full
@in_every_way
@pytest.mark.parametrize(("case", "dtype"), list(rows()))
def test_every_row(case, dtype):
    def named(arrays):
        return dict(zip(case.names, arrays, strict=True)) if case.names else list(arrays)

    def before_build(optimizer, params):
        leaves = list(params.values()) if case.names else params
        if case.undecayed:
            optimizer.exclude_from_weight_decay(var_list=[leaves[index] for index in case.undecayed])

    overrides = {
        f"^{case.paths[index]}$": {"learning_rate_multiplier": value} for index, value in case.multipliers.items()
    }
    twins = Twins(
        lambda: getattr(fastopt, case.optimizer)(**with_schedule(case.kwargs)),
        lambda: named(case.params(dtype)),
        overrides or None,
        before_build=before_build,
    )
    for step in case.gradients(dtype):
        twins.step(lambda step=step: named(step))
    assert twins.host.iterations > 0


@pytest.mark.parametrize("way", ["races"], indirect=True)
@pytest.mark.parametrize("name", RATES)
def test_every_optimizer(name):
    options = {"global_clipnorm": 0.5, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.9}
    run(twins_of(name, learning_rate=RATES[name], **options), 3)


# -- containers and layouts --------------------------------------------------------------------------------------------


def as_list(arrays):
    return list(arrays)


def as_dict(arrays):
    return {"w": arrays[0], "b": arrays[1], "s": arrays[2]}


def nested(arrays):
    return {"layers": [{"w": arrays[0]}, (arrays[1],)], "s": arrays[2]}


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
@pytest.mark.parametrize("container", [as_list, as_dict, nested])
def test_containers(container, packed):
    twins = Twins(lambda: fastopt.Adam(global_clipnorm=1.0), lambda: container(drawn(0)), packed=packed)
    for seed in (1, 2):
        twins.step(lambda seed=seed: container(drawn(seed)))


@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("flat", [False, True], ids=["buffer", "flat"])
def test_packed_gradients(flat, zero_grads):
    twins = Twins(lambda: fastopt.Adam(0.1, clipnorm=1.0), made_of(0), packed=True)
    for seed in (1, 2):
        own, other = fastopt.pack(drawn(seed)), fastopt.pack(on_gpu(drawn(seed)))
        twins.host.apply(own.flat if flat else own, zero_grads=zero_grads)
        twins.gpu.apply(other.flat if flat else other, zero_grads=zero_grads)
        twins.check()
        assert_same_bits(memory_of(other.flat), own.flat, "flat gradient")
        assert bool(own.flat.any()) is not zero_grads


@pytest.mark.parametrize("kind", gpu_arrays.KINDS)
def test_every_library(kind, monkeypatch):
    """Parameters and gradients of each kind of array, state included."""
    params = drawn(0)
    optimizer, reference = (fastopt.Adam(0.1, clipnorm=1.0, use_ema=True) for _ in range(2))
    given = [gpu_arrays.KINDS[kind](array, monkeypatch) for array in params]
    expected = drawn(0)
    optimizer.build(given)
    reference.build(expected)
    for seed in (1, 2, 3):
        optimizer.apply([gpu_arrays.KINDS[kind](array, monkeypatch) for array in drawn(seed)])
        reference.apply(drawn(seed))
    for k, (actual, array) in enumerate(zip(params, expected, strict=True)):
        assert_same_bits(actual, array, f"parameter {k}")
    assert (optimizer.iterations, optimizer.last_grad_norm) == (reference.iterations, reference.last_grad_norm)


def strided(array):
    """Every third element of something larger."""
    wide = np.full((*array.shape, 3), np.nan, array.dtype)
    wide[..., 1] = array
    return wide[..., 1]


def unaligned(array):
    """At an address that leaves the remainder of one element on division by 16."""
    size = array.itemsize
    memory = np.zeros(array.nbytes + 32, np.uint8)
    first = -memory.ctypes.data % 16 + size
    moved = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not array.size or moved.ctypes.data % 16 == size
    return moved


def last_axis_first(array):
    """As channels lie first in memory, or, in a matrix, columns."""
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) if array.ndim else array


def fortran(array):
    return array.copy(order="F")


def backwards(array):
    """Negative strides."""
    return array[::-1].copy()[::-1] if array.ndim else array


def other_dtype(array):
    return array.astype(F64 if array.dtype == F32 else F32)


def other_dtype_strided(array):
    return strided(other_dtype(array))


def as_it_is(array):
    return array


LAYOUTS = (strided, unaligned, last_axis_first, backwards, other_dtype, other_dtype_strided)
FOUR_AXES = ((2, 3, 4, 5), (33,), (7, 5), ())


@over_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout(layout, dtype):
    """Also in the norm, in the accumulator, and zeroed."""
    twins = twins_of("Adam", FOUR_AXES, dtype, clipnorm=1.0, gradient_accumulation_steps=2)
    for seed in (1, 2):
        twins.step(lambda seed=seed: [layout(array) for array in drawn(seed, FOUR_AXES, dtype)], zero_grads=True)


@pytest.mark.parametrize("layout", [unaligned, last_axis_first, fortran])
@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_parameters_of_any_layout(name, layout):
    options = {"weight_decay": 0.1, "use_ema": True, "global_clipnorm": 1.0}
    twins = Twins(lambda: getattr(fastopt, name)(**options), lambda: [layout(array) for array in drawn(0, FOUR_AXES)])
    for seed, own in ((1, layout), (2, np.array)):
        twins.step(lambda seed=seed, own=own: [own(array) for array in drawn(seed, FOUR_AXES)])


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_parameters_that_are_stood_in_for(name):
    """Rules of matrices want C order: copies of other parameters go in and come back with each step."""
    twins = Twins(
        lambda: getattr(fastopt, name)(0.05), lambda: [last_axis_first(array) for array in drawn(0, FOUR_AXES)]
    )
    run(twins, 2, FOUR_AXES)


MANY_SIZES = ((1,), (3,), (33, 7), (4095,), (4096,), (4097,), (9001,), (0,), (), (2, 3, 5), (5, 130))
EVERYTHING = {"global_clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.9, "nonfinite": "skip"}
PLACED = {
    "plain": (as_it_is, as_it_is),
    "parameters unaligned": (unaligned, as_it_is),
    "gradients unaligned": (as_it_is, unaligned),
    "both unaligned": (unaligned, unaligned),
    "gradients strided": (as_it_is, strided),
    "gradients of another dtype": (as_it_is, other_dtype),
}
"""How parameters and gradients lie."""

CONFIGURED = {
    "Adam": lambda: fastopt.Adam(0.01),
    "AdamW, everything": lambda: fastopt.AdamW(0.01, weight_decay=0.1, **EVERYTHING),
    "Adam, clipnorm": lambda: fastopt.Adam(0.01, clipnorm=0.5),
    "Adam, accumulation": lambda: fastopt.Adam(0.01, gradient_accumulation_steps=2, **EVERYTHING),
    "Adam, scaled": lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.01, use_ema=True), 2.0**10, 2),
    "SGD": lambda: fastopt.SGD(0.1),
    "SGD, momentum": lambda: fastopt.SGD(0.1, momentum=0.9, nesterov=True, clipvalue=0.3),
    "Lion": lambda: fastopt.Lion(0.01, weight_decay=0.1, clipnorm=1.0),
    "Lamb": lambda: fastopt.Lamb(0.01, weight_decay=0.1, global_clipnorm=1.0),
    "Lamb, accumulation": lambda: fastopt.Lamb(0.01, gradient_accumulation_steps=2, use_ema=True, clipnorm=0.7),
    "Ftrl": lambda: fastopt.Ftrl(0.1, l1_regularization_strength=0.1, l2_regularization_strength=0.2, beta=0.5),
    "Ftrl, power": lambda: fastopt.Ftrl(0.1, learning_rate_power=-0.7, global_clipnorm=1.0),
    "RMSprop": lambda: fastopt.RMSprop(0.01, momentum=0.9, centered=True, use_ema=True, ema_overwrite_frequency=2),
    "Adamax": lambda: fastopt.Adamax(0.01),
    "Nadam": lambda: fastopt.Nadam(0.01),
    "Adagrad": lambda: fastopt.Adagrad(0.1),
    "Adadelta": lambda: fastopt.Adadelta(1.0),
    "ScheduleFreeAdamW": lambda: fastopt.ScheduleFreeAdamW(0.01, warmup_steps=2, global_clipnorm=1.0),
    "Adafactor": lambda: fastopt.Adafactor(0.01, global_clipnorm=1.0),
    "Muon": lambda: fastopt.Muon(0.01),
}
SKIPPING = {"AdamW, everything", "Adam, accumulation", "Adam, scaled"}
TAKING_PART = {"AdamW, everything", "Adam, accumulation", "Lamb", "Adafactor", "Muon"}
"""In `make test`, in float32 and with races looked for."""


def placements():
    """Every configuration, layout, dtype and way."""
    for name in CONFIGURED:
        for layout in PLACED:
            for dtype in DTYPES:
                for way in WAYS:
                    always = name in TAKING_PART and dtype == F32 and way == "races"
                    marks = [] if always else [pytest.mark.full]
                    yield pytest.param(name, layout, dtype, way, id=f"{name}-{layout}-{dtype}-{way}", marks=marks)


@pytest.mark.parametrize(("name", "layout", "dtype", "way"), list(placements()), indirect=["way"])
def test_layouts_and_sizes(name, layout, dtype):
    """Vectors, what remains of them, one chunk and several, none; some leave a step out."""
    put, give = PLACED[layout]
    twins = Twins(CONFIGURED[name], lambda: [put(array) for array in drawn(0, MANY_SIZES, dtype)])
    for seed in range(1, 5):

        def grads(seed=seed):
            arrays = drawn(seed, MANY_SIZES, dtype)
            if seed == 3 and name in SKIPPING:
                arrays[6][1234] = np.inf
            return [give(array) for array in arrays]

        twins.step(grads, zero_grads=seed % 2 == 0)


BEYOND = 2**33
"""Elements: where they lie is beyond 32 bits in elements and in bytes."""


def test_offsets_beyond_32_bits(gpus, monkeypatch):
    """Tables say that arrays begin so much earlier, and chunks so much later: the memory is the same."""
    launch, twins = Kernel.launch, twins_of("Adam", ((9001,), (7,)), global_clipnorm=1.0, use_ema=True)

    def shift(handle, dtype, number):
        tables = device_tables_at(handle, dtype).common
        tables.chunks[:, OFFSET] += number
        for addresses in (tables.addresses, tables.gradients[ADDRESS]):
            addresses[addresses != 0] -= number * np.dtype(dtype).itemsize

    def shifted(kernel, blocks, threads, stream, handle, options):
        with gpus.alone():
            gpus.enqueue(stream, lambda: shift(handle, F32.type, BEYOND))
            launch(kernel, blocks, threads, stream, handle, options)
            gpus.enqueue(stream, lambda: shift(handle, F32.type, -BEYOND))

    monkeypatch.setattr(Kernel, "launch", shifted)
    run(twins, 2, ((9001,), (7,)))


# -- which gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"clipnorm": 0.5, "use_ema": True}])
@pytest.mark.parametrize("name", ["Adam", "Lamb", "Adafactor", "Muon"])
def test_missing_gradients(name, options):
    twins = twins_of(name, **options)
    for seed, absent in ((1, 0), (2, 1), (3, 1), (4, 2), (5, None), (6, None)):
        grads = [None if k == absent else array for k, array in enumerate(drawn(seed))]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for")
            twins.step(lambda grads=grads: [None if grad is None else grad.copy() for grad in grads], zero_grads=True)


def test_gradients_for_some_parameters():
    twins = twins_of("Adam", gradient_accumulation_steps=2)
    for seed in range(1, 5):
        own, other = drawn(seed)[:2], drawn(seed)[:2]
        twins.host.apply(own, twins.host_params[:2])
        twins.gpu.apply(on_gpu(other), twins.gpu_params[:2])
        twins.check()
        twins.host.apply_gradients([(own[0], twins.host_params[0])])
        twins.gpu.apply_gradients([(Interface(other[0]), twins.gpu_params[0])])
        twins.check()


@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_overrides_and_frozen_parameters(name):
    overrides = {
        "^w": {"learning_rate_multiplier": 0.5, "weight_decay": 0.0},
        "b": {"trainable": False},
        "s": {"learning_rate_multiplier": 3.0, "weight_decay": 0.7},
    }
    twins = Twins(
        lambda: getattr(fastopt, name)(0.05, weight_decay=0.1), lambda: as_dict(drawn(0)), overrides=overrides
    )
    for seed in (1, 2):
        twins.step(lambda seed=seed: as_dict(drawn(seed)), zero_grads=True)


def test_gradients_that_share_memory_are_zeroed_last():
    def grads():
        owner = drawn(1, ((100,),))[0]
        return [owner[:35].reshape(7, 5), owner[30:63], owner[50:51].reshape(())]

    twins_of("SGD", momentum=0.9).step(grads, zero_grads=True)


MIXED = ((9, F32), (6, F64), (4097, F32), (5, F64))


def mixed(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(dtype) for size, dtype in MIXED]


@pytest.mark.parametrize(
    "options",
    [{"clipnorm": 0.5}, {"global_clipnorm": 0.5, "gradient_accumulation_steps": 2}, {"nonfinite": "skip"}],
    ids=str,
)
@pytest.mark.parametrize("name", ["Adam", pytest.param("Lamb", marks=pytest.mark.full)])
def test_two_dtypes_share_a_norm(name, options):
    twins = Twins(lambda: getattr(fastopt, name)(**options), lambda: mixed(0))
    for seed in range(1, 4):
        grads = mixed(seed)
        if seed == 2:
            grads[1][3] = np.nan
        with np.errstate(invalid="ignore"):
            twins.step(lambda grads=grads: copy.deepcopy(grads), zero_grads=True)


# -- settings that change ----------------------------------------------------------------------------------------------


def test_settings_between_steps():
    twins = twins_of("AdamW", use_ema=True, gradient_accumulation_steps=2, weight_decay=0.1, clipvalue=1.0)
    changes = [
        {"learning_rate": 0.5}, {"weight_decay": 0.0}, {"beta_1": 0.5}, {"clipvalue": None}, {"clipnorm": 0.3},
        {"ema_momentum": 0.5}, {"ema_overwrite_frequency": 1}, {"nonfinite": "skip"}, {"clipnorm": -1.0},
    ]  # fmt: skip
    for seed, change in enumerate(changes, 1):
        twins.set(**change)
        twins.step(made_of(seed))
    twins.set(gradient_accumulation_steps=None)
    run(twins, 2)


@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_exclusion_from_decay_after_build(name):
    twins = twins_of(name, weight_decay=0.5, nonfinite="skip")
    run(twins, 2)
    twins.host.exclude_from_weight_decay(var_list=twins.host_params[:1])
    twins.gpu.exclude_from_weight_decay(var_list=twins.gpu_params[:1])
    run(twins, 2)
    twins.both(lambda optimizer: optimizer.exclude_from_weight_decay(var_names=["1"]))
    run(twins, 2)


# -- averages and state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "ScheduleFreeAdamW"])
def test_evaluation_weights(name):
    options = {"use_ema": True} if name == "Adam" else {}
    twins = twins_of(name, **options)
    run(twins, 3)
    with twins.host.evaluation_weights(), twins.gpu.evaluation_weights():
        twins.check_params()
        with pytest.raises(RuntimeError, match="evaluation_weights"):
            twins.gpu.apply(on_gpu(drawn(9)))
    twins.check()
    run(twins, 1)
    twins.both(lambda optimizer: optimizer.finalize_variable_values())
    twins.check()
    run(twins, 1)


STATEFUL = {
    "Adam": {"use_ema": True, "ema_overwrite_frequency": 3},
    "Nadam": {"gradient_accumulation_steps": 2},
    "Lamb": {"global_clipnorm": 1.0},
    "SGD": {"momentum": 0.9, "learning_rate": schedules.ExponentialDecay(0.1, 2, 0.5)},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_state_goes_from_side_to_side(name):
    """In the midst of training, also of an accumulation; a load starts the GPU's counters anew."""
    twins = twins_of(name, **STATEFUL[name])
    run(twins, 3)
    states = twins.both(lambda optimizer: optimizer.state_dict())
    run(twins, 3)
    for from_host, from_gpu in (states, states[::-1]):
        twins.host.load_state_dict(from_gpu)
        twins.gpu.load_state_dict(from_host)
        assert twins.gpu.state_dict().keys() == states[0].keys()
        twins.check()
        run(twins, 3)


def test_a_new_optimizer_takes_over():
    twins = twins_of("Nadam", gradient_accumulation_steps=2)
    run(twins, 3)
    successor = fastopt.Nadam(gradient_accumulation_steps=2)
    successor.build(on_gpu([memory_of(array).copy() for array in twins.gpu_params]))
    successor.load_state_dict(twins.host.state_dict())
    twins.gpu, twins.gpu_params = successor, successor._structure
    twins.check()
    run(twins, 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "file"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["Adam", "scaled"])
def test_copies_go_on_by_themselves(copied, wrapped):
    def make():
        optimizer = fastopt.Adam(clipnorm=1.0, use_ema=True)
        return fastopt.LossScaleOptimizer(optimizer, 8.0, 2) if wrapped else optimizer

    twins = Twins(make, made_of(0), packed=True)
    run(twins, 3)
    original = twins.gpu
    twins.gpu_params, twins.gpu = copied((twins.gpu_params, twins.gpu))
    twins.check()
    run(twins, 2)
    assert original.iterations == 3


# -- gradients that are not finite -------------------------------------------------------------------------------------

PLACES = {
    "vector": (1, 2),
    "rest of a vector": (1, 32),
    "matrix": (0, 7),
    "no axes": (2, 0),
    "second chunk": (3, 4096),
    "end of a chunk": (3, 4095),
}
"""Parameter and element."""

WITH_CHUNKS = (*SHAPES, (4098,))


def poisoned(seed, places, value=np.nan, shapes=WITH_CHUNKS, layout=np.array):
    """Drawn gradients with a value in some places."""

    def grads():
        arrays = drawn(seed, shapes)
        for parameter, element in places:
            arrays[parameter].reshape(-1)[element] = value
        return [layout(array) for array in arrays]

    return grads


@pytest.mark.parametrize("layout", [np.array, strided, unaligned])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_is_skipped_wherever_the_number_is(place, layout):
    twins = twins_of("Adam", WITH_CHUNKS, nonfinite="skip")
    run(twins, 1, WITH_CHUNKS)
    twins.step(poisoned(2, [PLACES[place]], layout=layout), zero_grads=True)
    assert twins.gpu.last_step_skipped
    run(twins, 1, WITH_CHUNKS)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2},
        {"global_clipnorm": 1.0, "gradient_accumulation_steps": 2},
        {"clipvalue": 0.1, "gradient_accumulation_steps": 3, "use_ema": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["Nadam", "Lamb", "Adafactor", "Muon"])
def test_skipped_steps_leave_no_trace(name, options, value):
    """Neither in the parameters, nor in state, nor in the window of an accumulation."""
    twins = twins_of(name, nonfinite="skip", **options)
    for seed, bad in enumerate((0, 1, 0, 1, 1, 0, 0, 1, 0), 1):
        places = [(1, 5)] if bad else []
        twins.step(poisoned(seed, places, value, SHAPES), zero_grads=True)
        assert twins.gpu.last_step_skipped is bool(bad)


@pytest.mark.parametrize(
    "options", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}, {"clipnorm": -1.0}], ids=str
)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_let_in_is_the_same(value, options):
    twins = twins_of("Adam", **options)
    run(twins, 1)
    with np.errstate(invalid="ignore"):
        twins.step(poisoned(2, [(1, 5)], value, SHAPES))
    run(twins, 1)


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_a_refused_step(name, options):
    twins = twins_of(name, nonfinite="raise", **options)
    run(twins, 1)
    for seed, place in ((2, (1, 5)), (3, (0, 0))):
        with pytest.raises(FloatingPointError) as on_host:
            twins.host.apply(poisoned(seed, [place], shapes=SHAPES)())
        with pytest.raises(FloatingPointError) as there:
            twins.gpu.apply(on_gpu(poisoned(seed, [place], shapes=SHAPES)()))
        assert str(there.value) == str(on_host.value)
        assert f"gradient {place[0]}" in str(there.value)
        twins.check()
    run(twins, 2)


@pytest.mark.parametrize("nonfinite", ["skip", "raise", "propagate"])
@pytest.mark.parametrize("clip", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}], ids=str)
def test_a_norm_that_overflows(nonfinite, clip):
    """Squares of finite float64 numbers may be beyond float64."""

    def huge(seed):
        arrays = drawn(seed, dtype=F64)
        arrays[0][0, 0] = 1e200
        return arrays

    twins = Twins(lambda: fastopt.Adam(nonfinite=nonfinite, **clip), made_of(0, dtype=F64))
    if nonfinite == "raise" and clip:
        for optimizer, grads in ((twins.host, huge(1)), (twins.gpu, on_gpu(huge(1)))):
            with pytest.raises(FloatingPointError, match="the gradients' norm overflows; nothing was updated"):
                optimizer.apply(grads)
        twins.check()
    else:
        with np.errstate(over="ignore"):
            twins.step(lambda: huge(1))
    run(twins, 1, dtype=F64)


# -- infinite parameters, and squares that overflow --------------------------------------------------------------------


EXTREME = [
    *((name, {}) for name in RATES),
    ("Adam", {"amsgrad": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
]


@pytest.mark.full
@pytest.mark.parametrize(
    ("dtype", "huge", "options"),
    [
        (F64, 3e154, {}),
        (F32, 3e19, {"weight_decay": 0.1}),
        (F32, 3e19, {"use_ema": True, "ema_overwrite_frequency": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "own"), EXTREME, ids=str)
def test_extreme_numbers(name, own, options, dtype, huge):
    shapes = ((2, 4), (5,))

    def params():
        matrix, vector = drawn(0, shapes, dtype)
        matrix[0, :3], vector[:4] = (-np.inf, np.inf, -0.0), (0.0, -0.0, -np.inf, np.inf)
        return [matrix, vector]

    def grads(seed):
        matrix, vector = drawn(seed, shapes, dtype)
        matrix[0, :3] = vector[:4] = 0
        matrix[1, :2] = (huge, 100 * huge) if seed == 2 else 1
        return [matrix, vector]

    twins = Twins(lambda: getattr(fastopt, name)(**own, **options), params)
    for seed in range(1, 5):
        with np.errstate(all="ignore"):
            twins.step(lambda seed=seed: grads(seed))


# -- a GPU that lags behind the host -----------------------------------------------------------------------------------


@pytest.fixture
def lagging(gpus):
    """The GPU does nothing before it must."""
    gpus.eagerness = 0, 0
    return gpus


@pytest.fixture
def short_ring(monkeypatch):
    """A ring with room for few programs."""
    monkeypatch.setattr(gpu, "RING", 8)


def falling_rate():
    """A function that says something else each time."""
    rates = iter(np.linspace(0.2, 0.01, 100))
    return lambda: next(rates)


SCENES = {
    "plain": dict,
    "schedule": lambda: {"learning_rate": schedules.CosineDecay(0.1, 30, warmup_target=0.5, warmup_steps=5)},
    "function": lambda: {"learning_rate": falling_rate()},
    "function of the step": lambda: {"learning_rate": lambda step: 0.1 / (1 + step)},
    "averages": lambda: {"use_ema": True, "ema_overwrite_frequency": 3, "global_clipnorm": 1.0},
    "accumulation": lambda: {"gradient_accumulation_steps": 2, "clipnorm": 1.0},
    "longer accumulation": lambda: {"gradient_accumulation_steps": 3, "weight_decay": 0.1, "use_ema": True},
}
TINY = ((3,), (2,))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", ["Nadam", "ScheduleFreeAdamW"])
def test_skipped_steps_of_which_the_host_has_not_heard(name, scene, lagging, short_ring):
    """It works on with counters that are wrong, and the GPU finds the right programs nevertheless."""
    twins = Twins(lambda: getattr(fastopt, name)(nonfinite="skip", **SCENES[scene]()), made_of(0, TINY))
    rng, kept = np.random.default_rng(5), []
    for seed in range(1, 31):
        kept.append(twins.apply(poisoned(seed, [(1, 1)] if rng.random() < 0.4 else [], shapes=TINY)))
        if rng.random() < 0.3:
            lagging.run(rng.integers(lagging.pending + 1))
        if "learning_rate" not in SCENES[scene]() and rng.random() < 0.3:
            twins.set(learning_rate=rng.uniform(0.01, 0.2))
    twins.check()


def test_settings_that_counters_hang_on(lagging):
    """Nadam counts the product of its momenta."""
    twins = twins_of("Nadam", TINY, nonfinite="skip", gradient_accumulation_steps=2)
    kept = []
    for seed in range(1, 16):
        kept.append(twins.apply(poisoned(seed, [(0, 1)] if seed % 3 == 2 else [], shapes=TINY)))
        if seed % 5 == 0:
            twins.set(beta_1=0.1 * (seed % 9))
    twins.check()


@pytest.mark.parametrize("skipped", [0.0, 0.5])
def test_more_steps_than_the_ring_has_places(skipped, short_ring):
    """Without anything being read meanwhile."""
    twins = twins_of("SGD", ((2,),), momentum=0.9, nonfinite="skip" if skipped else "propagate")
    rng = np.random.default_rng(7)
    for seed in range(1, 40):
        twins.apply(poisoned(seed, [(0, 1)] if rng.random() < skipped else [], shapes=((2,),)))
    twins.check()


# -- loss scaling ------------------------------------------------------------------------------------------------------


def scaled(**options):
    return lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.1, global_clipnorm=1.0), **options)


GOOD, BAD = 0, 1
COURSE = (GOOD, GOOD, BAD, GOOD, BAD, BAD, GOOD, GOOD, GOOD, GOOD, GOOD, BAD, GOOD)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_scale": 8.0, "dynamic_growth_steps": 2},
        {"initial_scale": 2.0, "dynamic_growth_steps": 1, "minimum_scale": 1.0, "maximum_scale": 4.0},
        {"initial_scale": 2.0**126, "dynamic_growth_steps": 1},
        {"initial_scale": 2.0**-126, "dynamic_growth_steps": 100},
        {"initial_scale": 3.0, "dynamic_growth_steps": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
def test_the_loss_scale(options, read):
    twins = Twins(scaled(**options), made_of(0))
    for seed, bad in enumerate(COURSE, 1):
        grads = poisoned(seed, [(1, 3)] if bad else [], np.inf, SHAPES)
        if read:
            twins.step(grads, zero_grads=True)
            counters = twins.both(lambda optimizer: (optimizer.dynamic_scale, optimizer.step_counter))
            assert counters[1] == counters[0]
        else:
            twins.apply(grads)
    twins.check()


@pytest.mark.parametrize("inner", ["Lamb", "Nadam"])
def test_the_loss_scale_with_accumulation(inner):
    def make():
        return fastopt.LossScaleOptimizer(getattr(fastopt, inner)(0.1, gradient_accumulation_steps=2), 8.0, 2)

    twins = Twins(make, made_of(0))
    for seed, bad in enumerate(COURSE, 1):
        twins.step(poisoned(seed, [(1, 3)] if bad else [], shapes=SHAPES))


def test_the_loss_scale_may_be_set_and_loaded():
    twins = Twins(scaled(initial_scale=8.0, dynamic_growth_steps=3), made_of(0))
    twins.set(dynamic_scale=16.0)
    run(twins, 2)
    twins.set(dynamic_scale=32.0)
    twins.set(step_counter=2)
    twins.step(made_of(5))
    assert twins.gpu.dynamic_scale == 64.0
    states = twins.both(lambda optimizer: optimizer.state_dict())
    run(twins, 2)
    twins.host.load_state_dict(states[1])
    twins.gpu.load_state_dict(states[0])
    run(twins, 2)
    twins.both(lambda optimizer: optimizer.exclude_from_weight_decay(var_names=["0"]))
    run(twins, 2)


def test_a_loss_is_scaled_by_the_present_scale():
    twins = Twins(scaled(initial_scale=8.0, dynamic_growth_steps=1), made_of(0))
    for seed in (1, 2):
        run(twins, 1)
        expected, actual = twins.both(lambda optimizer: optimizer.scale_loss(1.5))
        assert actual == expected == 1.5 * 8.0 * 2**seed


# -- other rules -------------------------------------------------------------------------------------------------------


class PushScalars(NamedTuple):
    learning_rate: float


def push(param, grad, slots, s):
    """A rule without slots."""
    return param - s.learning_rate * grad, slots


class LeakScalars(NamedTuple):
    learning_rate: float
    leak: float


def leak(param, grad, slots, s):
    """Two slots, one of which starts at 2."""
    first, second = slots
    first = first + s.leak * (grad - first)
    second = second - s.leak * (second - grad * grad)
    return param - s.learning_rate * first / (sqrt(second) + constant(0.5, grad)), (first, second)


def three_terms(param, grad, slots, s):
    (mean,) = slots
    mean = mean + s.leak * (grad - mean)
    return (mean * mean, param * mean, abs(param)), (mean,)


def between_three(sums, n, s):
    return (sums[0] + sums[1]) / (sums[2] + n)


def second_of_three(param, grad, slots, extra, s):
    (mean,) = slots
    return param - s.learning_rate * extra * mean - s.leak * grad


def size_only(param, grad, slots, s):
    return (grad,), ()


def mean_of(sums, n, s):
    return sums[0] / n


def against_mean(param, grad, slots, extra, s):
    return param - s.learning_rate * (grad - extra)


RATE = {"learning_rate": 0.1}
OWN = {
    "Push": fastopt.register_rule("ExecutedPush", push, PushScalars, defaults=RATE),
    "Leak": fastopt.register_rule(
        "ExecutedLeak", leak, LeakScalars, slots={"first": 0.0, "second": 2.0}, defaults={**RATE, "leak": 0.3}
    ),
    "three terms": fastopt.register_rule(
        "ExecutedThree", three_terms, LeakScalars, slots={"mean": 1.0}, defaults={**RATE, "leak": 0.3},
        between=between_three, second=second_of_three,
    ),
    "no slots, two phases": fastopt.register_rule(
        "ExecutedCentred", size_only, PushScalars, defaults=RATE, between=mean_of, second=against_mean
    ),
}  # fmt: skip


@over_dtypes
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.full] * (name == "Push")) for name in OWN])
def test_rules_of_ones_own(name, dtype):
    shapes = (*SHAPES, (4100,))
    options = {"weight_decay": 0.1, "clipnorm": 2.0, "use_ema": True, "nonfinite": "skip"}
    twins = Twins(lambda: OWN[name](**options), made_of(0, shapes, dtype))
    run(twins, 2, shapes, dtype)


def with_literals(param, grad, slots, s):
    """Python's numbers are float64, and so is what they are multiplied with."""
    (mean,) = slots
    mean = 0.9 * mean + 0.1 * grad
    return param - s.learning_rate * mean * 1.5, (mean,)


Literals = fastopt.register_rule(
    "ExecutedLiterals", with_literals, PushScalars, slots={"mean": 0.0}, defaults={"learning_rate": 0.1}
)


@over_dtypes
def test_a_rule_with_literals(dtype):
    run(Twins(Literals, made_of(0, dtype=dtype)), 3, dtype=dtype)


LEGACY = {
    "clipnorm": (keras_2_3, "SGD", {"clipnorm": 0.5, "momentum": 0.9}),
    "both clips": (keras_2_3, "Adam", {"clipnorm": 1.0, "clipvalue": 0.05, "amsgrad": True}),
    "negative": (keras_2_2, "Adam", {"clipnorm": -1.0, "decay": 0.1}),
    "decay": (keras_2_2, "RMSprop", {"decay": 0.1, "clipvalue": 0.1}),
    "1.0": (keras_1_0, "Adagrad", {"clipnorm": 0.5}),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n == "decay")) for n in LEGACY])
def test_optimizers_of_old_releases(name):
    release, kind, options = LEGACY[name]
    twins = Twins(lambda: getattr(release, kind)(**options), made_of(0))
    run(twins, 3)
    twins.step(poisoned(7, [(1, 5)], shapes=SHAPES))
    weights = twins.both(lambda optimizer: optimizer.get_weights())
    for k, (expected, actual) in enumerate(zip(*weights, strict=True)):
        assert_same_bits(np.asarray(actual), np.asarray(expected), f"weight {k}")
    twins.host.set_weights(weights[1])
    twins.gpu.set_weights(weights[0])
    run(twins, 1)


# -- launches ----------------------------------------------------------------------------------------------------------

LAUNCHES = {"Adam": (1, 2), "Lion": (1, 2), "Ftrl": (1, 2), "Lamb": (2, 3), "Adafactor": (3, 4)}
"""Of a step without norms, and with them; at most."""


@pytest.mark.parametrize("name", LAUNCHES)
def test_number_of_launches(name, monkeypatch):
    launched = []
    launch = Kernel.launch
    monkeypatch.setattr(Kernel, "launch", lambda kernel, *numbers: (launched.append(kernel), launch(kernel, *numbers)))
    everything = {"clipnorm": 1.0, "use_ema": True, "weight_decay": 0.1, "nonfinite": "skip", "clipvalue": None}
    for options, most in zip(({}, everything), LAUNCHES[name], strict=True):
        optimizer = getattr(fastopt, name)(**options)
        optimizer.build(on_gpu(drawn(0)))
        for seed in (1, 2):
            launched.clear()
            optimizer.apply(on_gpu(drawn(seed)), zero_grads=True)
            assert len(launched) <= most
