"""Kernels below the front end: compiled against plain Python, memory around every array, and what the compiler made."""

import functools
import math
import platform
import re
from itertools import product
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from children import digest
from fastopt.kernels import maths
from fastopt.kernels.compile import cache as cache_module
from fastopt.kernels.cpu import launch, loops
from fastopt.kernels.cpu.adafactor import size_pass, sums_pass, update_pass
from fastopt.kernels.cpu.engines import Elementwise, TwoPhase, contiguous_chunks
from fastopt.kernels.cpu.staging import gather_address
from fastopt.kernels.layout import (
    ACCUMULATED,
    ACCUMULATOR,
    ADDRESS,
    AVERAGE,
    AVERAGED,
    CHUNK,
    CLIP,
    DIRECT,
    EXTRA,
    FLOAT32,
    FLOAT64,
    LAYOUT,
    OVERWRITE,
    PARAM,
    SLOTS,
    STAGED,
    ZERO,
    Control,
)
from fastopt.kernels.registry import CONSTANT, RULES, SCALARS, Rule
from fastopt.kernels.registry import scalars_of as scalars_after
from fastopt.kernels.rules.adafactor import AdafactorScalars
from fastopt.kernels.rules.adam import AdamScalars
from fastopt.kernels.rules.lamb import LambScalars
from fastopt.kernels.rules.sgd import SgdScalars
from rows import rows

import fastopt

SIZES = (0, 1, 31, 32, 33, 4095, 4096, 4097, 10_007, 12_289)  # in all, enough to go parallel
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
PERIOD = 1009
"""Elements after which the data repeat: plain Python then has a tenth of the work."""

CONTROL = Control(unscale=0.5, divisor=2.0, limit=0.75, decay=0.01, keep=0.9)
CLIPPING = 0.8

BUILT_IN = {scalars: rule for scalars, rule in RULES.items() if scalars.__module__.startswith("fastopt.kernels.")}
ELEMENTWISE = [scalars for scalars, rule in BUILT_IN.items() if rule.update]
pytestmark = pytest.mark.xdist_group("kernels")  # serial and parallel forms are compiled together


def do(engine, options):
    """Do the step that an engine's tables describe."""
    launch.run(engine.calls(options), engine.on_threads)


def uses_power(scalars):
    """Powers are not correctly rounded: NumPy's and the compiler's may differ in the last bits."""
    return "power" in BUILT_IN[scalars].update.__code__.co_names


def over_rules(rules=ELEMENTWISE, covering=("adam", "lion", "ftrl", "power_ftrl")):
    """Runs a test once per rule; the mark `full` goes to those that are not ``covering``."""
    names = {scalars: BUILT_IN[scalars].name for scalars in rules}
    marks = {scalars: [] if name in covering else [pytest.mark.full] for scalars, name in names.items()}
    cases = [pytest.param(scalars, id=name, marks=marks[scalars]) for scalars, name in names.items()]
    return pytest.mark.parametrize("scalars", cases)


over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def scalars_of(kind, dtype):
    """Different positive numbers below one."""
    return kind(*(dtype.type(0.15 + 0.8 * k / len(kind._fields)) for k in range(len(kind._fields))))


def count_slots(function, s):
    """How many slots a rule has: it unpacks them, so no other number works."""
    for count in range(8):
        try:
            if len(function(1.0, 0.5, (0.25,) * count, s)[1]) == count:
                return count
        except ValueError:
            continue
    raise AssertionError(f"{function.__name__} takes no number of slots")


# -- arrays with guards, and the tables over them ----------------------------------------------------------------------

GUARD, SENTINEL = 19, 123.25


class Guarded:
    """For each size an array of periodic numbers, between sentinels that nothing may overwrite."""

    def __init__(self, period, sizes=SIZES):
        self.start = period
        self.whole = [np.full(size + 2 * GUARD, SENTINEL, period.dtype) for size in sizes]
        self.arrays = [whole[GUARD : GUARD + size] for whole, size in zip(self.whole, sizes, strict=True)]
        for array in self.arrays:
            array[:] = np.resize(period, array.size)

    @property
    def addresses(self):
        return [array.ctypes.data for array in self.arrays]

    def assert_holds(self, period):
        """The arrays have exactly the bits of ``period``, over and over, and the sentinels are intact."""
        self.assert_intact()
        for array in self.arrays:
            np.testing.assert_array_equal(same_bits(array), same_bits(np.resize(period, array.size)))

    def assert_intact(self):
        for whole in self.whole:
            assert np.all(whole[:GUARD] == SENTINEL), "written in front of an array"
            assert np.all(whole[len(whole) - GUARD :] == SENTINEL), "written past the end of an array"


