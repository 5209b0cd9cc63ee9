"""Storage formats on a GPU: the bits of the host, by compiled kernels that are executed on the CPU.

Each row costs kernels of its own to be compiled: a few cover all formats, the others run with the mark `full`.
"""

import itertools
from typing import Any, NamedTuple

import gpu_arrays
import ml_dtypes
import numpy as np
import pytest
from fastopt.kernels.cuda import formatted
from fastopt.kernels.cuda.gpu import Kernel
from fastopt.kernels.formats import FORMATS, OWN
from gpu_twins import Twins, assert_same_bits, memory_of, on_gpu
from running_driver import finish_all
from test_cuda_steps import WAYS, as_it_is, backwards, other_dtype_strided, strided, unaligned
from test_formats import ELEMENTWISE

import fastopt

pytestmark = pytest.mark.usefixtures("gpus")

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
BF16 = {"": {"dtype": "bfloat16"}}
SHAPES = (4096,), (70, 90), (4351,), (), (0,), (33,)
"""Whole blocks of a scale; two chunks and a matrix; a last block of 255; short ones, which have no scales."""
LONG = (4096,), (4351,)


@pytest.fixture
def way(request):
    """At random, unless a test says otherwise."""
    return WAYS[getattr(request, "param", "at random")]


def drawn(seed, kind, shapes=SHAPES):
    """Arrays of normal numbers; those of bfloat16 as bit patterns, for which no interface has a name."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.normal(size=shape), np.float32).astype(DTYPES[kind]) for shape in shapes]
    return [array.view(np.uint16) for array in arrays] if kind == "bfloat16" else arrays


def made(name, **options):
    """An optimizer with a rule of its own: see `ELEMENTWISE`."""
    return getattr(fastopt, name.partition(",")[0])(0.01, **ELEMENTWISE[name], **{"seed": 7, **options})


class Row(NamedTuple):
    """What is stepped, and how it lies in memory."""

    name: str
    kind: str  # of the parameters
    options: dict
    grads: str  # the gradients' kind
    put: Any = as_it_is  # how parameters lie
    give: Any = as_it_is  # how gradients lie
    shapes: tuple = SHAPES


def twins_of(row):
    return Twins(
        lambda: made(row.name, **row.options),
        lambda: [row.put(array) for array in drawn(0, row.kind, row.shapes)],
        BF16 if row.kind == "bfloat16" else None,
    )


def step(twins, row, seed, **options):
    twins.step(lambda: [row.give(array) for array in drawn(seed, row.grads, row.shapes)], **options)


def run(row, steps=3):
    """So many steps, each checked; the second zeroes its gradients."""
    twins = twins_of(row)
    for seed in range(1, steps + 1):
        step(twins, row, seed, zero_grads=seed == 2)
    return twins


# -- a few that cover --------------------------------------------------------------------------------------------------

AVERAGED = {"use_ema": True, "ema_momentum": 0.5, "slot_dtype": {"average": "bfloat16", "momentum": "float16"}}
KAHAN = {"compensation": "kahan", "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2, **AVERAGED}
RANDOM = {"stochastic_rounding": True, "slot_dtype": "bfloat16"}
SPLIT = {"master_weights": "split", "slot_dtype": "8bit"}
COVERING = {
    "nearest, norm": Row("Adam", "bfloat16", {"global_clipnorm": 1.0}, "bfloat16"),
    "at random": Row("AdamW", "bfloat16", RANDOM, "float32", unaligned, unaligned),
    "split, 8 bits": Row("AdaBelief", "bfloat16", SPLIT, "bfloat16", shapes=LONG),
    "Kahan, averages": Row("SGD, momentum", "float16", KAHAN, "float16", give=strided),
    "8 bits": Row("Lion", "float32", {"slot_dtype": "8bit"}, "float32", unaligned, shapes=LONG),
}
IN_WAYS = [
    pytest.param(name, way, marks=[] if way == "races" else [pytest.mark.full], id=f"{name}-{way}")
    for name in COVERING
    for way in WAYS
]


@pytest.mark.parametrize(("name", "way"), IN_WAYS, indirect=["way"])
def test_covering_rows(name):
    run(COVERING[name], 4)


@pytest.mark.parametrize("blocks, threads", [(1, 128), (3, 32), (2, 64)])
@pytest.mark.parametrize("name", ["at random", "split, 8 bits"])
def test_the_shape_of_a_launch_changes_nothing(name, blocks, threads, monkeypatch):
    monkeypatch.setattr(formatted, "THREADS", threads)
    monkeypatch.setattr(Kernel, "blocks", lambda *_: blocks)
    run(COVERING[name], 2)


@pytest.mark.parametrize("name", ["at random", "split, 8 bits"])
def test_where_a_parameter_lies_changes_nothing(name):
    """Side by side in one buffer, from an odd place on; the host's stay apart."""
    row = COVERING[name]

    def side_by_side(arrays):
        buffer, at, found = np.zeros(sum(array.size for array in arrays) + 1, np.uint16), 1, []
        for array in arrays:
            found.append(buffer[at : at + array.size].reshape(array.shape))
            found[-1][...] = array
            at += array.size
        return found

    host, device = drawn(0, row.kind, row.shapes), side_by_side(drawn(0, row.kind, row.shapes))
    optimizers = [made(row.name, **row.options) for _ in range(2)]
    optimizers[0].build(host, BF16)
    optimizers[1].build(on_gpu(device), BF16)
    for seed in (1, 2):
        optimizers[0].apply(drawn(seed, row.grads, row.shapes))
        optimizers[1].apply(on_gpu(side_by_side(drawn(seed, "bfloat16", row.shapes)) if row.grads == "bfloat16" else
                                   drawn(seed, row.grads, row.shapes)))  # fmt: skip
    finish_all()
    for one, other in zip(host, device, strict=True):
        assert np.array_equal(one, other)


