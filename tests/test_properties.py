"""Properties over generated shapes, dtypes, layouts and containers: a step is the same however it is handed over."""

import copy
import pickle
import warnings
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, WRITEABLE, dense

import fastopt

# Derandomised: the same examples in every run, here and in CI.
EXAMPLES = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
STEPS = 3
LIKE_THE_PARAMETER = "like the parameter"
"""A layout, of the parameter's axes; the others are in `layouts`."""

# Whose results depend on single elements only, so that the order of elements in memory does not matter.
ELEMENTWISE = {
    "SGD": {"learning_rate": 0.1, "momentum": 0.9},
    "Adam": {"learning_rate": 0.1},
    "Lion": {"learning_rate": 0.1},
}
# Whose results depend on sums over a parameter, which are added up in the order in which it lies in memory.
REDUCING = {
    "Lamb": {"learning_rate": 0.1},
    "Adafactor": {"learning_rate": 0.1},
    "Muon": {"learning_rate": 0.1},
}
ANY = ELEMENTWISE | REDUCING
WITHOUT_NORMS = (
    {},
    {"clipvalue": 0.5},
    {"weight_decay": 0.1},
    {"loss_scale_factor": 8.0},
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    {"gradient_accumulation_steps": 2},
)
OPTIONS = (
    *WITHOUT_NORMS,
    {"clipnorm": 0.5},
    {"global_clipnorm": 1.0},
    {"nonfinite": "skip"},
    {"global_clipnorm": 1.0, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "use_ema": True},
)


# -- arrays ------------------------------------------------------------------------------------------------------------


class Spec(NamedTuple):
    """One parameter and how its gradients arrive."""

    shape: tuple
    dtype: str
    axes: tuple  # as they lie in memory, slowest first
    grad_dtype: str
    layout: str  # of the gradients, a key of LAYOUTS, or LIKE_THE_PARAMETER

    def parameter(self, rng):
        return dense(rng.normal(size=self.shape).astype(self.dtype), self.axes)

    def gradient(self, rng):
        values = rng.normal(size=self.shape).astype(self.grad_dtype)
        return dense(values, self.axes) if self.layout == LIKE_THE_PARAMETER else LAYOUTS[self.layout](values)

    def plain(self, grad):
        """The gradient as the plainest caller would hand it over."""
        return np.array(grad, self.dtype, order="C")


# Small ones of up to four axes, and some that take several chunks, the last one full, short or of one element.
SMALL_SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4).map(tuple)
LARGE_SHAPES = st.sampled_from([(4097,), (64, 64), (70, 90), (3, 50, 40), (2, 3, 4, 700)])
SHAPES = st.one_of(SMALL_SHAPES, SMALL_SHAPES, SMALL_SHAPES, LARGE_SHAPES)
DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def specs(draw, any_axes=False, layouts=(*LAYOUTS, LIKE_THE_PARAMETER), dtypes=DTYPES):
    shape = draw(SHAPES)
    axes = tuple(range(len(shape)))
    if any_axes:
        axes = draw(st.permutations(axes).map(tuple))
    return Spec(shape, draw(dtypes), axes, draw(DTYPES), draw(st.sampled_from(layouts)))


def lists_of_specs(**options):
    return st.lists(specs(**options), min_size=1, max_size=4)


def optimizers(kinds, options=OPTIONS):
    """A function that makes equal optimizers, shown by its repr where an example fails."""
    pairs = st.tuples(st.sampled_from(sorted(kinds)), st.sampled_from(options))
    return pairs.map(lambda pair: Maker(pair[0], ANY[pair[0]] | pair[1]))


class Maker(NamedTuple):
    name: str
    arguments: dict

    def __call__(self, **changed):
        return getattr(fastopt, self.name)(**(self.arguments | changed))


# -- containers --------------------------------------------------------------------------------------------------------


def nested(leaves):
    return {"first": (leaves[0],), "others": [{"kernel": leaf} for leaf in leaves[1:]]}


def as_namedtuple(leaves):
    return namedtuple("Leaves", [f"leaf_{k}" for k in range(len(leaves))])(*leaves)