def same_bits(array):
    """The bit patterns, with one pattern for all NaNs: which of them an operation yields is left open."""
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array).view(f"u{array.itemsize}")


class Case:
    """Random arrays, and the work over them."""

    def __init__(self, dtype, scalars, slots, sizes=SIZES):
        rng = np.random.default_rng(5)
        self.dtype = dtype
        self.s = scalars
        self.param, self.grad = (Guarded(rng.normal(size=PERIOD).astype(dtype), sizes) for _ in range(2))
        self.slots = [Guarded(rng.uniform(0.5, 0.9, PERIOD).astype(dtype), sizes) for _ in range(slots)]
        self.average, self.accumulator = (Guarded(rng.normal(size=PERIOD).astype(dtype), sizes) for _ in range(2))
        self.control = Control(*map(dtype.type, CONTROL))
        self.work = self._work(sizes)

    def _work(self, sizes):
        segments = len(sizes)
        addresses = np.zeros((SLOTS + len(self.slots), segments), np.int64)
        rows = {PARAM: self.param, AVERAGE: self.average, ACCUMULATOR: self.accumulator}
        rows |= {SLOTS + k: slot for k, slot in enumerate(self.slots)}
        for row, guarded in rows.items():
            addresses[row] = guarded.addresses
        gradients = np.full((2, segments), DIRECT, np.int64)
        gradients[ADDRESS] = self.grad.addresses
        table = np.array([[*CONTROL, *self.s]], self.dtype)
        chunks = contiguous_chunks(sizes, np.zeros(segments, np.int64), CHUNK)
        terms = BUILT_IN[type(self.s)].terms if type(self.s) in BUILT_IN else 0
        work = launch.Work(chunks, addresses, gradients, np.zeros(1, np.int64), table, terms)
        work.factors[CLIP] = CLIPPING
        return work

    def engine(self, kind=Elementwise):
        """What does steps over these arrays."""
        plan = SimpleNamespace(
            work=self.work, scalars=type(self.s), rule_slots=[f"slot{k}" for k in range(len(self.slots))], rows=[0]
        )
        return kind(plan)

    @property
    def all_arrays(self):
        return [self.param, self.grad, self.average, self.accumulator, *self.slots]

    def staged(self, options=0):
        """Gradients as the rule sees them, and parameters after weight decay."""
        c, grad = self.control, self.grad.start
        if options & ACCUMULATED:
            grad = (grad * c.unscale + self.accumulator.start) / c.divisor
        else:
            grad = grad * c.unscale
        param = self.param.start
        return np.clip(grad * self.dtype.type(CLIPPING), -c.limit, c.limit), param - param * c.decay

    def by_python(self, options=0):
        """New parameters and slots, from the rule's plain function."""
        grad, param = self.staged(options)
        update = BUILT_IN[type(self.s)].update
        old = zip(*(slot.start for slot in self.slots), strict=True) if self.slots else [()] * PERIOD
        with np.errstate(all="ignore"):
            new = [update(p, g, slots, self.s) for p, g, slots in zip(param, grad, old, strict=True)]
        slots = [np.array(values) for values in zip(*(slots for _, slots in new), strict=True)]
        return np.array([p for p, _ in new]), slots


def case_of(scalars, dtype):
    s, rule = scalars_of(scalars, dtype), BUILT_IN[scalars]
    return Case(dtype, s, count_slots(rule.update or rule.first, s))


@pytest.fixture(params=[1, 3], ids=["serial", "parallel"])
def threads(request, monkeypatch):
    """Runs a test without and with Numba's threads."""
    monkeypatch.setitem(launch._state, "threads", request.param)