# -- every rule, format and layout -------------------------------------------------------------------------------------

PARAMS = {
    "nearest": {},
    "at random": {"stochastic_rounding": True},
    "master": {"master_weights": "float32"},
    "split": {"master_weights": "split"},
    "kahan": {"compensation": "kahan"},
}
SLOTS = None, "bfloat16", "float16", "8bit"
LAID = {
    "plain": (as_it_is, as_it_is),
    "unaligned": (unaligned, unaligned),
    "gradients strided": (as_it_is, strided),
    "gradients backwards": (unaligned, backwards),
}
GRADS = "bfloat16", "float16", "float32", "float64"
WITH = {
    "nothing": {},
    "norm": {"clipnorm": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.9},
    "accumulation": {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0},
}


def rows_of_all():
    """Pairs of all that differs, by taking each in steps that have no divisor in common with the others'."""
    ways = [(kind, way) for kind in ("bfloat16", "float16") for way in PARAMS if (kind, way) != ("float16", "split")]
    ways += [("float32", None), ("float64", None)]
    every = itertools.product(enumerate(ELEMENTWISE), ways)
    for number, ((k, name), (kind, way)) in enumerate(every, 1):
        slots, laid = SLOTS[(number + k) % len(SLOTS)], [*LAID][number % 7 % len(LAID)]
        grads = GRADS[number % 5 % len(GRADS)] if way else ("float32", "float64")[number % 2]
        options = {**WITH[[*WITH][number % 9 % len(WITH)]], **PARAMS.get(way, {}), "slot_dtype": slots or "bfloat16"}
        if slots is None and way:
            del options["slot_dtype"]
        row = Row(name, kind, options, grads, *LAID[laid])
        yield pytest.param(row, id=f"{name}-{kind}-{way}-{slots}-{grads}-{laid}")


@pytest.mark.full
@pytest.mark.parametrize("row", list(rows_of_all()))
def test_every_rule_in_every_format(row):
    run(row)


# -- numbers that are not finite, and steps that are left out ----------------------------------------------------------


def test_steps_that_are_left_out_use_up_no_noise():
    """The GPU alone counts the updates that noise follows from."""
    twins = twins_of(Row("SGD", "bfloat16", {"stochastic_rounding": True, "nonfinite": "skip"}, "bfloat16"))
    for seed in range(1, 6):
        grads = drawn(seed, "bfloat16")
        if seed in (2, 3):
            grads[1][3, 4] = 0x7F80  # infinity
        twins.apply(lambda grads=grads: [grad.copy() for grad in grads])
    twins.check()
    assert twins.host.iterations == 3