def as_dict(leaves):
    return {f"leaf_{k}": leaf for k, leaf in enumerate(leaves)}


def as_turned_dict(leaves):
    return dict(reversed(as_dict(leaves).items()))


# How parameters are held, and how gradients may come then.
CONTAINERS = {
    "list": (list, list),
    "list, tuple": (list, tuple),
    "tuple": (tuple, tuple),
    "dict": (as_dict, as_dict),
    "dict, other order": (as_dict, as_turned_dict),
    "dict, values": (as_dict, list),
    "nested": (nested, nested),
    "namedtuple": (as_namedtuple, as_namedtuple),
    "namedtuple, list": (as_namedtuple, list),
}


# -- running -----------------------------------------------------------------------------------------------------------


def bits(*arrays):
    return [None if array is None else np.ascontiguousarray(array).tobytes() for array in arrays]


def outcome(optimizer, params):
    """All that a run leaves: bits of parameters and slots, counters, norm."""
    slots = {name: bits(*arrays) for name, arrays in optimizer.slots.items()}
    return bits(*params), slots, optimizer.iterations, optimizer.last_grad_norm


def run(optimizer, params, steps, **options):
    """Build and step over a list of parameters; the outcome."""
    optimizer.build(params)
    for grads in steps:
        optimizer.apply(grads, **options)
    return outcome(optimizer, params)


def plain_run(optimizer, chosen, params, steps, **options):
    """The same with every array C-ordered and of its parameter's dtype, in lists."""
    params = [np.array(param, order="C") for param in params]
    steps = [[spec.plain(grad) for spec, grad in zip(chosen, grads, strict=True)] for grads in steps]
    return run(optimizer, params, steps, **options)


def drawn(chosen, seed, steps=STEPS):
    """Parameters, and gradients for each step."""
    rng = np.random.default_rng(seed)
    return [spec.parameter(rng) for spec in chosen], [[spec.gradient(rng) for spec in chosen] for _ in range(steps)]


# -- presentation ------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(optimizers(ELEMENTWISE, WITHOUT_NORMS), lists_of_specs(any_axes=True), SEEDS)
def test_axes_of_parameters_and_layouts_of_gradients_change_no_bit(make, chosen, seed):
    params, steps = drawn(chosen, seed)
    expected = plain_run(make(), chosen, params, steps)
    assert run(make(), params, steps) == expected


@EXAMPLES
@given(optimizers(ANY), lists_of_specs(), SEEDS)
def test_layouts_of_gradients_change_no_bit(make, chosen, seed):
    params, steps = drawn(chosen, seed)
    expected = plain_run(make(), chosen, params, steps)
    assert run(make(), params, steps) == expected


@EXAMPLES
@given(optimizers(("Adam", "Lamb")), lists_of_specs(), st.sampled_from(sorted(CONTAINERS)), SEEDS)
def test_containers_change_no_bit(make, chosen, container, seed):
    params, steps = drawn(chosen, seed)
    expected = plain_run(make(), chosen, params, steps)
    hold, hand_over = CONTAINERS[container]
    optimizer = make()
    optimizer.build(hold(params))
    for grads in steps:
        optimizer.apply(hand_over(grads))
    assert outcome(optimizer, params) == expected


@st.composite
def packable(draw):
    """Parameters of one dtype."""
    return draw(lists_of_specs(dtypes=st.just(draw(DTYPES)), layouts=("C",)))


def as_buffer(buffer, grads):
    grads_buffer = buffer.like()
    for view, grad in zip(grads_buffer.arrays, grads, strict=True):
        view[...] = grad
    return grads_buffer


def as_flat(buffer, grads):
    """Segments in one array, with NaN where nothing must be read."""
    flat = np.full(buffer.flat.size, np.nan, np.result_type(buffer.dtype, *grads))
    for segment, grad in zip(buffer.segments, grads, strict=True):
        flat[segment.offset : segment.offset + grad.size] = grad.reshape(-1)
    return flat