# -- elementwise rules -------------------------------------------------------------------------------------------------


@over_dtypes
@over_rules()
def test_step_does_what_the_plain_rule_does(scalars, dtype, threads):
    case = case_of(scalars, dtype)
    do(case.engine(), 0)
    param, slots = case.by_python()
    assert {param.dtype, *(slot.dtype for slot in slots)} == {dtype}, "the plain rule changed the dtype"
    if uses_power(scalars):
        for actual in case.param.arrays:
            np.testing.assert_allclose(actual, np.resize(param, actual.size), rtol=64 * np.finfo(dtype).eps)
        case.param.assert_intact()
    else:
        case.param.assert_holds(param)
    for guarded, expected in zip(case.slots, slots, strict=True):
        guarded.assert_holds(expected)
    for untouched in (case.grad, case.average, case.accumulator):
        untouched.assert_holds(untouched.start)


@rows(
    "options",
    [sum(bits) for bits in product((0, ACCUMULATED), (0, AVERAGED, OVERWRITE, AVERAGED | OVERWRITE), (0, ZERO))],
)
@over_dtypes
def test_options_of_a_step(options, dtype):
    case = case_of(AdamScalars, dtype)
    do(case.engine(), options)
    param, slots = case.by_python(options)
    keep = case.control.keep
    average = keep * case.average.start + (dtype.type(1) - keep) * param
    zeros = np.zeros(PERIOD, dtype)
    case.param.assert_holds(average if options & AVERAGED and options & OVERWRITE else param)
    case.average.assert_holds(average if options & AVERAGED else case.average.start)
    case.accumulator.assert_holds(zeros if options & ACCUMULATED else case.accumulator.start)
    case.grad.assert_holds(zeros if options & ZERO else case.grad.start)
    for guarded, expected in zip(case.slots, slots, strict=True):
        guarded.assert_holds(expected)


@over_dtypes
def test_segments_without_gradient_stay(dtype):
    case = case_of(AdamScalars, dtype)
    case.work.gradients[ADDRESS] = 0
    do(case.engine(), ACCUMULATED | AVERAGED | OVERWRITE | ZERO)
    for guarded in case.all_arrays:
        guarded.assert_holds(guarded.start)


@over_dtypes
def test_accumulate(dtype, threads):
    case = case_of(SgdScalars, dtype)
    engine = case.engine()
    launch.run(engine.accumulating(ZERO), engine.on_threads)
    case.accumulator.assert_holds(case.accumulator.start + case.grad.start * case.control.unscale)
    case.grad.assert_holds(np.zeros(PERIOD, dtype))
    case.param.assert_holds(case.param.start)


@pytest.mark.parametrize("options", [0, ACCUMULATED])
@over_dtypes
def test_strided_gradients_of_the_other_dtype(dtype, options):
    case, straight = case_of(SgdScalars, dtype), case_of(SgdScalars, dtype)
    other = DTYPES[dtype == DTYPES[0]]
    strided = [np.repeat(array.astype(other), 3)[::3] for array in case.grad.arrays]
    strides = [array.strides[0] for array in strided]
    kind = FLOAT64 if other.itemsize == 8 else FLOAT32
    records = np.array([[kind, 1, array.size, stride] for array, stride in zip(strided, strides, strict=True)])
    work = case.work
    work.gradients[ADDRESS] = [array.ctypes.data for array in strided]
    work.gradients[LAYOUT] = 1 + np.arange(0, records.size, records.shape[1])
    layouts = np.concatenate([[gather_address()], records.ravel()])
    case.work = launch.Work(work.chunks, work.addresses, work.gradients, layouts, work.table)
    case.work.factors[CLIP] = CLIPPING
    if dtype.itemsize == 8:  # the strided gradients lost half of their bits on the way
        straight.grad = Guarded(case.grad.start.astype(np.float32).astype(np.float64))
        straight.work.gradients[ADDRESS] = straight.grad.addresses
    do(case.engine(), options | STAGED)
    do(straight.engine(), options)
    for one, two in zip(case.param.arrays, straight.param.arrays, strict=True):
        np.testing.assert_array_equal(one, two)
    case.param.assert_intact()


# -- two phases --------------------------------------------------------------------------------------------------------