def test_replays_of_a_graph_go_on_with_noise():
    twins = twins_of(Row("SGD", "bfloat16", {"stochastic_rounding": True, "nonfinite": "skip"}, "bfloat16"))
    grads = drawn(1, "bfloat16")
    given = on_gpu(grads)
    graph = fastopt.capture(twins.gpu, given)
    for seed in range(1, 4):
        new = drawn(seed, "bfloat16")
        finish_all()
        for there, array in zip(grads, new, strict=True):
            there[...] = array
        twins.host.apply(new)
        graph.replay()
    twins.check()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_block_with_a_number_that_is_not_finite(value):
    """Its scale is NaN, or the greatest number; no other block's."""
    row = COVERING["8 bits"]
    twins = twins_of(row)
    for seed in (1, 2):
        grads = drawn(seed, "float32", row.shapes)
        grads[1][4300] = value
        grads[0][:256] = 0.0
        with np.errstate(all="ignore"):
            twins.step(lambda grads=grads: [grad.copy() for grad in grads])
    scales = twins.gpu.slots["momentum/scale"][1].copy_to_host()
    assert not np.isfinite(scales[16]) if np.isnan(value) else scales[16] > 1e38
    assert np.isfinite(scales[:16]).all()


# -- state -------------------------------------------------------------------------------------------------------------


def test_state_goes_to_the_host_and_back():
    row = COVERING["split, 8 bits"]
    twins = run(row, 2)
    host, device = (optimizer.state_dict() for optimizer in (twins.host, twins.gpu))
    assert host["formats"] == device["formats"]
    twins.host.load_state_dict(device)
    twins.gpu.load_state_dict(host)
    step(twins, row, 3)
    assert twins.gpu.memory() == twins.host.memory()


def test_state_in_other_formats_is_converted():
    row = COVERING["8 bits"]
    eight, plain = run(row, 2), run(row._replace(options={}), 2)
    states = [twins.gpu.state_dict() for twins in (eight, plain)]
    for twins, state in zip((plain, eight), states, strict=True):
        for optimizer in (twins.host, twins.gpu):
            with pytest.raises(ValueError, match="convert=True"):
                optimizer.load_state_dict(state)
            optimizer.load_state_dict(state, convert=True)
        step(twins, row, 3)


def test_averages_take_the_parameters_place():
    row = COVERING["Kahan, averages"]
    twins = run(row, 3)
    before = [memory_of(array).copy() for array in twins.gpu_params]
    with twins.host.evaluation_weights(), twins.gpu.evaluation_weights():
        twins.check_params()
    for array, known in zip(twins.gpu_params, before, strict=True):
        assert np.array_equal(memory_of(array), known)
    twins.both(lambda optimizer: optimizer.finalize_variable_values())
    twins.check()


def test_slots_as_others_see_them():
    twins = run(COVERING["Kahan, averages"], 1)
    slots = twins.gpu.slots
    assert slots["average"][0].__cuda_array_interface__["typestr"] == "<u2"
    assert slots["momentum"][0].__cuda_array_interface__["typestr"] == "<f2"
    assert slots["compensation"][0].dtype == np.float16


# -- libraries, and formats of one's own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "kind"), [("cupy", "float16"), ("numba", "bfloat16"), ("torch", "bfloat16"), ("torch", "float16")]
)
def test_arrays_of_libraries(library, kind, monkeypatch):
    params, expected = drawn(0, kind), drawn(0, kind)

    def given(arrays):
        if library != "torch":
            return [gpu_arrays.KINDS[library](array, monkeypatch) for array in arrays]
        import torch

        tensors = [gpu_arrays.tensor(array.view(np.int16), monkeypatch) for array in arrays]
        return [tensor.view(getattr(torch, kind)) for tensor in tensors]

    overrides = BF16 if kind == "bfloat16" else None
    optimizer, reference = (fastopt.SGD(0.1, stochastic_rounding=True) for _ in range(2))
    optimizer.build(given(params), None if library == "torch" else overrides)
    reference.build(expected, overrides)
    for seed in (1, 2):
        optimizer.apply(given(drawn(seed, kind)), zero_grads=True)
        reference.apply(drawn(seed, kind))
    finish_all()
    for k, (actual, array) in enumerate(zip(params, expected, strict=True)):
        assert_same_bits(actual, array, f"parameter {k}")