def as_strided_flat(buffer, grads):
    return np.repeat(as_flat(buffer, grads), 2)[::2]


def as_backward_flat(buffer, grads):
    return as_flat(buffer, grads)[::-1].copy()[::-1]


HAND_OVER_TO_BUFFER = {
    "list": lambda buffer, grads: grads,
    "buffer": as_buffer,
    "views": lambda buffer, grads: as_buffer(buffer, grads).views,
    "buffer's flat": lambda buffer, grads: as_buffer(buffer, grads).flat,
    "flat": as_flat,
    "strided flat": as_strided_flat,
    "backward flat": as_backward_flat,
}


@EXAMPLES
@given(optimizers(("Adam", "Lamb", "SGD")), packable(), st.sampled_from(sorted(HAND_OVER_TO_BUFFER)), SEEDS)
def test_packing_changes_no_bit(make, chosen, way, seed):
    params, steps = drawn(chosen, seed)
    expected = plain_run(make(), chosen, params, steps)
    optimizer, buffer = make(), fastopt.pack(params)
    optimizer.build(buffer)
    for grads in steps:
        optimizer.apply(HAND_OVER_TO_BUFFER[way](buffer, grads))
    assert outcome(optimizer, buffer.views) == expected
    assert not padding(buffer).any()


def padding(buffer):
    mask = np.ones(buffer.flat.size, bool)
    for segment, array in zip(buffer.segments, buffer.arrays, strict=True):
        mask[segment.offset : segment.offset + array.size] = False
    return buffer.flat[mask]


@EXAMPLES
@given(lists_of_specs(dtypes=st.just("float32")), st.sampled_from(sorted(CONTAINERS)), SEEDS)
def test_pack_keeps_values_structure_and_alignment(chosen, container, seed):
    params, _ = drawn(chosen, seed)
    structure = CONTAINERS[container][0](params)
    buffer = fastopt.pack(structure)
    assert [segment.path for segment in buffer.segments] == paths_of(structure)
    assert type(buffer.views) is type(structure)
    for segment, view in zip(buffer.segments, buffer.arrays, strict=True):
        assert view.shape == segment.shape
        assert view.size == 0 or (np.shares_memory(view, buffer.flat) and view.ctypes.data % 64 == 0)
    assert sorted(bits(*buffer.arrays)) == sorted(bits(*params))
    assert not buffer.like().flat.any()
    assert buffer.like().segments == buffer.segments


def paths_of(structure):
    """The paths that an optimizer of the structure uses in its state."""
    optimizer = fastopt.SGD(momentum=0.5)
    optimizer.build(structure)
    names = [name.rpartition("/") for name in optimizer.state_dict()]
    return [path for path, _, slot in names if slot == "momentum"]


# -- gradients afterwards ----------------------------------------------------------------------------------------------


@EXAMPLES
@given(optimizers(ANY), lists_of_specs(), SEEDS)
def test_gradients_are_left_alone(make, chosen, seed):
    params, steps = drawn(chosen, seed)
    before = [bits(*grads) for grads in steps]
    run(make(), params, steps)
    assert [bits(*grads) for grads in steps] == before


@EXAMPLES
@given(optimizers(ANY), lists_of_specs(layouts=(*WRITEABLE, LIKE_THE_PARAMETER)), SEEDS)
def test_zeroed_gradients_give_the_same_step_and_are_zero(make, chosen, seed):
    params, steps = drawn(chosen, seed)
    expected = plain_run(make(), chosen, params, steps)
    assert run(make(), params, steps, zero_grads=True) == expected
    assert not any(grad.any() for grads in steps for grad in grads)


@st.composite
def overlapping_gradients(draw):
    """Gradients of equal length, some of them the same or overlapping memory: start, then step, of each in a buffer."""
    return draw(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1, 2, -1])), min_size=2, max_size=4))