@over_dtypes
def test_two_phases_do_what_the_plain_rule_does(dtype, threads):
    case = case_of(LambScalars, dtype)
    rule, s = BUILT_IN[LambScalars], case.s
    grad, param = case.staged()
    firsts = [
        rule.first(p, g, slots, s)
        for p, g, slots in zip(param, grad, zip(*(slot.start for slot in case.slots), strict=True), strict=True)
    ]
    terms = np.array([terms for terms, _ in firsts])
    slots = np.array([slots for _, slots in firsts])
    do(case.engine(TwoPhase), 0)
    for k, guarded in enumerate(case.slots):
        guarded.assert_holds(slots[:, k])
    case.param.assert_intact()
    for k, size in enumerate(SIZES[1:], 1):
        sums = [math.fsum(np.resize(terms[:, t], size).astype(np.float64)) for t in range(rule.terms)]
        extra = dtype.type(rule.between(sums, size, s))
        np.testing.assert_allclose(case.work.factors[EXTRA, k], extra, rtol=4 * np.finfo(dtype).eps)
        extra = case.work.factors[EXTRA, k]
        moved = [rule.second(p, g, tuple(old), extra, s) for p, g, old in zip(param, grad, slots, strict=True)]
        np.testing.assert_array_equal(case.param.arrays[k], np.resize(np.array(moved, dtype), size))


def guarded_matrix(rng, shape):
    """An array and the sentinels around it."""
    whole = np.full(math.prod(shape) + 2 * GUARD, SENTINEL, np.float32)
    array = whole[GUARD : len(whole) - GUARD].reshape(shape)
    array[...] = rng.normal(size=shape)
    return array, whole


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "Lamb"])
def test_kernels_of_more_than_one_launch_write_nothing_outside(name):
    shapes = ((1, 1), (63, 65), (64, 4097), (130, 3), (2, 5, 7), (4097,), (1,))
    rng = np.random.default_rng(3)
    params, grads = (list(zip(*(guarded_matrix(rng, shape) for shape in shapes), strict=True)) for _ in range(2))
    before = digest(*grads[1])
    optimizer = getattr(fastopt, name)(global_clipnorm=1.0, weight_decay=0.1, use_ema=True)
    optimizer.build(list(params[0]))
    for _ in range(3):
        optimizer.apply(list(grads[0]))
    assert digest(*grads[1]) == before
    for whole in params[1]:
        assert np.all(whole[:GUARD] == SENTINEL)
        assert np.all(whole[len(whole) - GUARD :] == SENTINEL)


# -- norms -------------------------------------------------------------------------------------------------------------


def sums_of_segments(case):
    segments = case.work.chunks[:, 0]
    return [case.work.sums[:, segments == k].sum(axis=1) for k in range(len(SIZES))]


@pytest.mark.parametrize("options", [0, ACCUMULATED])
@over_dtypes
def test_norms_are_those_of_exact_sums(dtype, options, threads):
    case = case_of(SgdScalars, dtype)
    case.engine().norms(options)
    for guarded in case.all_arrays:
        guarded.assert_holds(guarded.start)
    c = case.control
    mean = (case.grad.start * c.unscale + case.accumulator.start) / c.divisor
    period = mean if options else case.grad.start * c.unscale
    for array, (squares, bad) in zip(case.grad.arrays, sums_of_segments(case), strict=True):
        values = np.resize(period, array.size).astype(np.float64)
        assert squares == pytest.approx(math.fsum(values * values), rel=1e-14)
        assert bad == 0


@rows("value", [math.nan, math.inf, -math.inf])
@rows("where", [0, 127, 128, 4095, 4096, 12_288])
@over_dtypes
def test_one_element_that_is_not_finite_is_found(dtype, where, value):
    case = case_of(SgdScalars, dtype)
    case.grad.arrays[-1][where] = value
    _, finite = case.engine().norms(0)
    assert not finite
    assert [bool(bad != 0) for _, bad in sums_of_segments(case)] == [False] * (len(SIZES) - 1) + [True]


def test_squares_that_overflow_are_finite_elements():
    case = case_of(SgdScalars, DTYPES[1])
    case.grad.arrays[-1][77] = 1e300
    assert case.engine().norms(0) == (math.inf, True)