def decode_linear(stored, scale):
    return stored[0] * scale / np.float32(127)


def encode_linear(number, scale, noise):
    return (np.int8(round(number / scale * 127)) if scale > 0 else np.int8(0),)


@pytest.fixture
def linear():
    """A format of one's own."""
    fastopt.register_format("linear8_gpu", decode_linear, encode_linear, ["int8"], scaled=True)
    yield "linear8_gpu"
    del FORMATS["linear8_gpu"]
    OWN.remove("linear8_gpu")


def test_a_format_of_ones_own(linear):
    run(Row("Lion", "float32", {"slot_dtype": linear}, "float32", shapes=LONG))


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(action, error, message, *arrays):
    """What is refused changes nothing."""
    before = [array.copy() for array in arrays]
    with pytest.raises(error, match=message):
        action()
    finish_all()
    assert all(np.array_equal(array, known) for array, known in zip(arrays, before, strict=True))


def test_what_cannot_be_built():
    codes, halves = drawn(0, "bfloat16", LONG), drawn(0, "float16", LONG)
    build = lambda optimizer, arrays, overrides=None: lambda: optimizer.build(on_gpu(arrays), overrides)  # noqa: E731
    refused(build(fastopt.Adam(), codes), TypeError, r'got uint16: say \{"dtype": "bfloat16"\} in an override', *codes)
    for kind in (fastopt.Lamb, fastopt.Adafactor, fastopt.ScheduleFreeAdamW, fastopt.Muon):
        matrices = drawn(0, "float16", ((7, 5),))
        refused(build(kind(), matrices), TypeError, "keeps its parameters and state in float32 or float64", *matrices)
    split = fastopt.Adam(master_weights="split")
    refused(build(split, halves), ValueError, "takes bfloat16 apart, and this is float16", *halves)
    refused(build(fastopt.Adam(), halves, BF16), TypeError, "an override says bfloat16, which is for uint16", *halves)
    refused(build(fastopt.Adam(), [np.zeros(3, np.int32)]), TypeError, "expected float32, float64, bfloat16 or float16")


def test_gradients_that_do_not_fit(monkeypatch):
    params = drawn(0, "bfloat16", LONG)
    optimizer = fastopt.SGD(0.1, stochastic_rounding=True)
    optimizer.build(on_gpu(params), BF16)
    for grads, message in (
        (
            [np.zeros(4096, np.int32), np.zeros(4351, np.int32)],
            "expected float32 or float64, or bfloat16 or float16, in",
        ),
        ([array[:-1] for array in drawn(1, "bfloat16", LONG)], "expected shape"),
    ):
        refused(lambda grads=grads: optimizer.apply(on_gpu(grads)), (TypeError, ValueError), message, *params)
    indices, values = np.zeros(2, np.int64), np.zeros((2, 5), np.float32)
    table = drawn(0, "bfloat16", ((9, 5),))
    rows = fastopt.SGD(0.1, stochastic_rounding=True)
    rows.build(on_gpu(table), BF16)
    given = [fastopt.RowGradient(*(gpu_arrays.numba_array(array, monkeypatch) for array in (indices, values)))]
    refused(lambda: rows.apply(given), TypeError, "what is kept in a storage format takes whole gradients", *table)


def test_gradients_of_16_bits_for_other_parameters():
    """Only kernels for formats read them."""
    params = drawn(0, "float32", LONG)
    optimizer = fastopt.SGD(0.1)
    optimizer.build(on_gpu(params))
    grads = on_gpu(drawn(1, "float16", LONG))
    refused(lambda: optimizer.apply(grads), TypeError, "got float16: on a GPU gradients of 16 bits are for", *params)


@pytest.mark.full
def test_gradients_of_another_kind():
    run(Row("Adam", "bfloat16", {"clipnorm": 1.0}, "float16"))
    run(Row("Adam", "bfloat16", {"clipnorm": 1.0}, "float32", give=other_dtype_strided))