@EXAMPLES
@given(optimizers(("SGD", "Adam", "Lamb")), overlapping_gradients(), st.lists(DTYPES, min_size=4, max_size=4), SEEDS)
def test_gradients_that_share_memory_are_zeroed_after_all_have_been_read(make, places, dtypes, seed):
    length = 6
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=length).astype(dtype) for dtype, _ in zip(dtypes, places, strict=False)]
    buffer = rng.normal(size=36).astype("float32")
    grads = [buffer[start : start + 2 * length][::step][:length] for start, step in places]
    expected = run(make(), [param.copy() for param in params], [[grad.copy() for grad in grads]])
    outside = np.ones(buffer.size, bool)
    for start, step in places:
        outside[start : start + 2 * length][::step][:length] = False
    rest = buffer[outside].copy()
    assert run(make(), params, [grads], zero_grads=True) == expected
    assert not any(grad.any() for grad in grads)
    assert bits(buffer[outside]) == bits(rest)


@EXAMPLES
@given(optimizers(ANY, ({"nonfinite": "skip"},)), lists_of_specs(layouts=(*WRITEABLE, LIKE_THE_PARAMETER)), SEEDS)
def test_a_skipped_step_zeroes_gradients_and_changes_nothing_else(make, chosen, seed):
    params, (grads, last) = drawn(chosen, seed, steps=2)
    optimizer = make()
    run(optimizer, params, [grads])
    before = outcome(optimizer, params)[:3]
    broken = [grad for grad in last if grad.size]
    for grad in broken[:1]:
        grad[(0,) * grad.ndim] = np.nan
    optimizer.apply(last, zero_grads=True)
    assert optimizer.last_step_skipped == bool(broken)
    assert not any(grad.any() for grad in last)
    if broken:
        assert outcome(optimizer, params)[:3] == before


# -- subsets and missing gradients -------------------------------------------------------------------------------------


@EXAMPLES
@given(optimizers(ANY), st.lists(specs(), min_size=2, max_size=4), st.data(), SEEDS)
def test_a_subset_is_a_step_with_none_for_the_rest(make, chosen, data, seed):
    params, steps = drawn(chosen, seed)
    twins = [param.copy() for param in params]
    optimizer, padded = make(), make()
    optimizer.build(params)
    padded.build(twins)
    for grads in steps:
        order = data.draw(st.permutations(range(len(params))))
        present = order[: data.draw(st.integers(1, len(params)))]
        optimizer.apply([grads[k] for k in present], [params[k] for k in present])
        if any(params[k].size for k in present) or len(present) == len(params):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                padded.apply([grads[k] if k in present else None for k in range(len(params))])
        else:
            padded.apply([grads[k] for k in present], [twins[k] for k in present])
        assert outcome(optimizer, params) == outcome(padded, twins)


# -- state -------------------------------------------------------------------------------------------------------------

STATEFUL = {name: {} for name in ("Nadam", "ScheduleFreeAdamW", "RMSprop", "Ftrl")} | ANY


def stateful_optimizers():
    pairs = st.tuples(st.sampled_from(sorted(STATEFUL)), st.sampled_from(OPTIONS))
    return pairs.map(lambda pair: Maker(pair[0], {"learning_rate": 0.1} | STATEFUL[pair[0]] | pair[1]))


# The rarer rules in one dtype only: what is tested here does not depend on it, and each takes a second to compile.
STATE_SPECS = lists_of_specs(dtypes=st.just("float32"))


@EXAMPLES
@given(stateful_optimizers(), STATE_SPECS, SEEDS)
def test_a_loaded_state_continues_with_the_same_bits(make, chosen, seed):
    params, steps = drawn(chosen, seed, steps=5)
    optimizer, resumed = make(), make(learning_rate=0.7)
    run(optimizer, params, steps[:3])
    copies = [param.copy() for param in params]
    resumed.build(copies)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.learning_rate == optimizer.learning_rate
    for grads in steps[3:]:
        optimizer.apply(grads)
        resumed.apply(grads)
        assert outcome(resumed, copies) == outcome(optimizer, params)


