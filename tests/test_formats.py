"""How numbers are kept: each format against ml_dtypes and NumPy, and by what a step may and may not do to them."""

import copy
import itertools
import math
import pickle
from typing import NamedTuple

import fastopt.kernels.formats.eight_bit as eight_bit
import fastopt.kernels.formats.noise as noise
import ml_dtypes
import numpy as np
import pytest
from fastopt.kernels.cpu.conversion import decoded, encode
from fastopt.kernels.formats import BLOCK, FORMATS, OWN
from rows import rows

import fastopt

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
HALVES = {"bfloat16": BF16, "float16": F16}
ALL_CODES = np.arange(2**16, dtype=np.uint16)
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        65504,
        65519.996,
        65520,
        3.4e38,
        -3.4e38,
        1e-45,
        6e-8,
        2.98e-8,
        2e-8,
    ],
    np.float32,
)


def kept(kind, numbers):
    """The arrays of a format that holds numbers."""
    format, size = FORMATS[kind], np.size(numbers)
    parts = [np.zeros(size, part) for part in format.parts]
    parts += [np.zeros(-(-size // BLOCK), np.float32)] * format.scaled
    encode(kind, parts, np.asarray(numbers, np.float32))
    return parts


def read(kind, parts, dtype=np.float32):
    return decoded(kind, parts, parts[0].size, np.dtype(dtype))


def patterns(count, seed=0):
    """Floats of all sizes: random bit patterns, neighbours of what 16 bits hold, and special ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 2**32, count, np.uint32)
    near = (ALL_CODES.astype(np.uint32) << 16)[:, None] + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    halves = ALL_CODES.view(np.float16).astype(np.float32).view(np.uint32)
    middle = halves[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001], np.uint32)
    found = np.concatenate([drawn, near.ravel(), middle.ravel()]).view(np.float32)
    return np.concatenate([found, SPECIAL])


def same(one, other):
    """Whether arrays hold the same numbers, NaN in the same places, and zeros of the same sign."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    nan = np.isnan(one)
    return np.array_equal(nan, np.isnan(other)) and np.array_equal(
        one.view(np.uint32)[~nan], other.view(np.uint32)[~nan]
    )


# -- 16 bits -----------------------------------------------------------------------------------------------------------


@rows("kind", HALVES)
def test_every_code_is_the_number_that_it_is(kind):
    with np.errstate(invalid="ignore"):
        assert same(read(kind, [ALL_CODES]), ALL_CODES.view(HALVES[kind]).astype(np.float32))


@rows("kind", HALVES)
def test_the_nearest_is_kept(kind):
    numbers = patterns(300_000)
    with np.errstate(over="ignore", invalid="ignore"):
        assert same(read(kind, kept(kind, numbers)), numbers.astype(HALVES[kind]).astype(np.float32))


@rows("kind", HALVES)
def test_slots_keep_the_same(kind):
    """All but a NaN whose upper bits are all set, which arithmetic does not give."""
    numbers = patterns(300_000)
    numbers = numbers[numbers.view(np.uint32) & 0x7FFF8000 != 0x7FFF8000]
    quiet = ~np.isnan(numbers) | (numbers.view(np.uint32) & 0x00400000 != 0)
    assert same(read(f"{kind} slot", kept(f"{kind} slot", numbers[quiet])), read(kind, kept(kind, numbers[quiet])))


@rows("kind", HALVES)
def test_a_float64_is_rounded_to_float32_first(kind):
    numbers = np.random.default_rng(1).standard_normal(1000)
    parts = [np.zeros(1000, np.uint16)]
    encode(kind, parts, numbers)
    assert same(read(kind, parts, np.float64), numbers.astype(np.float32).astype(HALVES[kind]).astype(np.float32))


def at_random(kind, number, count):
    """What one number becomes, over and over, in the steps of an optimizer that adds nothing."""
    encoded = FORMATS[f"{kind} at random"].encode
    with np.errstate(all="ignore"):
        codes = [
            encoded(np.float32(number), np.float32(1), np.uint32(noise))[0] for noise in range(0, 2**16, 2**16 // count)
        ]
    return np.array(codes, np.uint16).view(HALVES[kind]).astype(np.float64)


@rows(
    "kind, number",
    [(kind, number) for kind in HALVES for number in (1.0, 1.001, -1.003, 0.1, 3e-5, -2.7e-7, 1234.5, 65500.0)],
)
def test_rounding_at_random_is_exact_on_average(kind, number):
    """Over all noise there is: between two neighbours, and what is a neighbour itself stays."""
    found, exact = at_random(kind, number, 4096), float(np.float32(number))
    near = np.unique(found)
    assert len(near) <= 2
    assert near[0] <= exact <= near[-1]
    gap = near[-1] - near[0]
    assert abs(found.mean() - exact) <= gap / 2000


@rows("kind, number", [(kind, number) for kind in HALVES for number in (np.inf, -np.inf, np.nan, 0.0, -0.0)])
def test_what_has_no_neighbours_stays(kind, number):
    assert same(np.unique(at_random(kind, number, 64))[:1], [number]) or (
        number == 0 and not at_random(kind, number, 64).any()
    )


def test_noise_is_even_and_independent():
    """Counts as those of fair draws, within an element's neighbours, between streams and between blocks."""
    starts = np.random.default_rng(0).integers(0, 2**32, 300, np.uint32)
    with np.errstate(over="ignore"):
        drawn = np.array([_noise(start, stream) for start in starts for stream in (0, 2, 3)])
    drawn = drawn.reshape(300, 3, 1024) / 65536
    assert abs(drawn.mean() - 0.5) < 0.002
    for share in (0.02, 0.25, 0.5, 0.9):
        below = drawn < share
        assert abs(below.mean() / share - 1) < 0.02
        counts = below.sum(axis=2)
        assert 0.8 < counts.var() / (1024 * share * (1 - share)) < 1.25
        for lag in (1, 2, 3, 8, 13):
            assert abs(_correlation(below[:, :, :-lag], below[:, :, lag:])) < 0.01
        for one, other in itertools.combinations(range(3), 2):
            assert abs(_correlation(below[:, one], below[:, other])) < 0.01
        assert abs(_correlation(below[:-1], below[1:])) < 0.01


def _noise(start, stream):
    bits = np.arange(1024, dtype=np.uint32) * np.uint32(0x9E3779B1) + start
    product = (bits ^ (bits >> np.uint32(16))) * np.uint32(noise.FACTORS[stream // 2])
    return product & np.uint32(0xFFFF) if stream % 2 else product >> np.uint32(16)


def test_the_noise_of_this_file_is_that_of_the_kernels():
    for i, stream in itertools.product((0, 1, 17, 1023), range(6)):
        with np.errstate(over="ignore"):
            expected = _noise(np.uint32(123456789), stream)[i]
            assert noise.noise_at(np.uint32(123456789), np.uint32(i), stream) == expected


def _correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


# -- beside parameters -------------------------------------------------------------------------------------------------


@rows("kind", ["bfloat16 split", "bfloat16 master", "float16 master"])
def test_what_is_kept_beside_loses_nothing(kind):
    numbers = patterns(300_000)
    assert same(read(kind, kept(kind, numbers)), numbers)


def test_what_a_model_sees_of_a_split_parameter_is_the_nearest():
    """Of two as near, the one farther from zero: the half beside it could not tell them apart otherwise."""
    numbers = patterns(300_000)
    seen = kept("bfloat16 split", numbers)[0]
    ties = numbers.view(np.uint32) & 0xFFFF == 0x8000
    with np.errstate(over="ignore", invalid="ignore"):
        assert same(seen[~ties].view(BF16), numbers[~ties].astype(BF16))
    upper = (numbers.view(np.uint32)[ties] >> 16) + 1
    finite = np.isfinite(numbers[ties])
    assert np.array_equal(seen[ties][finite], upper[finite])


@rows("kind", HALVES)
def test_compensation_keeps_what_rounding_takes_away(kind):
    numbers = np.random.default_rng(2).standard_normal(10_000).astype(np.float32)
    error = np.abs(read(f"{kind} kahan", kept(f"{kind} kahan", numbers)) - numbers)
    digits = 10 if kind == "float16" else 7
    assert np.all(error <= np.abs(numbers) * 2.0 ** (1 - 2 * digits) + (kind == "float16") * 2.0**-25)


WRITTEN = 2.5, 0.0, -0.0, np.inf, -np.inf, np.nan, 1e-5, -3e4


@rows("kind", ["bfloat16 master", "float16 master", "bfloat16 split", "bfloat16 kahan", "float16 kahan"])
def test_what_a_user_writes_to_a_parameter_holds(kind):
    """But for half a unit in its last place, where half of a number is beside it."""
    numbers = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    dtype = HALVES[kind.split()[0]]
    for value in WRITTEN:
        parts = kept(kind, numbers)
        written = np.full(1000, value, np.float32).astype(dtype)
        parts[0][:] = written.view(np.uint16)
        found, seen = read(kind, parts), written.astype(np.float32)
        within = 0 if "master" in kind else 2.0 ** -(8 if dtype == BF16 else 11)
        if np.all(np.isfinite(seen)):
            assert np.all(np.abs(found - seen) <= np.abs(seen) * within + 2.0**-134), value
        elif np.isnan(value):
            assert np.all(np.isnan(found))
        else:  # half a unit below infinity is the greatest number there is
            assert np.all(found * np.sign(value) >= 3.38e38), value


# -- 8 bits ------------------------------------------------------------------------------------------------------------

EIGHT = "8bit", "8bit squares"


@rows("kind", EIGHT)
def test_codes_rise_with_what_they_stand_for(kind):
    codes = np.arange(-127, 128).astype(np.int8) if kind == "8bit" else np.arange(256).astype(np.uint8)
    codes = np.pad(codes, (0, BLOCK - len(codes)))
    for scale in (1.0, 3.7e-12, 2.0**-126, 3e38):
        found = decoded(kind, [codes, np.full(1, scale, np.float32)], BLOCK, np.dtype(np.float32))
        rising = found[: 255 if kind == "8bit" else 256]
        assert np.all(np.diff(rising) > 0) or (scale < 1e-30 and np.all(np.diff(rising) >= 0))
        assert rising[-1] == np.float32(max(scale, eight_bit.LEAST) if kind == "8bit" else scale)
        assert np.array_equal(found == 0, codes == 0)


@rows("kind", EIGHT)
def test_the_largest_of_a_block_is_exact_and_zero_is_zero(kind):
    rng = np.random.default_rng(4)
    numbers = (rng.standard_normal(10 * BLOCK + 3) * np.exp(3 * rng.standard_normal(10 * BLOCK + 3))).astype(np.float32)
    numbers[rng.random(numbers.size) < 0.3] = 0
    numbers[BLOCK : 2 * BLOCK] = 0
    if kind == "8bit squares":
        numbers = np.abs(numbers)
    found = read(kind, kept(kind, numbers))
    blocks = np.pad(numbers, (0, -numbers.size % BLOCK)).reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1)
    assert np.array_equal(np.abs(np.pad(found, (0, -found.size % BLOCK)).reshape(-1, BLOCK)).max(axis=1), largest)
    assert np.all(found[numbers == 0] == 0)
    share = np.abs(numbers) / np.repeat(largest, BLOCK)[: numbers.size].clip(1e-30)
    clear = share > 1e-3
    root, most = (4, 127) if kind == "8bit" else (8, 255)
    assert np.all(np.sign(found[clear]) == np.sign(numbers[clear]))
    bound = 1.1 * root / most * share[clear] ** (-1 / root)  # half a code, and the corners of the straight lines
    assert np.all(np.abs(found[clear] / numbers[clear] - 1) < bound)


def test_a_square_that_is_not_zero_keeps_a_code_that_is_not():
    numbers = np.zeros(BLOCK, np.float32)
    numbers[0], numbers[1], numbers[2] = 1.0, 1e-38, 1e-45
    found = read("8bit squares", kept("8bit squares", numbers))
    assert np.all(found[:3] > 0)
    assert np.all(found[3:] == 0)


@rows("kind", EIGHT)
def test_a_block_with_a_nan_is_nan_and_no_other(kind):
    numbers = np.ones(3 * BLOCK, np.float32)
    numbers[BLOCK + 5] = np.nan
    found = read(kind, kept(kind, numbers))
    assert np.all(np.isnan(found[BLOCK : 2 * BLOCK]))
    assert np.all(found[:BLOCK] == 1)
    assert np.all(found[2 * BLOCK :] == 1)


@rows("kind", EIGHT)
def test_what_is_infinite_is_kept_as_the_greatest_number(kind):
    """A square that overflows costs its own parameter its steps, not 255 others theirs."""
    numbers = np.zeros(BLOCK, np.float32)
    numbers[5] = np.inf
    found = read(kind, kept(kind, numbers))
    assert found[5] > 3.4e38
    assert np.count_nonzero(found) == 1
    assert np.all(np.isfinite(found))


@rows("kind", EIGHT)
def test_what_was_kept_once_stays_as_it_is(kind):
    numbers = np.abs(np.random.default_rng(5).standard_normal(4 * BLOCK)).astype(np.float32) ** 3
    once = read(kind, kept(kind, numbers))
    assert np.array_equal(read(kind, kept(kind, once)), once)


def test_bytes():
    """What arrays of 1024 numbers take, for each."""
    kinds = ("bfloat16", "bfloat16 split", "bfloat16 master", "8bit")
    taken = {kind: sum(part.nbytes for part in kept(kind, np.ones(1024))) / 1024 for kind in kinds}
    assert taken == {"bfloat16": 2, "bfloat16 split": 4, "bfloat16 master": 6, "8bit": 1 + 4 / 256}


# -- the study of a closed loop ----------------------------------------------------------------------------------------


class Study(NamedTuple):
    """Gradients of 16 384 parameters, of sizes that differ within and between rows of 512."""

    spread: float
    zeros: float

    def gradients(self, steps):
        rng = np.random.default_rng(0)
        size = np.exp(self.spread * rng.standard_normal(32)).repeat(512) * np.exp(
            self.spread * rng.standard_normal(16384)
        )
        mean = 0.3 * rng.standard_normal(16384)
        for _ in range(steps):
            drawn = (mean + rng.standard_normal(16384)) * size * 1e-3
            yield (drawn * (rng.random(16384) >= self.zeros)).astype(np.float32)


def updates(study, steps=400, **options):
    """What Adam of rate 1 adds to the parameters at each step, if these are zero before."""
    params = np.zeros(16384, np.float32)
    optimizer = fastopt.Adam(1.0, epsilon=1e-8, **options)
    optimizer.build([params])
    for grad in study.gradients(steps):
        params[:] = 0
        optimizer.apply([grad])
        yield params.copy()


@rows(
    "study, bound",
    [
        (Study(0.5, 0.0), 1.1),
        (Study(1.0, 0.0), 1.1),
        (Study(1.0, 0.9), 1.1),
        (Study(1.5, 0.9), 1.1),
        (Study(1.5, 0.0), 1.3),
    ],
)
def test_steps_with_state_in_8_bits_are_those_of_the_exact_optimizer(study, bound):
    """The last one is beyond what blocks of 256 can hold: sizes within a block differ by four powers of ten."""
    most, exact_most, error, size = 0.0, 0.0, 0.0, 0.0
    for t, (found, exact) in enumerate(zip(updates(study, slot_dtype="8bit"), updates(study), strict=True)):
        most, exact_most = max(most, np.abs(found).max()), max(exact_most, np.abs(exact).max())
        if t >= 100:
            error += np.square(found - exact, dtype=np.float64).mean()
            size += np.square(exact, dtype=np.float64).mean()
    assert most <= bound * exact_most
    assert error / size < 0.01


def test_a_parameter_whose_gradient_is_always_zero_never_moves():
    params = np.linspace(-1, 1, 8192, dtype=np.float32)
    still = params.copy()
    optimizer = fastopt.Adam(0.1, slot_dtype="8bit")
    optimizer.build([params])
    rng = np.random.default_rng(0)
    for _ in range(30):
        grad = rng.standard_normal(8192).astype(np.float32)
        grad[::3] = 0
        optimizer.apply([grad])
    assert np.array_equal(params[::3], still[::3])
    assert not np.any(params[1::3] == still[1::3])


def test_float16_with_zero_gradients_gives_no_nan():
    params = np.ones(5000, np.float16)
    optimizer = fastopt.Adam(0.1, epsilon=1e-8, slot_dtype="float16")
    optimizer.build([params])
    for _ in range(3):
        optimizer.apply([np.zeros(5000, np.float16)])
    assert np.array_equal(params, np.ones(5000))


def test_second_moments_in_16_bits_decay():
    params = np.zeros(8192, np.float32)
    optimizer = fastopt.Adam(0.0, slot_dtype="bfloat16")
    optimizer.build([params])
    optimizer.apply([np.ones(8192, np.float32)])
    before = optimizer.slots["velocity"][0].astype(np.float64).mean()
    for _ in range(700):
        optimizer.apply([np.zeros(8192, np.float32)])
    after = optimizer.slots["velocity"][0].astype(np.float64).mean()
    assert math.isclose(after / before, 0.999**700, rel_tol=0.02)


@rows("options", [{"stochastic_rounding": True}, {"compensation": "kahan"}, {"master_weights": "split"}])
def test_small_steps_are_not_lost(options):
    """AdamW at a rate of 1e-4 from 1.0: rounded to the nearest, a bfloat16 would stay there."""
    ours, exact, nearest = np.ones(8192, BF16), np.ones(8192, np.float32), np.ones(8192, BF16)
    rng = np.random.default_rng(0)
    pairs = [(ours, fastopt.AdamW(1e-4, **options)), (exact, fastopt.AdamW(1e-4)), (nearest, fastopt.AdamW(1e-4))]
    for params, optimizer in pairs:
        optimizer.build([params])
    for _ in range(200):
        grad = (1 + 0.1 * rng.standard_normal(8192)).astype(np.float32)
        for _, optimizer in pairs:
            optimizer.apply([grad])
    assert np.all(nearest == 1)
    assert abs(ours.astype(np.float64).mean() - exact.mean()) < 0.03 * (1 - exact.mean()) + 2**-9


# -- every optimizer ---------------------------------------------------------------------------------------------------


ELEMENTWISE = {
    **{name: {} for name in ("Adam", "AdamW", "Adamax", "Nadam", "RAdam", "AdaBelief", "Adan", "Adagrad", "Adadelta")},
    **{name: {} for name in ("Ftrl", "Lion", "RMSprop", "SGD")},
    "SGD, momentum": {"momentum": 0.9},
    "SGD, Nesterov": {"momentum": 0.9, "nesterov": True},
    "RMSprop, centered": {"momentum": 0.9, "centered": True},
    "Adam, AMSGrad": {"amsgrad": True},
}
"""Optimizer, by its class up to a comma, and its options: a rule for each."""
SHAPES = (7, 5), (), (0,), (4100,), (3, 4, 5)


def with_each(*kinds):
    """Decorator: every optimizer with one of the kinds, and Adam with each; with the others in `make test-all`."""
    every = [(name, kind) for name in ELEMENTWISE for kind in kinds]
    some = [
        (name, kind)
        for k, name in enumerate(ELEMENTWISE)
        for kind in kinds
        if name == "Adam" or kind == kinds[k % len(kinds)]
    ]

    def fold(test):
        def in_turn(pairs):
            rows("name, kind", pairs)(test)()

        others = pytest.param([pair for pair in every if pair not in some], id="others", marks=pytest.mark.full)
        return pytest.mark.parametrize("pairs", [pytest.param(some, id="some"), others])(in_turn)

    return fold


def made(name, **options):
    return getattr(fastopt, name.partition(",")[0])(0.01, **ELEMENTWISE[name], **options)


def drawn(dtype, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), np.float32).astype(dtype) for shape in shapes]


def bits(arrays):
    return [array.tobytes() for array in arrays]


@with_each(*HALVES)
def test_a_step_is_that_of_float32_and_then_the_nearest(name, kind):
    """Each step from where the last one of ours ended, with gradients of 16 bits: NumPy and ml_dtypes round."""
    ours, exact = drawn(HALVES[kind]), drawn(np.float32)
    optimizers = [made(name), made(name)]
    optimizers[0].build(ours)
    optimizers[1].build(exact)
    for step in range(8):
        for one, other in zip(exact, ours, strict=True):
            one[...] = other.astype(np.float32)
        grads = drawn(HALVES[kind], seed=step + 1)
        optimizers[0].apply(grads)
        optimizers[1].apply([grad.astype(np.float32) for grad in grads])
        assert bits(ours) == bits([one.astype(HALVES[kind]) for one in exact])
    for slot, arrays in optimizers[0].slots.items():
        assert bits(arrays) == bits(optimizers[1].slots[slot])


@with_each("split", "float32")
def test_masters_are_float32_bit_for_bit(name, kind):
    ours, exact = drawn(BF16), [array.astype(np.float32) for array in drawn(BF16)]
    one, other = made(name, master_weights=kind), made(name)
    one.build(ours)
    other.build(exact)
    for step in range(20):
        grads = drawn(np.float32, seed=step + 1)
        one.apply(grads)
        other.apply(grads)
    held = [
        read(f"bfloat16 {'split' if kind == 'split' else 'master'}", parts) for parts in one._plans[0].kept.parts[""]
    ]
    for mine, array in zip(held, exact, strict=True):
        assert mine.tobytes() == array.tobytes()
    for mine, array in zip(ours, exact, strict=True):
        assert np.all(np.abs(mine.astype(np.float32) - array) <= np.abs(array) * 2.0**-8)


@with_each("bfloat16", "float16", "8bit")
def test_slots_are_those_of_float32_but_for_one_code(name, kind):
    """Each step from the slots that ours has: what a step writes there is off by what a format cannot hold."""
    ours, exact = drawn(np.float32), drawn(np.float32)
    one, other = made(name, slot_dtype=kind), made(name)
    one.build(ours)
    other.build(exact)
    for step in range(5):
        for target, source in zip(exact, ours, strict=True):
            target[...] = source
        for plan in one._plans:
            for slot in plan.rule_slots:
                for k, index in enumerate(plan.indices):
                    array = other.slots[slot][index]
                    array[...] = _numbers(plan, slot, k).reshape(array.shape)
        grads = drawn(np.float32, seed=step + 1)
        one.apply(grads)
        other.apply(grads)
        assert bits(ours) == bits(exact), "the step itself works with numbers as they are"
        for plan in one._plans:
            for slot in plan.rule_slots:
                for k, index in enumerate(plan.indices):
                    _assert_near(_numbers(plan, slot, k), other.slots[slot][index].ravel(), kind)


def _numbers(plan, slot, k):
    from fastopt.formats import numbers_of

    if plan.kept is None:
        return plan.slots[slot][k].ravel()
    return numbers_of(plan.kept, slot, k, np.dtype(np.float32))


def _assert_near(found, exact, kind):
    largest = np.abs(exact).max(initial=0)
    bound = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "8bit": 0.2}[kind]
    least = {"bfloat16": 0.0, "float16": 2.0**-24, "8bit": 1e-3 * largest}[kind]
    assert np.all(np.abs(found - exact) <= np.abs(exact) * bound + least)


# -- together with the rest --------------------------------------------------------------------------------------------

KINDS = {
    "nearest": {},
    "at random": {"stochastic_rounding": True, "slot_dtype": "bfloat16"},
    "split, 8 bits": {"master_weights": "split", "slot_dtype": "8bit"},
    "master, float16": {"master_weights": "float32", "slot_dtype": {"velocity": "float16"}},
    "Kahan": {"compensation": "kahan", "slot_dtype": {"average": "bfloat16"}, "use_ema": True},
}
LONG = (300, 301), (70_001,), (5,)


def trained(options, steps=4, threads=None, params=None, start=None):
    params = drawn(BF16, shapes=LONG) if params is None else params
    optimizer = fastopt.Adam(0.01, seed=7, **options)
    optimizer.build(params)
    if start is not None:
        optimizer.load_state_dict(start)
    before, count = fastopt.get_num_threads(), optimizer.iterations
    fastopt.set_num_threads(threads or before)
    try:
        for step in range(count, count + steps):
            optimizer.apply(drawn(np.float32, seed=step + 1, shapes=LONG))
    finally:
        fastopt.set_num_threads(before)
    return optimizer, params


def all_bits(optimizer, params):
    return (
        bits(params),
        {name: array for name, array in optimizer.state_dict().items() if isinstance(array, str)},
        [array.tobytes() for array in optimizer.state_dict().values() if isinstance(array, np.ndarray)],
    )


@rows("name", KINDS)
def test_threads_change_nothing(name):
    assert all_bits(*trained(KINDS[name], threads=1)) == all_bits(*trained(KINDS[name], threads=8))


@rows("name", KINDS)
def test_packing_changes_nothing(name):
    """Arrays that lie side by side in one buffer, aligned otherwise."""
    buffer = np.zeros(300 * 301 + 70_001 + 5 + 3, BF16)
    packed, at = [], 1
    for array in drawn(BF16, shapes=LONG):
        packed.append(buffer[at : at + array.size].reshape(array.shape))
        packed[-1][...] = array
        at += array.size
    assert all_bits(*trained(KINDS[name], params=packed)) == all_bits(*trained(KINDS[name]))


@rows("name", KINDS)
def test_state_goes_on_where_it_was(name):
    whole = all_bits(*trained(KINDS[name], steps=6))
    half, params = trained(KINDS[name], steps=3)
    saved = half.state_dict()
    copies = [pickle.loads(pickle.dumps((half, params))), copy.deepcopy((half, params))]
    again = trained(KINDS[name], steps=3, params=[array.copy() for array in params], start=saved)
    assert all_bits(*again) == whole
    for optimizer, arrays in copies:
        for step in range(3, 6):
            optimizer.apply(drawn(np.float32, seed=step + 1, shapes=LONG))
        assert all_bits(optimizer, arrays) == whole


def test_another_seed_gives_other_bits():
    options = KINDS["at random"]
    params = drawn(BF16, shapes=LONG)
    optimizer = fastopt.Adam(0.01, seed=8, **options)
    optimizer.build(params)
    for step in range(4):
        optimizer.apply(drawn(np.float32, seed=step + 1, shapes=LONG))
    assert bits(params) != bits(trained(options)[1])


@rows("one, other", [(one, other) for one in KINDS for other in KINDS if "Kahan" not in (one, other)])
def test_state_in_other_formats_is_converted_on_request(one, other):
    old, params = trained(KINDS[one])
    saved = old.state_dict()
    new = fastopt.Adam(0.01, **KINDS[other])
    new.build([array.copy() for array in params])
    if one == other:
        return new.load_state_dict(saved)
    before = bits(new.state_dict()[name] for name in saved if "/" in name and name in new.state_dict())
    with pytest.raises(ValueError, match="convert=True"):
        new.load_state_dict(saved)
    assert before == bits(new.state_dict()[name] for name in saved if "/" in name and name in new.state_dict())
    new.load_state_dict(saved, convert=True)
    assert new.iterations == 4
    for slot in ("momentum", "velocity"):
        for index in range(len(LONG)):
            found, exact = (_of_parameter(optimizer, slot, index) for optimizer in (new, old))
            _assert_near(found, exact, "8bit")


def _of_parameter(optimizer, slot, index):
    for plan in optimizer._plans:
        for k, own in enumerate(plan.indices):
            if own == index:
                return _numbers(plan, slot, k)
    raise AssertionError


def test_clipping_scaling_and_accumulation_are_those_of_float32():
    options = {"global_clipnorm": 0.5, "loss_scale_factor": 4.0, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    ours, exact = drawn(BF16, shapes=LONG), [array.astype(np.float32) for array in drawn(BF16, shapes=LONG)]
    one, other = fastopt.Adam(0.01, master_weights="split", **options), fastopt.Adam(0.01, **options)
    one.build(ours)
    other.build(exact)
    for step in range(6):
        grads = drawn(BF16, seed=step + 1, shapes=LONG)
        one.apply(grads)
        other.apply([grad.astype(np.float32) for grad in grads])
        assert one.last_grad_norm == other.last_grad_norm
    for parts, array in zip(one._plans[0].kept.parts[""], exact, strict=True):
        assert read("bfloat16 split", parts).tobytes() == array.tobytes()


@rows("name", KINDS)
def test_averages_follow_and_take_their_place_and_leave(name):
    options = {**KINDS[name], "use_ema": True, "ema_momentum": 0.5}
    optimizer, params = trained(options)
    before = all_bits(optimizer, params)
    with optimizer.evaluation_weights():
        for index, array in enumerate(params):
            average = _of_parameter(optimizer, "average", index)
            assert np.all(np.abs(array.astype(np.float32).ravel() - average) <= np.abs(average) * 2.0**-8 + 1e-38)
    assert all_bits(optimizer, params) == before
    optimizer.finalize_variable_values()
    for index in range(len(params)):
        average, held = (_of_parameter(optimizer, each, index) for each in ("average", ""))
        assert np.all(np.abs(held - average) <= np.abs(average) * 2.0**-8 + 1e-38)


def test_an_average_that_overwrites():
    optimizer, params = trained({"use_ema": True, "ema_overwrite_frequency": 2, "master_weights": "split"})
    for index in range(len(params)):
        assert _of_parameter(optimizer, "average", index).tobytes() == _of_parameter(optimizer, "", index).tobytes()


def test_bfloat16_of_nobody_in_particular():
    """Arrays of uint16 that an override declares; gradients too."""
    ours, theirs = drawn(BF16), [array.view(np.uint16) for array in drawn(BF16)]
    one, other = fastopt.SGD(0.1), fastopt.SGD(0.1)
    one.build(ours)
    other.build(theirs, overrides={"": {"dtype": "bfloat16"}})
    for step in range(3):
        grads = drawn(BF16, seed=step)
        one.apply(grads)
        other.apply([grad.view(np.uint16) for grad in grads])
    assert bits(ours) == bits(theirs)


@rows("kind", HALVES)
def test_gradients_of_16_bits_for_other_parameters(kind):
    """Of any strides; zeroed on request."""
    ours, exact = drawn(np.float64), drawn(np.float64)
    one, other = fastopt.Adam(0.1), fastopt.Adam(0.1)
    one.build(ours)
    other.build(exact)
    grads = [
        grad[..., ::2] if grad.ndim else grad
        for grad in drawn(HALVES[kind], shapes=((7, 10), (), (0,), (8200,), (3, 4, 10)))
    ]
    other.apply([grad.astype(np.float64) for grad in grads])
    one.apply(grads, zero_grads=True)
    assert bits(ours) == bits(exact)
    assert not any(grad.any() for grad in grads)


def test_overrides_choose_for_some_parameters():
    params = [np.zeros(5000, np.float32) for _ in range(3)]
    optimizer = fastopt.Adam(slot_dtype="8bit")
    optimizer.build(params, overrides={"0": {"slot_dtype": "float32"}, "1": {"slot_dtype": {"velocity": "bfloat16"}}})
    kinds = [[str(optimizer.slots[slot][k].dtype) for slot in ("momentum", "velocity")] for k in range(3)]
    assert kinds == [["float32", "float32"], ["float32", "bfloat16"], ["int8", "uint8"]]


def test_short_parameters_keep_float32():
    optimizer = fastopt.Adam(slot_dtype="8bit")
    optimizer.build([np.zeros(4095, np.float32), np.zeros(4096, np.float32)])
    assert [array.dtype for array in optimizer.slots["momentum"]] == [np.float32, np.int8]
    assert [None if array is None else array.shape for array in optimizer.slots["momentum/scale"]] == [None, (16,)]


@rows(
    "options, elements, expected",
    [
        ({}, 4, {"parameters": 4, "gradients": 4, "momentum": 4, "velocity": 4}),
        ({"slot_dtype": "8bit"}, 4, {"parameters": 4, "gradients": 4, "momentum": 1, "momentum/scale": 1 / 64,
                                      "velocity": 1, "velocity/scale": 1 / 64}),
        ({"slot_dtype": "bfloat16", "master_weights": "split"}, 2, {"parameters": 2, "gradients": 2, "momentum": 2,
                                                                     "velocity": 2, "remainder": 2}),
    ],
)  # fmt: skip
def test_memory_is_counted_before_and_after(options, elements, expected):
    params = [
        np.zeros((64, 64), np.float32 if elements == 4 else BF16),
        np.zeros(8192, np.float32 if elements == 4 else BF16),
    ]
    optimizer = fastopt.Adam(**options)
    before = optimizer.memory(params)
    optimizer.build(params)
    after = optimizer.memory()
    assert before == after
    assert after.per_element == expected
    assert after.state == sum(array.nbytes for arrays in optimizer.slots.values() for array in arrays)
    assert after.total == after.state + 2 * sum(array.nbytes for array in params)


def test_shapes_are_counted_without_arrays():
    """However large, of any dtype, and as they would be built."""
    optimizer = fastopt.AdamW(slot_dtype="8bit", master_weights="split", use_ema=True)
    shapes, halves = [(64, 80), (5,), (), (0, 3)], {"": {"dtype": "bfloat16"}}
    arrays = [np.zeros(shape, np.uint16) for shape in shapes]
    assert optimizer.memory(shapes, halves) == optimizer.memory(arrays, halves)
    frozen, arrays = {"0": {"trainable": False}}, [np.zeros(shape, np.float32) for shape in shapes]
    assert fastopt.Adam().memory(shapes, frozen) == fastopt.Adam().memory(arrays, frozen)
    assert fastopt.Muon().memory(shapes) == fastopt.Muon().memory(arrays)
    huge = optimizer.memory([(10**9, np.int64(10**8))], halves)
    assert huge.elements == 10**17
    assert huge.bytes == {"parameters": 2 * 10**17, "gradients": 2 * 10**17, "remainder": 2 * 10**17,
                          "momentum": 10**17, "momentum/scale": 10**17 // 64, "velocity": 10**17,
                          "velocity/scale": 10**17 // 64, "average": 4 * 10**17}  # fmt: skip


@rows("shapes, overrides, message", [
    ([(3,), (-1, 4)], None, "parameter 1: there is no array of the shape"),
    ([(2**31, 2**31)], None, "fewer than 2\\*\\*63 bytes"),
    ([(3,)], {"5": {"dtype": "bfloat16"}}, "matches no parameter"),
    ([(3,)], {"": {"dtype": "float32"}}, "dtype must be"),
])  # fmt: skip
def test_shapes_that_no_array_has_are_refused(shapes, overrides, message):
    with pytest.raises(ValueError, match=message):
        fastopt.Adam().memory(shapes, overrides)


# -- refused -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "no dtype": ({"slot_dtype": "int4"}, ValueError, "slot_dtype must be one of"),
    "no dtype of a slot": ({"slot_dtype": {"momentum": "int8"}}, ValueError, "slot_dtype of 'momentum' must be one of"),
    "average that is not kept": ({"slot_dtype": {"average": "bfloat16"}}, ValueError, "use_ema=True keeps one"),
    "dtype itself": ({"slot_dtype": {"velocity": np.dtype("float16")}}, ValueError, "must be one of"),
    "average in 8 bits": ({"slot_dtype": {"average": "8bit"}}, ValueError, "an average cannot be kept in"),
    "no master": ({"master_weights": "bfloat16"}, ValueError, "master_weights must be 'float32' or 'split' or None"),
    "no compensation": ({"compensation": True}, ValueError, "compensation must be 'kahan' or None"),
    "no flag": ({"stochastic_rounding": 1}, TypeError, "stochastic_rounding must be a bool"),
    "no seed": ({"seed": -1}, ValueError, "seed must be an int"),
    "two ways": ({"master_weights": "split", "stochastic_rounding": True}, ValueError, "choose one way"),
}


@rows("name", OPTIONS)
def test_options_that_make_no_sense(name):
    options, kind, message = OPTIONS[name]
    with pytest.raises(kind, match=message):
        fastopt.Adam(**options)


BUILDS = {
    "no such slot": ("Adam", {"slot_dtype": {"speed": "8bit"}}, np.float32, ValueError, "there is no slot 'speed'"),
    "split float16": ("Adam", {"master_weights": "split"}, np.float16, ValueError, "takes bfloat16 apart"),
    "two phases, short": ("Lamb", {"slot_dtype": "8bit"}, np.float32, TypeError, "the rule lamb keeps its parameters"),
    "masters": ("Adafactor", {"master_weights": "split"}, BF16, TypeError, "adafactor steps bfloat16 in .*leave mas"),
    "two phases": ("Lamb", {"stochastic_rounding": True}, F16, TypeError, "lamb steps float16 in .*leave stochastic_r"),
    "slots, too": ("Adafactor", {"slot_dtype": "8bit"}, BF16, TypeError, "the rule adafactor keeps"),
    "schedule-free": ("ScheduleFreeAdamW", {"slot_dtype": "bfloat16"}, np.float32, TypeError, "keeps its parameters"),
}


@rows("name", BUILDS)
def test_what_cannot_be_built_is_refused_with_nothing_done(name):
    kind, options, dtype, error, message = BUILDS[name]
    params = [np.ones((7, 7), dtype)]
    optimizer = getattr(fastopt, kind)(**options)
    with pytest.raises(error, match=message):
        optimizer.build(params)
    assert not optimizer.built
    assert np.array_equal(params[0], np.ones((7, 7), dtype))


GRADIENTS = {
    "uint16": (lambda: np.ones((7, 5), np.uint16), TypeError, "expected float32 or float64"),
    "int16": (lambda: np.ones((7, 5), np.int16), TypeError, "expected float32 or float64"),
    "shape": (lambda: np.ones((5, 7), BF16), ValueError, "expected shape"),
    "rows": (
        lambda: fastopt.RowGradient(np.array([1]), np.ones((1, 5), np.float32)),
        TypeError,
        "takes whole gradients",
    ),
}


@rows("name", GRADIENTS)
def test_gradients_that_do_not_fit_change_nothing(name):
    make, error, message = GRADIENTS[name]
    optimizer, params = fastopt.Adam(0.1, stochastic_rounding=True), drawn(BF16, shapes=((7, 5),))
    optimizer.build(params)
    optimizer.apply(drawn(BF16, seed=1, shapes=((7, 5),)))
    before = all_bits(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.apply([make()])
    assert all_bits(optimizer, params) == before


def test_a_state_whose_parts_do_not_fit_changes_nothing():
    optimizer, params = trained(KINDS["split, 8 bits"])
    before, saved = all_bits(optimizer, params), optimizer.state_dict()
    for name, value in (
        ("0/momentum/scale", np.ones(3, np.float32)),
        ("0/velocity", np.ones((2, 2), np.uint8)),
        ("formats", "no"),
    ):
        with pytest.raises(ValueError, match=name):
            optimizer.load_state_dict({**saved, name: value})
        assert all_bits(optimizer, params) == before


# -- a format of one's own ---------------------------------------------------------------------------------------------


def decode_linear(stored, scale):
    return stored[0] * scale / np.float32(127)


def encode_linear(number, scale, noise):
    return (np.int8(round(number / scale * 127)) if scale > 0 else np.int8(0),)


def decode_pair(stored, scale):
    return np.float32(stored[0]) + np.float32(stored[1]) * np.float32(2.0**-16)


def encode_pair(number, scale, noise):
    whole = np.int16(np.floor(number))
    return whole, np.uint16((number - whole) * np.float32(65535))


def encode_noisy(number, scale, noise):
    return (np.int16(np.floor(number * np.float32(64) + np.float32(noise) * np.float32(2.0**-16))),)


def decode_fixed(stored, scale):
    return np.float32(stored[0]) * np.float32(1 / 64)


@pytest.fixture
def own_formats():
    """Three of them; afterwards there are none."""
    fastopt.register_format("linear", decode_linear, encode_linear, ["i1"], scaled=True)
    fastopt.register_format("pair", decode_pair, encode_pair, ["i2", "u2"])
    fastopt.register_format("fixed", decode_fixed, encode_noisy, [np.int16], noisy=True)
    yield
    for name in ("linear", "pair", "fixed"):
        del FORMATS[name]
        OWN.remove(name)


def test_formats_of_ones_own(own_formats):
    """Each keeps what one step has made of the gradient; another format takes it over; what is odd is random."""
    grad = np.linspace(-3, 3, 8192, dtype=np.float32)
    kept_as = {}
    for kind in ("linear", "pair", "fixed"):
        optimizer, params = fastopt.SGD(1.0, momentum=0.5, slot_dtype=kind), np.zeros(8192, np.float32)
        optimizer.build([params])
        optimizer.apply([grad])
        kept_as[kind] = _of_parameter(optimizer, "momentum", 0)
        assert np.abs(kept_as[kind] + grad).max() < {"linear": 3 / 127, "pair": 2e-4, "fixed": 1 / 64}[kind]
        other = fastopt.SGD(1.0, momentum=0.5)
        other.build([np.zeros(8192, np.float32)])
        other.load_state_dict(optimizer.state_dict(), convert=True)
        assert np.array_equal(other.slots["momentum"][0], kept_as[kind])
    assert np.any(kept_as["fixed"] < -grad)
    assert np.any(kept_as["fixed"] > -grad)


NOT_FORMATS = {
    "name": ({"name": "no name"}, ValueError, "must be an identifier"),
    "taken": ({"name": "bfloat16"}, ValueError, "there is a format .bfloat16. already"),
    "function": ({"decode": abs}, TypeError, "decode must be a plain function"),
    "parts": ({"parts": ["i1", "i1", "i1"]}, ValueError, "parts must be one dtype"),
    "dtype": ({"parts": ["f8"]}, ValueError, "parts must be one dtype"),
    "scaled pair": ({"parts": ["i1", "i1"]}, ValueError, "parts must be one dtype"),
    "flag": ({"scaled": 1}, TypeError, "scaled must be a bool"),
    "fails": ({"encode": lambda number, scale: number}, TypeError, "encoding and decoding 0.0 fails"),
    "number": ({"encode": lambda number, scale, noise: number}, TypeError, "encoding and decoding 0.0 fails"),
    "zero": ({"decode": lambda stored, scale: stored[0] + 1}, ValueError, "must be decoded to zero"),
}


@rows("name", NOT_FORMATS)
def test_what_is_no_format(name):
    changed, error, message = NOT_FORMATS[name]
    good = {"name": "good", "decode": decode_linear, "encode": encode_linear, "parts": ["i1"], "scaled": True}
    with pytest.raises(error, match=message):
        fastopt.register_format(**(good | changed))
    assert "good" not in FORMATS


# -- together with what else there is ----------------------------------------------------------------------------------


def test_a_parameter_called_version():
    optimizer = fastopt.Adam()
    optimizer.build({"version": np.ones(4, BF16)})
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_bfloat16_state_is_taken_as_numbers():
    optimizer = fastopt.Adam()
    optimizer.build([np.ones(4, np.float32)])
    optimizer.apply([np.ones(4, np.float32)])
    saved = optimizer.state_dict()
    given = {name: value.astype(BF16) if isinstance(value, np.ndarray) else value for name, value in saved.items()}
    optimizer.load_state_dict(given)
    assert np.array_equal(optimizer.slots["momentum"][0], saved["0/momentum"].astype(BF16).astype(np.float32))


@rows("name, value", [("0/momentum", np.ones(5000, np.float32)), ("0/velocity", np.full(5000, 300))])
def test_numbers_are_no_codes(name, value):
    optimizer = fastopt.Adam(slot_dtype={"momentum": "float16", "velocity": "8bit"})
    optimizer.build([np.ones(5000, np.float32)])
    before = all_bits(optimizer, [])
    with pytest.raises(TypeError, match=f"state {name}: is kept as"):
        optimizer.load_state_dict({**optimizer.state_dict(), name: value})
    assert all_bits(optimizer, []) == before


def test_options_set_later_change_nothing_that_is_built():
    """Not even where the optimizer is planned anew."""
    chosen = {"momentum": "bfloat16"}
    optimizer, params = fastopt.AdamW(0.1, slot_dtype=chosen), drawn(np.float32)
    optimizer.build(params)
    optimizer.apply(drawn(np.float32, seed=1))
    before, memory = all_bits(optimizer, params), optimizer.memory()
    chosen["velocity"] = "8bit"
    optimizer.slot_dtype, optimizer.seed, optimizer.master_weights = "8bit", 5, "split"
    optimizer.exclude_from_weight_decay(var_names=["0"])
    assert all_bits(optimizer, params) == before
    assert optimizer.memory() == memory


def test_averages_take_no_place_for_good_while_they_are_evaluated():
    optimizer, params = trained(KINDS["split, 8 bits"] | {"use_ema": True})
    before = all_bits(optimizer, params)
    with optimizer.evaluation_weights(), pytest.raises(RuntimeError, match="leave the context first"):
        optimizer.finalize_variable_values()
    assert all_bits(optimizer, params) == before


def test_a_loss_scale_around_it():
    inner = fastopt.Adam(0.01, slot_dtype="bfloat16")
    optimizer, params = fastopt.LossScaleOptimizer(inner), drawn(np.float16)
    optimizer.build(params)
    optimizer.apply([np.full_like(array, np.inf) for array in params])
    assert bits(params) == bits(drawn(np.float16))
    optimizer.apply([(array * 100).astype(np.float16) for array in drawn(np.float32, seed=1)])
    assert bits(params) != bits(drawn(np.float16))
    assert optimizer.memory() == inner.memory()
    other = fastopt.LossScaleOptimizer(fastopt.Adam(0.01))
    other.build(drawn(np.float16))
    other.load_state_dict(optimizer.state_dict(), convert=True)
    assert other.inner_optimizer.iterations == 1


@rows("what", ["unexpected", "missing", "format", "tag"])
def test_a_state_to_be_converted_is_checked(what):
    optimizer, params = trained(KINDS["master, float16"])
    saved = optimizer.state_dict()
    if what == "unexpected":
        saved["0/nonsense"] = np.ones(3)
    elif what == "missing":
        del saved["0/master"]
    else:
        saved["formats"] = {
            "format": '{"version": 1, "parameters": {"0": {"": "nope"}}}',
            "tag": '{"version": 1, "0": "x"}',
        }[what]
    other = fastopt.Adam(0.01)
    other.build([array.copy() for array in params])
    before = all_bits(other, [])
    with pytest.raises(ValueError, match=r"does not fit|not registered|expected what state_dict\(\) says"):
        other.load_state_dict(saved, convert=True)
    assert all_bits(other, []) == before
    if what in ("unexpected", "missing"):
        other.load_state_dict(saved, convert=True, strict=False)


def test_numbers_that_do_not_fit_float16():
    optimizer = fastopt.SGD(0.1, momentum=0.9)
    optimizer.build([np.zeros(10, np.float32)])
    optimizer.apply([np.full(10, 1e6, np.float32)])
    other = fastopt.SGD(0.1, momentum=0.9, slot_dtype="float16")
    other.build([np.zeros(10, np.float32)])
    with pytest.raises(ValueError, match="do not fit float16"):
        other.load_state_dict(optimizer.state_dict(), convert=True)


class PushScalars(NamedTuple):
    learning_rate: float


def push(param, grad, slots, s):
    (mean,) = slots
    mean = mean + (grad * grad - mean) * 0.125
    return param - s.learning_rate * grad / (mean**0.5 + 1e-8), (mean,)


@rows("name", ["", "master", "remainder", "compensation", "average"])
def test_slots_of_a_rule_are_not_called_as_what_is_beside(name):
    with pytest.raises(ValueError, match="a slot cannot be called"):
        fastopt.register_rule("Odd", push, PushScalars, slots={name: 0.0})


def test_a_rule_of_ones_own_says_which_slots_are_squares():
    kind = fastopt.register_rule("FormatPush", push, PushScalars, slots={"mean": 0.0}, squares=("mean",))
    optimizer = kind(0.1, slot_dtype="8bit")
    optimizer.build([np.zeros(4096, np.float32)])
    assert optimizer.slots["mean"][0].dtype == np.uint8
    with pytest.raises(ValueError, match="squares must be names of slots"):
        fastopt.register_rule("FormatPushTwo", push, PushScalars, slots={"mean": 0.0}, squares=("speed",))


def test_a_parameter_that_is_its_own_gradient():
    params = drawn(BF16)
    optimizer = fastopt.SGD(0.5)
    optimizer.build(params)
    optimizer.apply(params)
    assert bits(params) == bits([(array.astype(np.float32) / 2).astype(BF16) for array in drawn(BF16)])


def test_memory_is_told_of_what_is_built_without_overrides():
    optimizer = fastopt.Adam()
    optimizer.build([np.zeros(4, np.float32)])
    with pytest.raises(ValueError, match="overrides belong to params"):
        optimizer.memory(overrides={"0": {"trainable": False}})


# -- copies of float32 parameters --------------------------------------------------------------------------------------


def two_params():
    rng = np.random.default_rng(0)
    return {"w": np.asfortranarray(rng.standard_normal((33, 70), np.float32)), "b": rng.standard_normal(5, np.float32)}


@rows("dtype", [BF16, F16])
@rows("options", [{}, {"slot_dtype": "bfloat16", "weight_decay": 0.1}, {"global_clipnorm": 0.5, "use_ema": True}])
def test_copies_are_the_parameters_rounded_and_the_step_the_same(dtype, options):
    params, alone = two_params(), two_params()
    copies = {name: np.zeros(array.shape, dtype, order="F") for name, array in params.items()}
    optimizer, other = fastopt.Adam(0.01, **options), fastopt.Adam(0.01, **options)
    optimizer.build(params, copies=copies)
    other.build(alone)
    rng = np.random.default_rng(1)
    for step in range(4):
        for name, halved in copies.items():
            assert np.array_equal(halved, params[name].astype(dtype)), step
        grads = {name: rng.standard_normal(array.shape, np.float32) for name, array in params.items()}
        optimizer.apply(grads)
        other.apply(grads)
    for name in params:
        assert np.array_equal(params[name], alone[name])
    assert optimizer.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(optimizer.state_dict())


def test_some_parameters_may_have_copies_and_frozen_ones_too():
    params = two_params()
    copy = np.zeros(5, BF16)
    optimizer = fastopt.SGD(0.1)
    optimizer.build(params, {"b": {"trainable": False}}, copies={"b": copy})
    assert np.array_equal(copy, params["b"].astype(BF16))
    optimizer.apply({name: np.ones_like(array) for name, array in params.items()})
    assert np.array_equal(copy, params["b"].astype(BF16))


def test_copies_come_along_when_an_optimizer_is_copied():
    params, copies = [np.ones(9, np.float32)], [np.zeros(9, BF16)]
    optimizer = fastopt.SGD(0.25)
    optimizer.build(params, copies=copies)
    again = pickle.loads(pickle.dumps(optimizer))
    optimizer.apply([np.ones(9, np.float32)])
    again.apply([np.ones(9, np.float32)])
    assert np.all(copies[0].astype(np.float32) == 0.75)
    assert np.all(again._copies[0].astype(np.float32) == 0.75)


@rows(
    "copies, error, message",
    [
        ({"c": np.zeros(5, BF16)}, ValueError, "copies: 'c' belong to no parameter"),
        ({"b": np.zeros(4, BF16)}, ValueError, r"copy of parameter b: expected shape \(5,\)"),
        ({"w": np.zeros((33, 70), BF16)}, ValueError, "copy of parameter w: expected shape .* its axes in memory"),
        ({"b": np.zeros(5, np.float32)}, TypeError, "copy of parameter b: expected bfloat16 or float16, got float32"),
        ({"b": np.zeros(10, BF16)[::2]}, ValueError, "copy of parameter b: expected shape .* strides"),
        ({"b": [1.0]}, (TypeError, ValueError), "b"),
        ({"b": None}, TypeError, "copy of parameter b: "),
        ({"b": 3}, TypeError, "copy of parameter b: "),
    ],
)
def test_what_cannot_be_a_copy_is_refused(copies, error, message):
    optimizer, params = fastopt.SGD(0.1), two_params()
    with pytest.raises(error, match=message):
        optimizer.build(params, copies=copies)
    optimizer.build(params)


@rows(
    "make, params, message",
    [
        (fastopt.SGD, np.zeros(5, np.float64), "copies are of parameters of float32 on the host, .* of float64"),
        (fastopt.SGD, np.zeros(5, BF16), "copies are of parameters of float32 on the host, .* of bfloat16"),
        (
            fastopt.Lamb,
            np.zeros(5, np.float32),
            "the rule lamb keeps its parameters .* leave slot_dtype and copies out",
        ),
    ],
)
def test_what_can_have_no_copy_is_refused(make, params, message):
    with pytest.raises(TypeError, match=message):
        make(0.1).build([params], copies=[np.zeros(5, BF16)])


def test_a_copy_may_not_share_memory_with_parameters_or_gradients():
    memory = np.zeros(20, np.uint16)
    parameter, copy = memory[:10].view(np.float32), memory[8:13].view(BF16)
    with pytest.raises(ValueError, match=r"parameters 0 and 0 \(copy\) share memory: a copy needs"):
        fastopt.SGD(0.1).build([parameter], copies=[copy])
    optimizer, copy = fastopt.SGD(0.1), np.zeros(10, np.uint16)
    optimizer.build([np.zeros(5, np.float32)], copies=[copy[:5].view(BF16)])
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.apply([copy.view(np.float32)])


# -- rules that look at more than an element ---------------------------------------------------------------------------

WHOLE = {
    "Lamb": {"weight_decay": 0.1, "use_ema": True},
    "Adafactor": {},
    "Muon": {"global_clipnorm": 0.5},
    "RowwiseAdagrad": {},
    "ScheduleFreeAdamW": {},
}


def halved_and_exact(name, kind, **options):
    """An optimizer on parameters of 16 bits, and one on the same in float32; and these."""
    ours = drawn(HALVES[kind], shapes=[(40, 30), (30,)])
    exact = [array.astype(np.float32) for array in ours]
    optimizers = [getattr(fastopt, name)(0.01, **WHOLE[name], **options) for _ in range(2)]
    for optimizer, params in zip(optimizers, (ours, exact), strict=True):
        optimizer.build(params)
    return optimizers, ours, exact


def step_both(optimizers, ours, exact, kind, seed, spoil=False):
    """A step of both from where the one in 16 bits is."""
    for one, other in zip(exact, ours, strict=True):
        one[...] = other.astype(np.float32)
    grads = drawn(HALVES[kind], seed=seed, shapes=[array.shape for array in ours])
    grads[0][0, 0] = np.nan if spoil else 1
    optimizers[0].apply(grads)
    optimizers[1].apply([grad.astype(np.float32) for grad in grads])
    return bits([one.astype(HALVES[kind]) for one in exact])


@rows("name, kind", [(name, kind) for name in WHOLE for kind in HALVES])
def test_rules_of_whole_parameters_step_in_float32_and_round_to_the_nearest(name, kind):
    optimizers, ours, exact = halved_and_exact(name, kind)
    for step in range(5):
        expected = step_both(optimizers, ours, exact, kind, step + 1)
        assert bits(ours) == expected
    again = pickle.loads(pickle.dumps(optimizers[0]))
    assert bits(again._structure) == bits(ours)
    if WHOLE[name].get("use_ema"):
        trained = bits(ours)
        with optimizers[0].evaluation_weights():
            averages = [array.astype(HALVES[kind]) for array in optimizers[0].slots["average"]]
            assert bits(ours) == bits(averages) != trained
        assert bits(ours) == trained


def test_a_step_that_is_left_out_leaves_what_stands_in_behind():
    optimizers, ours, exact = halved_and_exact("Lamb", "bfloat16", nonfinite="skip")
    before = bits(ours)
    step_both(optimizers, ours, exact, "bfloat16", 1, spoil=True)
    assert bits(ours) == before
    ours[1][:] = 3
    assert step_both(optimizers, ours, exact, "bfloat16", 2) == bits(ours)


def test_bfloat16_of_nobody_in_particular_is_stepped_in_float32_too():
    numbers = drawn(BF16, shapes=[(40, 30)])
    codes = [numbers[0].copy().view(np.uint16)]
    for params, overrides in ((numbers, None), (codes, {"": {"dtype": "bfloat16"}})):
        optimizer = fastopt.Lamb(0.1)
        optimizer.build(params, overrides)
        optimizer.apply([np.ones((40, 30), np.float32)])
    assert bits(numbers) == bits(codes)


def test_what_stands_in_is_counted():
    params = [np.zeros((256, 64), BF16), np.zeros(64, BF16)]
    optimizer = fastopt.Muon()
    before = optimizer.memory(params)
    optimizer.build(params)
    assert before == optimizer.memory()
    assert before.bytes["in float32"] == 4 * 256 * 64
    assert before.bytes["parameters"] == 2 * 257 * 64


def test_what_needs_another_order_and_more_bits_is_refused():
    with pytest.raises(TypeError, match="steps arrays of bfloat16 in C order only"):
        fastopt.Adafactor().build([np.zeros((4, 5, 6), BF16).transpose(2, 0, 1)])