@over_dtypes
def test_clip_each(dtype):
    case = case_of(SgdScalars, dtype)
    engine = case.engine()
    engine.norms(0)
    engine.clip_each(2.0)
    norms = [math.sqrt(squares) for squares, _ in sums_of_segments(case)]
    expected = [min(1.0, 2.0 / norm) if size else CLIPPING for norm, size in zip(norms, SIZES, strict=True)]
    np.testing.assert_allclose(case.work.factors[CLIP], expected, rtol=2 * np.finfo(dtype).eps)


# -- what the compiler made --------------------------------------------------------------------------------------------


def compiled_anew(function, scalars, slots):
    """A float32 kernel that does not come from the cache, because then it could not be inspected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "cache_folder", lambda: None)
        patch.setitem(launch._state, "forked", True)  # of the two forms the serial one is enough
        return launch.kernel.__wrapped__(function, scalars, slots, DTYPES[0]).compiled


def optimised(function, scalars, slots):
    """The kernel's LLVM after optimisation."""
    (text,) = compiled_anew(function, scalars, slots).inspect_llvm().values()
    return text


def optimised_step(update):
    """`optimised` for `loops.step` and a rule without slots that a test makes up."""
    # A class of its own for each: the compiler chooses the rule by the class once and for all.
    scalars = type("Scalars", (SgdScalars,), {"__slots__": ()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, scalars, Rule(update.__name__, update=update))
        return optimised(loops.step, scalars, 0)


DOUBLE_ARITHMETIC = re.compile(
    r"\bfpext\b"
    r"|= (fadd|fsub|fmul|fdiv|frem|fneg|fcmp) (\w+ )*(<\d+ x )?double"
    r"|= [\w ]*call [\w ]*(<\d+ x )?double>? (?!@llvm\.masked\.)"
)


def double_arithmetic(text):
    """Lines that compute in float64. Gathering a float64 gradient loads and rounds, which is none."""
    return [line.strip() for line in text.splitlines() if DOUBLE_ARITHMETIC.search(line)]


def packed(text, operation):
    """Widths of the vectors of float32 that an operation is done on."""
    if operation == "sqrt":
        return {int(width) for width in re.findall(r"call [^\n]*@llvm\.sqrt\.v(\d+)f32", text)}
    return {int(width) for width in re.findall(rf"= {operation} <(\d+) x float>", text)}


def count_packed(text):
    return len(re.findall(r"= f(?:add|sub|mul|div) <\d+ x float>", text))


def not_vectorised(param, grad, slots, s):
    return param - math.erf(grad), slots


def inert(param, grad, slots, s):
    return param, slots


def widened(param, grad, slots, s):
    return param - grad * 0.1, slots


@functools.cache
def count_packed_elsewhere():
    """In the loops of a step that are not the rule's: staging, averages."""
    return count_packed(optimised_step(not_vectorised))


@over_rules([scalars for scalars in ELEMENTWISE if not uses_power(scalars)], ("adam", "lion", "momentum_sgd"))
def test_float32_steps_compute_in_float32_vectors(scalars):
    update = BUILT_IN[scalars].update
    text = optimised(loops.step, scalars, count_slots(update, scalars_of(scalars, DTYPES[0])))
    assert double_arithmetic(text) == []
    assert count_packed(text) > count_packed_elsewhere()
    assert max(packed(text, "fmul")) >= 4
    if "sqrt" in update.__code__.co_names:
        assert max(packed(text, "sqrt"), default=0) >= 4
        assert max(packed(text, "fdiv"), default=0) >= 4


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the mnemonics are those of x86")
def test_machine_code_of_adam_is_packed_and_widens_nothing():
    (assembly,) = compiled_anew(loops.step, AdamScalars, 2).inspect_asm().values()
    used = set(re.findall(r"^\s+v?(sqrtps|divps|mulps|subps|cvtps2pd|sqrtpd|mulpd|cvtss2sd)\b", assembly, re.MULTILINE))
    assert used == {"sqrtps", "divps", "mulps", "subps"}


def test_the_checks_of_the_compiled_code_tell_good_from_bad():
    good = optimised_step(inert)
    assert count_packed(good) > count_packed_elsewhere()
    assert double_arithmetic(good) == []
    assert double_arithmetic(optimised_step(widened))


@pytest.mark.parametrize(
    ("function", "scalars"),
    [
        (loops.step, AdamScalars),
        (loops.accumulate, None),
        (loops.norms, None),
        (loops.phase_one, LambScalars),
        (loops.phase_two, LambScalars),
        (sums_pass, AdafactorScalars),
        (size_pass, AdafactorScalars),
        (update_pass, AdafactorScalars),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_tables_are_no_arguments_of_calls(function, scalars):
    (assembly,) = compiled_anew(function, scalars, 0 if scalars is None else 2).inspect_asm().values()
    functions = re.findall(r"^\S+:$", assembly, re.MULTILINE)  # by names that hold the types of arguments
    assert any(function.__name__ in name for name in functions)
    assert not any("Tables" in name for name in functions)


def test_no_multiplication_is_fused_with_an_addition():
    assert not re.search(r"llvm\.(fma|fmuladd)|\b(contract|fast|reassoc)\b", optimised(loops.step, AdamScalars, 2))


def test_float32_sums_of_two_phase_rules_are_all_that_is_float64():
    in_first = double_arithmetic(optimised(loops.phase_one, LambScalars, 2))
    assert [line for line in in_first if not re.search("fpext|fadd", line)] == []
    assert double_arithmetic(optimised(loops.phase_two, LambScalars, 2)) == []


# -- the vocabulary ----------------------------------------------------------------------------------------------------

NUMBERS = (-math.inf, -2.5, -1.0, -0.0, 0.0, 0.75, 1.0, 3.0, math.inf, math.nan)
POSITIVE = (0.0, 1e-30, 0.25, 2.0, 7.0, math.inf, math.nan)
CALLS = {
    "maximum": lambda x, y: maths.maximum(x, y),
    "minimum": lambda x, y: maths.minimum(x, y),
    "clip": lambda x, low, high: maths.clip(x, low, high),
    "sign": lambda x: maths.sign(x),
    "sqrt": lambda x: maths.sqrt(x),
    "power": lambda x, exponent: maths.power(x, exponent),
    "constant": lambda like: maths.constant(0.1, like),
    "greatest": lambda like: maths.greatest(like),
    "decayed": lambda param, decay: maths.decayed(param, decay),
    "plus_share": lambda x, y, share: maths.plus_share(x, y, share),
    "mean_square": lambda mean, x, share: maths.mean_square(mean, x, share),
}


def compiled(name):
    return numba.njit(error_model="numpy")(CALLS[name])


def check_same(name, function, arguments, dtype):
    """Plain Python and compiled code agree on every bit, and neither changes the dtype."""
    with np.errstate(all="ignore"):
        plain = getattr(maths, name)(*arguments)
    fast = function(*arguments)
    (signature,) = function.nopython_signatures
    assert signature.return_type == numba.from_dtype(dtype)
    assert np.asarray(plain).dtype == dtype
    assert same_bits(np.array([plain])) == same_bits(np.array([fast], dtype)), f"{name}{arguments}: {plain} {fast}"
    return plain


@over_dtypes
@pytest.mark.parametrize(("name", "choose"), [("maximum", np.maximum), ("minimum", np.minimum)])
def test_maximum_and_minimum(name, choose, dtype):
    function = compiled(name)
    for x in map(dtype.type, NUMBERS):
        for y in map(dtype.type, NUMBERS):
            found = check_same(name, function, (x, y), dtype)
            np.testing.assert_array_equal(found, choose(x, y))  # of two zeros either will do


@over_dtypes
def test_clip(dtype):
    function = compiled("clip")
    for x in map(dtype.type, NUMBERS):
        for limit in map(dtype.type, (0.0, 1.0, math.inf)):
            found = check_same("clip", function, (x, -limit, limit), dtype)
            np.testing.assert_equal(found + 0, np.clip(x, -limit, limit) + 0)  # NumPy 2.0 loses the sign of zero


def test_clip_by_nothing_keeps_every_bit():
    infinite = np.float32(np.inf)
    for x in map(np.float32, NUMBERS):
        assert same_bits(np.array([maths.clip(x, -infinite, infinite)])) == same_bits(np.array([x]))


@over_dtypes
def test_greatest(dtype):
    found = check_same("greatest", compiled("greatest"), (dtype.type(3),), dtype)
    with np.errstate(over="ignore"):
        assert math.isfinite(found) and np.nextafter(found, dtype.type(np.inf)) == math.inf


@over_dtypes
def test_decayed(dtype):
    """As multiplied by ``1 - decay``, but for one rounding; without a decay every bit stays."""
    function, none = compiled("decayed"), dtype.type(0)
    for x in map(dtype.type, NUMBERS):
        assert same_bits(np.array([check_same("decayed", function, (x, none), dtype)])) == same_bits(np.array([x]))
        found = check_same("decayed", function, (x, dtype.type(0.25)), dtype)
        np.testing.assert_array_equal(found, x * dtype.type(0.75))


@over_dtypes
def test_plus_share(dtype):
    """IEEE arithmetic, but that no share of infinity is nothing."""
    function = compiled("plus_share")
    for x in map(dtype.type, NUMBERS):
        for y in map(dtype.type, NUMBERS):
            np.testing.assert_array_equal(check_same("plus_share", function, (x, y, dtype.type(0)), dtype), x)
            found = check_same("plus_share", function, (x, y, dtype.type(0.5)), dtype)
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(found, x + y / 2)


@over_dtypes
def test_mean_square(dtype):
    """``mean * (1 - share) + share * x * x``, as torch has it: its infinities and NaN, too."""
    function, most = compiled("mean_square"), float(np.finfo(dtype).max)
    for mean in map(dtype.type, (*POSITIVE, most)):
        for x in map(dtype.type, (*NUMBERS, math.sqrt(most) * 2, most)):
            for share in map(dtype.type, (0.125, 0.5)):
                found = check_same("mean_square", function, (mean, x, share), dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    expected = mean * (1 - share) + share * x * x
                np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps)


@over_dtypes
def test_sign(dtype):
    function = compiled("sign")
    for x in map(dtype.type, NUMBERS):
        np.testing.assert_array_equal(check_same("sign", function, (x,), dtype), np.sign(x))


@over_dtypes
def test_sqrt(dtype):
    function = compiled("sqrt")
    for x in map(dtype.type, (*POSITIVE, -0.0)):
        np.testing.assert_equal(check_same("sqrt", function, (x,), dtype), np.sqrt(x))


@over_dtypes
def test_power_keeps_the_dtype(dtype):
    function = compiled("power")
    for x in map(dtype.type, POSITIVE):
        for exponent in map(dtype.type, (0.0, 0.5, 0.7)):
            found = function(x, exponent)
            np.testing.assert_allclose(found, maths.power(x, exponent), rtol=4 * np.finfo(dtype).eps)
    (signature,) = function.nopython_signatures
    assert signature.return_type == numba.from_dtype(dtype)


@over_dtypes
def test_constant(dtype):
    function = compiled("constant")
    assert function(dtype.type(3)) == maths.constant(0.1, dtype.type(3)) == dtype.type(0.1)
    (signature,) = function.nopython_signatures
    assert signature.return_type == numba.from_dtype(dtype)
    assert maths.constant(0.1, dtype.type(3)).dtype == dtype


def test_plain_rules_keep_the_type_of_python_numbers():
    """Oracles run them on float64, tests on either dtype."""
    assert isinstance(maths.maximum(1.0, 2.0), float)
    assert isinstance(maths.clip(1.0, -0.5, 0.5), float)


@pytest.mark.parametrize("settings", [each for each in SCALARS if each not in CONSTANT], ids=lambda each: each.__name__)
def test_scalars_follow_from_settings_as_in_plain_python(settings):
    compiled = numba.njit(lambda own, t: scalars_after(own, t))
    own = settings(*np.linspace(0.5, 0.9, len(settings._fields)).tolist())
    for t in (1, 2, 50):
        np.testing.assert_allclose(compiled(own, t), scalars_after(own, t), rtol=1e-14)