@EXAMPLES
@given(stateful_optimizers(), STATE_SPECS, SEEDS)
def test_a_state_is_a_copy(make, chosen, seed):
    params, steps = drawn(chosen, seed)
    optimizer = make()
    run(optimizer, params, steps[:1])
    state = optimizer.state_dict()
    before = {key: bits(np.asarray(value)) for key, value in state.items()}
    for grads in steps[1:]:
        optimizer.apply(grads)
    assert {key: bits(np.asarray(value)) for key, value in state.items()} == before


WAYS_TO_COPY = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "old pickle": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
}


@EXAMPLES
@given(stateful_optimizers(), STATE_SPECS, st.sampled_from(sorted(WAYS_TO_COPY)), st.booleans(), SEEDS)
def test_a_copy_with_its_parameters_continues_with_the_same_bits(make, chosen, way, packed, seed):
    params, steps = drawn(chosen, seed, steps=4)
    structure = fastopt.pack(params) if packed else params
    optimizer = make()
    optimizer.build(structure)
    for grads in steps[:2]:
        optimizer.apply(grads)
    twin_structure, twin = WAYS_TO_COPY[way]((structure, optimizer))
    for grads in steps[2:]:
        optimizer.apply(grads)
        twin.apply(grads)
        assert outcome(twin, leaves(twin_structure)) == outcome(optimizer, leaves(structure))
    assert not any(np.shares_memory(*pair) for pair in zip(leaves(structure), leaves(twin_structure), strict=True))


def leaves(structure):
    return structure.views if isinstance(structure, fastopt.FlatBuffer) else structure


@EXAMPLES
@given(optimizers(ELEMENTWISE, WITHOUT_NORMS), lists_of_specs(any_axes=True), st.sampled_from(sorted(WAYS_TO_COPY)))
def test_a_copy_keeps_its_bits_whatever_the_order_of_axes(make, chosen, way):
    params, steps = drawn(chosen, 1, steps=4)
    optimizer = make()
    run(optimizer, params, steps[:2])
    twins, twin = WAYS_TO_COPY[way]((params, optimizer))
    for grads in steps[2:]:
        optimizer.apply(grads)
        twin.apply(grads)
    assert outcome(twin, twins) == outcome(optimizer, params)


# -- what options mean -------------------------------------------------------------------------------------------------


@EXAMPLES
@given(optimizers(ANY, ({}, {"global_clipnorm": 1.0}, {"weight_decay": 0.1})), st.integers(2, 5), st.data(), SEEDS)
def test_accumulation_is_a_step_on_the_mean(make, micro_steps, data, seed):
    chosen = data.draw(lists_of_specs(dtypes=st.just("float64")))
    params, steps = drawn(chosen, seed, steps=2 * micro_steps)
    twins = [param.copy() for param in params]
    accumulating, plain = make(gradient_accumulation_steps=micro_steps), make()
    run(accumulating, params, steps)
    windows = [steps[:micro_steps], steps[micro_steps:]]
    run(plain, twins, [[mean(grads) for grads in zip(*window, strict=True)] for window in windows])
    assert accumulating.iterations == plain.iterations == 2
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(param, twin, rtol=1e-9, atol=1e-12)


@EXAMPLES
@given(optimizers(ANY), lists_of_specs(layouts=("C",)), st.integers(-8, 16), st.booleans(), SEEDS)
def test_unscaling_by_a_power_of_two_is_exact(make, chosen, exponent, dynamic, seed):
    params, steps = drawn(chosen, seed)
    twins = [param.copy() for param in params]
    make = Maker(make.name, {key: value for key, value in make.arguments.items() if key != "loss_scale_factor"})
    expected = run(make(), params, steps)
    scaled = [[grad * 2.0**exponent for grad in grads] for grads in steps]
    scale = 2.0**exponent
    unscaling = fastopt.LossScaleOptimizer(make(), scale) if dynamic else make(loss_scale_factor=scale)
    found = run(unscaling, twins, scaled)
    if dynamic and found[3] is not None and expected[3] is None:
        found = (*found[:3], None)  # the finite check has measured the norm
    assert found == expected


def mean(grads):
    return np.mean([np.asarray(grad, np.float64) for grad in grads], axis=0)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate_multiplier": st.sampled_from([0.0, 0.1, 0.5, 3.0]),
        "weight_decay": st.sampled_from([None, 0.0, 0.3]),
        "trainable": st.booleans(),
    },
)


@EXAMPLES
@given(
    optimizers(("SGD", "Adam", "Lamb"), ({}, {"weight_decay": 0.1}, {"clipnorm": 0.5}, {"use_ema": True})),
    st.lists(st.tuples(specs(), SETTINGS), min_size=1, max_size=4),
    SEEDS,
)
def test_overrides_are_optimizers_of_their_own(make, chosen, seed):
    """An optimizer per parameter, at the rate and decay that its override says."""
    params, steps = drawn([spec for spec, _ in chosen], seed)
    twins = [param.copy() for param in params]
    optimizer = make()
    overrides = {f"^{k}$": values for k, (_, values) in enumerate(chosen)}
    optimizer.build(params, overrides=overrides)
    for grads in steps:
        optimizer.apply(grads)
    for k, (twin, (_, values)) in enumerate(zip(twins, chosen, strict=True)):
        if values.get("trainable", True):
            alone = make(
                learning_rate=make.arguments["learning_rate"] * values.get("learning_rate_multiplier", 1.0),
                weight_decay=values.get("weight_decay", make.arguments.get("weight_decay")),
            )
            run(alone, [twin], [[grads[k]] for grads in steps])
    assert bits(*params) == bits(*twins)


SCALES = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4])


def clipped_gradients(grads, **clip):
    """The gradients that a step uses, seen through a step of length 1 from zero."""
    params = [np.zeros_like(grad) for grad in grads]
    optimizer = fastopt.SGD(1.0, **clip)
    optimizer.build(params)
    optimizer.apply(grads)
    return [-param for param in params], optimizer.last_grad_norm


def norm_of(*arrays):
    return np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays))


@st.composite
def scaled_gradients(draw):
    rng = np.random.default_rng(draw(SEEDS))
    chosen = draw(st.lists(st.tuples(SHAPES, DTYPES, SCALES), min_size=1, max_size=4))
    return [np.asarray(scale * rng.normal(size=shape), dtype) for shape, dtype, scale in chosen]


@EXAMPLES
@given(scaled_gradients(), st.sampled_from([0.01, 1.0, 100.0]))
def test_global_clipnorm(grads, limit):
    clipped, norm = clipped_gradients(grads, global_clipnorm=limit)
    exact = norm_of(*grads)
    assert norm == pytest.approx(exact, rel=1e-6)
    if exact < limit:
        assert bits(*clipped) == bits(*grads)
    for before, after in zip(grads, clipped, strict=True):
        np.testing.assert_allclose(after, before * min(1.0, limit / max(exact, 1e-300)), rtol=1e-5)


@EXAMPLES
@given(scaled_gradients(), st.sampled_from([0.01, 1.0, 100.0]))
def test_clipnorm(grads, limit):
    clipped, norm = clipped_gradients(grads, clipnorm=limit)
    assert norm == pytest.approx(norm_of(*grads), rel=1e-6)
    for before, after in zip(grads, clipped, strict=True):
        if norm_of(before) < limit:
            assert bits(before) == bits(after)
        np.testing.assert_allclose(after, before * min(1.0, limit / max(norm_of(before), 1e-300)), rtol=1e-5)


@EXAMPLES
@given(scaled_gradients(), st.sampled_from([0.01, 1.0, 100.0]))
def test_clipvalue(grads, limit):
    clipped, norm = clipped_gradients(grads, clipvalue=limit)
    assert norm is None
    assert bits(*clipped) == bits(*(np.clip(grad, -limit, limit) for grad in grads))


@EXAMPLES
@given(scaled_gradients(), st.sampled_from(["clipnorm", "clipvalue", "global_clipnorm"]), st.sampled_from([0.0, -1.0]))
def test_a_limit_that_is_not_positive_means_none(grads, clip, limit):
    clipped, _ = clipped_gradients(grads, **{clip: limit})
    assert bits(*clipped) == bits(*grads)
