"""The public surface of optimizers, member by member, and what differs from Keras on purpose."""

import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import pickle
from collections import namedtuple
from typing import NamedTuple

import keras_reference
import numpy as np
import oracles
import pytest
import table
from rows import rows

import fastopt
from fastopt import optimizers, schedules
from fastopt.compat import keras_2_2

keras = keras_reference.import_keras()

F32 = np.float32
NAMES = tuple(table.RATES)
SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": ()}
SEVERAL = ("SGD", "Adam", "Lamb", "Adafactor", "Muon", "ScheduleFreeAdamW")  # one of each kind of kernel

# Keras's variables convert without NumPy 2's `copy` keyword.
reads_keras_variables = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
every_optimizer = pytest.mark.parametrize("name", NAMES)
every_optimizer_of_keras = pytest.mark.parametrize("name", table.IN_KERAS)
several_optimizers = pytest.mark.parametrize("name", SEVERAL)


def make(name, /, **options):
    return getattr(fastopt, name)(**({"learning_rate": table.RATES[name]} | options))


def arrays(seed, shapes=None, dtype=F32):
    """Random arrays, by default of `SHAPES`."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in (SHAPES.values() if shapes is None else shapes)]


def ones(*shape, dtype=F32):
    return np.ones(shape, dtype)


def built(optimizer, params=None, **options):
    """The optimizer, and the parameters it was built with."""
    params = arrays(0) if params is None else params
    optimizer.build(params, **options)
    return optimizer, params


def stepped(optimizer, params, first, last, **options):
    for seed in range(first, last):
        optimizer.apply(arrays(seed), **options)
    return bits(params)


def bits(values):
    return [None if value is None else np.ascontiguousarray(value).tobytes() for value in values]


def slot_bits(optimizer):
    return {name: bits(slots) for name, slots in optimizer.slots.items()}


def everything(optimizer, params):
    return bits(params), {key: np.asarray(value).tobytes() for key, value in optimizer.state_dict().items()}


# -- building and stepping ---------------------------------------------------------------------------------------------


def test_paths_are_keys_and_indices():
    structure = {"layers": [{"kernel": ones(2)}, (ones(2), ones(2))], 3: ones(1), "top": ones()}
    optimizer, _ = built(fastopt.SGD(momentum=0.5), structure)
    paths = {name.removesuffix("/momentum") for name in optimizer.state_dict() if "/" in name}
    assert paths == {"layers/0/kernel", "layers/1/0", "layers/1/1", "3", "top"}


def test_a_bare_array_is_a_list_of_one():
    param = ones(3)
    optimizer = fastopt.SGD(0.5)
    optimizer.build(param)
    optimizer.apply(ones(3))
    assert param.tolist() == [0.5] * 3


@every_optimizer
@rows("shapes", [(), ((0,),), ((0, 3), (3, 0, 2)), ((), ()), ((1, 1), (1,))])
def test_empty_lists_empty_arrays_and_single_elements(name, shapes):
    params = arrays(0, shapes)
    optimizer, _ = built(make(name, global_clipnorm=1.0), params)
    optimizer.apply(arrays(1, shapes))
    assert all(np.isfinite(param).all() for param in params)


AXES = {"Fortran": ((3, 4, 5), (2, 1, 0)), "channels last": ((2, 3, 4, 5), (0, 2, 3, 1)), "matrix": ((6, 4), (1, 0))}


@every_optimizer
@rows("order", AXES)
def test_parameters_are_dense_in_any_order_of_axes(name, order):
    shape, axes = AXES[order]
    (plain,) = arrays(0, [shape])
    turned = np.array(plain.transpose(axes), order="C").transpose(np.argsort(axes))
    for params in ([plain], [turned]):
        optimizer, _ = built(make(name, global_clipnorm=1.0), params)
        for seed in (1, 2, 3):
            optimizer.apply(arrays(seed, [shape]))
    np.testing.assert_allclose(turned, plain, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_an_order_of_axes_changes_nothing_else(name):
    """Everything that reaches a parameter: users, subsets, exclusions, averages, copies."""
    shape, found = (3, 4, 5), []
    for order in (np.ascontiguousarray, np.asfortranarray):
        params = [order(array) for array in arrays(0, [shape, shape])]
        optimizer = make(name, use_ema=True, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_list=params[:1])
        optimizer.build(params)
        optimizer.apply(arrays(1, [shape] * 2))
        params[0] *= 2
        optimizer.apply(arrays(2, [shape]), params[1:])
        optimizer.apply(params)
        params, optimizer = copy.deepcopy((params, optimizer))
        optimizer.apply(arrays(3, [shape] * 2), zero_grads=True)
        training = bits(params)
        with optimizer.evaluation_weights():
            assert bits(params) == slot_bits(optimizer)["average"]
        assert bits(params) == training
        optimizer.finalize_variable_values(params)
        found.append(params)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@several_optimizers
@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
def test_frozen_parameters_belong_to_the_user(name, order):
    params = [order(array) for array in arrays(0, [(3, 4, 5)] * 2)]
    optimizer, _ = built(make(name, use_ema=True), params, overrides={"0": {"trainable": False}})
    optimizer.apply(arrays(1, [(3, 4, 5)] * 2))
    for change in (
        lambda: optimizer.apply(arrays(2, [(3, 4, 5)] * 2)),
        optimizer.finalize_variable_values,
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
    ):
        params[0] += 1
        before = params[0].copy()
        change()
        assert (params[0] == before).all()


def test_numpy_scalars_are_gradients_of_0d_parameters():
    params = [np.array(1.0, F32), ones(2)]
    optimizer, _ = built(fastopt.SGD(0.5), params)
    grads = [np.float64(1.0), ones(2)]
    optimizer.apply(grads)
    assert params[0] == 0.5
    assert type(grads[0]) is np.float64


@pytest.mark.parametrize("first_step", [lambda o, g, p: o.apply(g, p), lambda o, g, p: o.apply_gradients(zip(g, p))])  # noqa: B905
def test_the_first_step_builds(first_step):
    optimizer, params = make("Adam"), arrays(0)
    assert not optimizer.built
    first_step(optimizer, arrays(1), params)
    assert optimizer.built
    twin, twins = built(make("Adam"))
    twin.apply(arrays(1))
    assert bits(params) == bits(twins)


def test_apply_gradients_takes_pairs_in_any_order_and_number():
    params, twins = arrays(0), arrays(0)
    optimizer, twin = built(make("Adam"), params)[0], built(make("Adam"), twins)[0]
    grads = arrays(1)
    optimizer.apply_gradients([(grads[2], params[2]), [grads[0], params[0]]])
    twin.apply([grads[0], grads[2]], [twins[0], twins[2]])
    assert bits(params) == bits(twins)
    optimizer.apply_gradients((grad, param) for grad, param in zip(grads, params, strict=True))
    assert optimizer.iterations == 2


def dict_step(params_order, grads_order):
    """Parameters after a step of length 1 from zero, in dicts of the given keys; "c" is there besides."""
    params = {key: np.zeros(2, F32) for key in "abc"}
    grads = {key: np.full(2, number, F32) for number, key in enumerate("abc", 1)}
    optimizer, _ = built(fastopt.SGD(1.0), params)
    optimizer.apply({key: grads[key] for key in grads_order}, {key: params[key] for key in params_order})
    return {key: float(-param[0]) for key, param in params.items()}


@pytest.mark.parametrize("orders", [("ab", "ab"), ("ab", "ba"), ("ba", "ab"), ("cba", "abc"), ("abc", "cab")])
def test_gradients_in_a_dict_go_by_key(orders):
    assert dict_step(*orders) == {key: (number if key in orders[0] else 0) for number, key in enumerate("abc", 1)}


WB, BW = namedtuple("WB", "w b"), namedtuple("BW", "b w")


@dataclasses.dataclass(frozen=True)
class Layer:
    """As `WB`; it has as many fields as arrays, and code of its own that nobody need run again."""

    w: object
    b: object

    def __post_init__(self):
        assert self.w is not None


def in_layer(make):
    return lambda w, b: {"layer": [make(w, b)]}


# How two arrays may be held: the paths of w and b, and what makes it.
HOLDERS = {
    "list": ("0", "1", lambda w, b: [w, b]),
    "tuple": ("0", "1", lambda w, b: (w, b)),
    "dict": ("w", "b", lambda w, b: {"w": w, "b": b}),
    "turned dict": ("w", "b", lambda w, b: {"b": b, "w": w}),
    "namedtuple": ("w", "b", WB),
    "turned namedtuple": ("w", "b", lambda w, b: BW(b, w)),
    "nested": ("0/0", "1", lambda w, b: [[w], b]),
    "nested otherwise": ("0", "1/0", lambda w, b: [w, [b]]),
    "dict in a dict": ("layer/0/w", "layer/0/b", in_layer(lambda w, b: {"w": w, "b": b})),
    "namedtuple in a dict": ("layer/0/w", "layer/0/b", in_layer(WB)),
    "turned namedtuple in a dict": ("layer/0/w", "layer/0/b", in_layer(lambda w, b: BW(b, w))),
}


@rows("by_params", [False, True], ids=["build", "params"])
@pytest.mark.parametrize("held", HOLDERS)
@rows("given", HOLDERS)
def test_gradients_go_where_keras_tree_puts_them(held, given, by_params):
    """``keras.tree.map_structure``, like ``jax.tree.map``, pairs leaves by keys and refuses structures that differ.

    fastopt takes more: what has the same paths, and plain lists in order. Nothing else.
    """
    w, b = np.zeros(2, F32), np.zeros(2, F32)
    *paths, hold = HOLDERS[held]
    *grad_paths, hold_grads = HOLDERS[given]
    params, grads = hold(w, b), hold_grads(ones(2), 2 * ones(2))
    wanted = [-1.0, -2.0]
    try:
        keras.tree.map_structure(np.multiply, params, grads)
    except (TypeError, ValueError):
        is_plain = given in ("list", "tuple")
        if is_plain and held.startswith("turned"):
            wanted.reverse()
        if not (is_plain or paths == grad_paths):
            wanted = [0.0, 0.0]
    else:
        keras.tree.map_structure(lambda param, grad: np.subtract(param, grad, out=param), params, grads)
        wanted, w[:], b[:] = [w[0], b[0]], 0, 0
    optimizer, _ = built(fastopt.SGD(1.0), [b, w] if by_params else params)
    with contextlib.nullcontext() if any(wanted) else pytest.raises(ValueError, match="structure is not the param"):
        optimizer.apply(grads, params if by_params else None)
    assert [w[0], b[0]] == wanted


def test_a_plain_list_is_in_order_whatever_its_arrays_are():
    """Keys that look like indices, and a gradient of another dtype, which is read in another way."""
    for dtype in ("float32", "float64"):
        params = {"1": np.zeros(2, F32), "0": np.zeros(2, F32)}
        optimizer, _ = built(fastopt.SGD(1.0), params)
        optimizer.apply([ones(2), 2 * ones(2, dtype=dtype)])
        assert [param[0] for param in params.values()] == [-1, -2]


@pytest.mark.parametrize("make", [WB, Layer])
def test_namedtuples_and_dataclasses_keep_their_class_and_name_the_state(make):
    """What a class is, and what its fields are called, Python says itself."""
    structure = {"first": make(ones(2), ones(3)), "rest": [make(ones(1), make(ones(), ones(4)))]}
    buffer = fastopt.pack(structure)
    for views in (buffer.views, buffer.like().views, pickle.loads(pickle.dumps(buffer)).views):
        assert type(views["first"]) is make
        assert type(views["rest"][0].b) is make
        assert views["rest"][0].b.b.shape == (4,)
    optimizer, _ = built(fastopt.SGD(1.0, momentum=0.5), structure)
    optimizer.apply(buffer.views)
    assert not structure["first"].w.any()
    names = {name.removesuffix("/momentum") for name in optimizer.state_dict() if "/" in name}
    assert names == {"first/w", "first/b", "rest/0/w", "rest/0/b/w", "rest/0/b/b"} == set(buffer.paths)
    assert copy.deepcopy(optimizer).state_dict().keys() == optimizer.state_dict().keys()


def test_a_dataclass_is_a_structure_by_itself():
    layer = Layer(ones(2), ones(3))
    optimizer, _ = built(fastopt.SGD(1.0), layer)
    optimizer.apply({"b": ones(3), "w": 2 * ones(2)})
    assert (layer.w[0], layer.b[0]) == (-1, 0)


def test_parameters_without_gradient_stay():
    optimizer, params = built(make("Adam", use_ema=True, weight_decay=0.1))
    stepped(optimizer, params, 1, 3)
    before, slots = bits(params), slot_bits(optimizer)
    grad = arrays(3)[0]
    with pytest.warns(UserWarning, match="no gradient for 1, 2"):
        optimizer.apply([grad, None, None])
    assert bits(params)[0] != before[0]
    assert bits(params)[1:] == before[1:]
    assert {name: found[1:] for name, found in slot_bits(optimizer).items()} == {
        name: found[1:] for name, found in slots.items()
    }
    assert optimizer.iterations == 3


@reads_keras_variables
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning", "ignore:no gradient for:UserWarning")
@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"]
)
def test_missing_gradients_follow_keras(options):
    """Whichever are missing, the end of a window empties every accumulator."""
    params, variables = arrays(0), [keras.Variable(param, dtype="float32") for param in arrays(0)]
    ours, theirs = fastopt.SGD(0.5, **options), keras.optimizers.SGD(0.5, **options)
    ours.build(params)
    theirs.build(variables)
    for seed, present in enumerate([(0, 1, 2), (0, 2), (1,), (0, 1), (2,), (0, 1, 2), (1, 2), (0, 1, 2)]):
        grads = [grad if k in present else None for k, grad in enumerate(arrays(seed))]
        ours.apply(grads)
        theirs.apply(grads, variables)
        for param, variable in zip(params, variables, strict=True):
            np.testing.assert_allclose(param, np.array(variable.value), rtol=1e-6, atol=1e-6)


def test_a_step_on_nothing_is_no_step():
    """As in Keras."""
    optimizer, _ = built(fastopt.SGD(), [])
    optimizer.apply([])
    assert optimizer.iterations == 0


def test_no_pairs_build_nothing():
    optimizer, params = fastopt.SGD(), arrays(0)
    with contextlib.suppress(ValueError):
        optimizer.apply_gradients([])
    optimizer.apply_gradients(zip(arrays(1), params, strict=True))
    assert optimizer.iterations == 1


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_no_gradient_at_all_is_an_error(shape):
    optimizer, _ = built(make("Adam"), [ones(*shape)])
    with pytest.raises(ValueError, match="None"):
        optimizer.apply([None])


def test_frozen_parameters_stay_and_need_no_gradient():
    optimizer, params = built(make("Adam", weight_decay=0.1), overrides={"0": {"trainable": False}})
    before = bits(params)
    optimizer.apply([None, *arrays(1)[1:]])
    assert [a == b for a, b in zip(bits(params), before, strict=True)] == [True, False, False]


@pytest.mark.parametrize("layout", ["list", "dict"])
def test_zero_grads_zeroes_the_gradients_of_frozen_parameters(layout):
    hold = list if layout == "list" else lambda leaves: dict(zip(SHAPES, leaves, strict=True))
    optimizer, _ = built(make("Adam"), hold(arrays(0)), overrides={"0|kernel": {"trainable": False}})
    grads = arrays(1)
    optimizer.apply(hold(grads), zero_grads=True)
    assert not any(grad.any() for grad in grads)


def test_a_gradient_may_be_the_parameter():
    params, twins = arrays(0), arrays(0)
    optimizer, twin = built(make("Adam"), params)[0], built(make("Adam"), twins)[0]
    optimizer.apply(params)
    twin.apply([array.copy() for array in twins])
    assert bits(params) == bits(twins)


def test_optimizers_step_in_several_python_threads():
    def trained(seed):
        optimizer, params = built(make("Adam", global_clipnorm=1.0), arrays(seed, [(40_000,), (3, 4)]))
        for step in range(10):
            optimizer.apply(arrays(step, [(40_000,), (3, 4)]))
        return bits(params)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(trained, range(4))) == [trained(seed) for seed in range(4)]


def test_the_cap_on_threads_is_any_number_from_one():
    before = fastopt.get_num_threads()
    try:
        for count in (1, 2, 1000):
            fastopt.set_num_threads(count)
            assert fastopt.get_num_threads() == count
            optimizer, params = built(make("Adam"), arrays(0, [(40_000,)]))
            optimizer.apply(arrays(1, [(40_000,)]))
            assert np.isfinite(params[0]).all()
    finally:
        fastopt.set_num_threads(before)


def test_a_container_that_changes_after_build_is_no_concern_of_the_optimizer():
    params = dict(zip(SHAPES, arrays(0), strict=True))
    optimizer = fastopt.Adam(0.1)
    optimizer.build(params)
    del params["bias"]
    twin = copy.deepcopy(optimizer)
    assert [parameter.path for parameter in twin._parameters] == list(SHAPES)


def test_a_build_that_is_cut_short_leaves_nothing_behind(monkeypatch):
    optimizer, params = fastopt.Adam(0.1), arrays(0)
    optimizer.exclude_from_weight_decay(var_list=params[:1])
    before = dict(optimizer.__dict__)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fastopt.optimizer.Plan", interrupt)
        optimizer.build(params)
    assert optimizer.__dict__ == before
    optimizer.build(params)


# -- iterations and learning rate --------------------------------------------------------------------------------------


def test_iterations_count_updates():
    optimizer, _ = built(make("SGD", gradient_accumulation_steps=3))
    counts = []
    for seed in range(7):
        optimizer.apply(arrays(seed))
        counts.append(optimizer.iterations)
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    assert type(optimizer.iterations) is int


@reads_keras_variables
@pytest.mark.parametrize("name", ["Adam", "Nadam"])
@pytest.mark.parametrize("accumulated", [None, 2])
def test_iterations_may_be_set(name, accumulated):
    """Against real Keras, whose variable is assigned to; it counts micro-steps. Nadam's product stays what it is."""
    params, variables = arrays(0), [keras.Variable(array) for array in arrays(0)]
    options = {"gradient_accumulation_steps": accumulated, "learning_rate": 0.125}
    ours, theirs = getattr(fastopt, name)(**options), getattr(keras.optimizers, name)(**options)
    ours.build(params)
    theirs.build(variables)
    for seed in range(1, 13):
        if seed == 7:
            ours.iterations = np.int64(50)
            theirs._iterations.assign(50 * (accumulated or 1))
        ours.apply(arrays(seed))
        theirs.apply([keras.ops.convert_to_tensor(grad) for grad in arrays(seed)], variables)
    assert ours.iterations == 50 + 6 // (accumulated or 1)
    assert ours.state_dict()["micro_steps"] == 50 * (accumulated or 1) + 6
    for param, variable in zip(params, variables, strict=True):
        np.testing.assert_allclose(param, keras.ops.convert_to_numpy(variable.value), rtol=2e-5, atol=2e-5)


def test_iterations_may_be_set_before_building_and_through_a_wrapper():
    optimizer = fastopt.LossScaleOptimizer(fastopt.SGD(schedules.ExponentialDecay(1.0, 1, 0.5)))
    optimizer.iterations = 3
    _, params = built(optimizer, [np.zeros(2)])
    optimizer.apply([np.full(2, optimizer.dynamic_scale)])
    assert (params[0][0], optimizer.iterations) == (-(0.5**3), 4)


@pytest.mark.parametrize("rate", [0.25, 1, np.float32(0.25), np.float64(0.25), np.int64(1)])
def test_learning_rate_is_a_float(rate):
    assert type(fastopt.SGD(rate).learning_rate) is float
    assert fastopt.SGD(rate).learning_rate == rate
    optimizer = fastopt.SGD()
    optimizer.learning_rate = rate
    assert type(optimizer.learning_rate) is float
    assert optimizer.learning_rate == rate


def test_a_new_learning_rate_holds_from_the_next_step():
    optimizer, params = built(fastopt.SGD(0.5), [ones(1)])
    optimizer.apply([ones(1)])
    optimizer.learning_rate = 0.25
    optimizer.apply([ones(1)])
    assert params[0] == 0.25
    optimizer.learning_rate = schedules.PiecewiseConstantDecay([0, 2], [5.0, 0.125, 5.0])
    assert optimizer.learning_rate == 0.125
    optimizer.apply([ones(1)])
    assert params[0] == 0.125
    with pytest.raises(TypeError, match="schedule"):
        optimizer.learning_rate = 0.1
    optimizer.learning_rate = lambda: 0.0625
    optimizer.learning_rate = 0.125
    optimizer.apply([ones(1)])
    assert params[0] == 0


def test_schedules_count_every_call_of_apply():
    """As Keras: the k-th update of windows of S micro-steps uses schedule(k S - 1)."""
    rates = [0.5**step for step in range(6)]
    schedule = schedules.PiecewiseConstantDecay(list(range(5)), rates)
    optimizer, params = built(fastopt.SGD(schedule, gradient_accumulation_steps=2), [np.zeros(1, F32)])
    seen = []
    for _ in range(6):
        assert optimizer.learning_rate == rates[len(seen)]
        optimizer.apply([ones(1)])
        seen.append(float(-params[0][0]))
    assert seen == [0, rates[1], rates[1], rates[1] + rates[3], rates[1] + rates[3], rates[1] + rates[3] + rates[5]]


CHANGES = {
    "learning_rate": ("Adam", {}, 0.5),
    "beta_1": ("Adam", {}, 0.5),
    "epsilon": ("Adam", {}, 0.5),
    "momentum": ("SGD", {"momentum": 0.9}, 0.5),
    "clipnorm": ("SGD", {"clipnorm": 1.0}, 0.1),
    "clipvalue": ("Adam", {}, 0.1),
    "global_clipnorm": ("Lamb", {"global_clipnorm": 0.1}, None),
    "ema_momentum": ("Adam", {"use_ema": True}, 0.5),
    "ema_overwrite_frequency": ("Adam", {"use_ema": True}, 1),
    "loss_scale_factor": ("Adam", {}, 2.0),
    "weight_decay": ("AdamW", {}, 0.5),
}


@pytest.mark.parametrize("key", CHANGES)
def test_hyper_parameters_may_change_between_steps(key):
    """As in Keras, the next step uses the attribute's new value."""
    name, options, value = CHANGES[key]
    optimizer, params = built(make(name, **options))
    stepped(optimizer, params, 1, 3)
    changed, twins = built(make(name, **(options | {key: value})), [param.copy() for param in params])
    changed.load_state_dict(optimizer.state_dict())
    if key == "learning_rate":
        changed.learning_rate = value
    setattr(optimizer, key, value)
    assert stepped(optimizer, params, 3, 5) == stepped(changed, twins, 3, 5)


# -- slots and norms ---------------------------------------------------------------------------------------------------


def options_and_slots(name):
    """Options with which a rule has all of its slots, and their names."""
    options = {"momentum": 0.9, "centered": True} if name == "RMSprop" else table.OWN[name][0]
    oracle = oracles.RULES[name](**{key: value for key, value in options.items() if key != "weight_decay"})
    return options, {slot for shape in table.SHAPES for slot in oracle.slots(np.zeros(shape), "")}


@every_optimizer
def test_slots_are_live_views_in_the_shape_of_their_parameter(name):
    options, names = options_and_slots(name)
    optimizer, params = built(make(name, use_ema=True, gradient_accumulation_steps=2, **options))
    slots = optimizer.slots
    assert set(slots) == {*names, "average", "gradient_accumulator"}
    for slot, row in slots.items():
        for param, array in zip(params, row, strict=True):
            if array is not None and slot not in ("row", "column") and name != "RowwiseAdagrad":
                assert (array.shape, array.dtype) == (param.shape, param.dtype)
    before = slot_bits(optimizer)
    stepped(optimizer, params, 1, 5)
    again = optimizer.slots
    for slot, row in slots.items():
        assert slot == "gradient_accumulator" or bits(row) != before[slot]
        assert all(a is None or np.shares_memory(a, b) for a, b in zip(row, again[slot], strict=True))


def test_what_is_written_to_a_slot_counts():
    optimizer, params = built(fastopt.SGD(0.5, momentum=0.5), [ones(2)])
    optimizer.slots["momentum"][0][:] = 4.0
    optimizer.apply([np.zeros(2, F32)])
    assert params[0].tolist() == [3.0, 3.0]


def test_adafactor_has_rows_and_columns_and_no_matrix():
    """A deliberate difference: Keras stores the full second moment besides its factors."""
    shapes = {"matrix": (5, 7), "stack": (2, 3, 4), "vector": (6,), "number": ()}
    optimizer, _ = built(make("Adafactor"), dict(zip(shapes, arrays(0, shapes.values()), strict=True)))
    found = {name: [None if a is None else a.shape for a in row] for name, row in optimizer.slots.items()}
    assert found == {
        "row": [(5,), (2, 3), None, None],
        "column": [(7,), (2, 4), None, None],
        "velocity": [None, None, (6,), ()],
    }


def norm_of(grads):
    return float(np.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads)))


@several_optimizers
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_last_grad_norm_is_that_before_clipping(name, clip):
    optimizer, _ = built(make(name, **{clip: 0.01}, loss_scale_factor=4.0))
    assert optimizer.last_grad_norm is None
    optimizer.apply(arrays(1))
    assert optimizer.last_grad_norm == pytest.approx(norm_of(arrays(1)) / 4, rel=1e-6)
    assert type(optimizer.last_grad_norm) is float
    setattr(optimizer, clip, None)
    optimizer.apply(arrays(2))
    assert optimizer.last_grad_norm is None


def test_last_grad_norm_of_an_accumulation_is_that_of_the_mean():
    optimizer, _ = built(make("Adam", global_clipnorm=1.0, gradient_accumulation_steps=2))
    optimizer.apply(arrays(1))
    assert optimizer.last_grad_norm is None
    optimizer.apply(arrays(2))
    mean = [(one + two) / 2 for one, two in zip(arrays(1), arrays(2), strict=True)]
    assert optimizer.last_grad_norm == pytest.approx(norm_of(mean), rel=1e-6)


def test_last_grad_norm_is_that_of_gradients_that_are_there():
    optimizer, params = built(make("Adam", global_clipnorm=1.0))
    optimizer.apply([arrays(1)[1]], [params[1]])
    assert optimizer.last_grad_norm == pytest.approx(norm_of(arrays(1)[1:2]), rel=1e-6)


# -- averages ----------------------------------------------------------------------------------------------------------


@several_optimizers
def test_evaluation_weights_are_the_moving_average(name):
    optimizer, params = built(make(name, use_ema=True, ema_momentum=0.75))
    average = None
    for seed in range(1, 5):
        optimizer.apply(arrays(seed))
        now = [param.astype(np.float64) for param in params]
        average = now if average is None else [0.75 * a + 0.25 * p for a, p in zip(average, now, strict=True)]
    training = bits(params)
    with optimizer.evaluation_weights():
        assert bits(params) == bits(optimizer.slots["average"])
        for param, exact in zip(params, average, strict=True):
            np.testing.assert_allclose(param, exact, rtol=1e-6, atol=1e-7)
    assert bits(params) == training


@pytest.mark.parametrize("name", ["Adam", "ScheduleFreeAdamW"])
def test_training_weights_come_back_after_an_error(name):
    optimizer, params = built(make(name, use_ema=name == "Adam"))
    stepped(optimizer, params, 1, 3)
    before = everything(optimizer, params)
    with pytest.raises(KeyError), optimizer.evaluation_weights():
        for param in params:
            param[...] = 7.0
        raise KeyError("while evaluating")
    assert everything(optimizer, params) == before
    twin, twins = built(make(name, use_ema=name == "Adam"))
    stepped(twin, twins, 1, 3)
    assert stepped(optimizer, params, 3, 5) == stepped(twin, twins, 3, 5)


def test_schedule_free_evaluates_at_its_average():
    """A deliberate difference: Keras has no way to reach x. Defazio et al. 2024, algorithm 1, with Adam's scaling."""
    beta_1, beta_2, rate, epsilon = 0.9, 0.99, 0.1, 1e-8
    params = [np.array([1.0, -2.0, 0.5])]
    z = x = y = params[0].copy()
    velocity = np.zeros(3)
    optimizer, _ = built(fastopt.ScheduleFreeAdamW(rate, beta_1, beta_2, epsilon), params)
    for t in range(1, 21):
        (grad,) = arrays(t, [(3,)], np.float64)
        optimizer.apply([grad])
        velocity = beta_2 * velocity + (1 - beta_2) * grad**2
        z = z - rate * grad / (np.sqrt(velocity / (1 - beta_2**t)) + epsilon)
        x = (1 - 1 / t) * x + z / t
        y = (1 - beta_1) * z + beta_1 * x
        np.testing.assert_allclose(params[0], y, rtol=1e-9)
        with optimizer.evaluation_weights():
            np.testing.assert_allclose(params[0], x, rtol=1e-9)
        np.testing.assert_allclose(params[0], y, rtol=1e-9)


def test_averages_move_and_overwrite_on_updates_only():
    """A deliberate difference: Keras moves and overwrites on every micro-step of an accumulation."""
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 3}
    optimizer, params = built(make("Adam", **options))
    same, moved = [], []
    for seed in range(12):
        before = slot_bits(optimizer)["average"]
        optimizer.apply(arrays(seed))
        moved.append(slot_bits(optimizer)["average"] != before)
        same.append(bits(params) == slot_bits(optimizer)["average"])
    assert moved == [step % 3 == 2 for step in range(12)]
    # Update 1 copies the parameters into the average, update 3 moves it, 2 and 4 write it into the parameters.
    assert same == [True] * 8 + [False] * 3 + [True]


def test_finalize_replaces_the_parameters_for_good():
    optimizer, params = built(make("Adam", use_ema=True))
    stepped(optimizer, params, 1, 4)
    average = slot_bits(optimizer)["average"]
    assert bits(params) != average
    optimizer.finalize_variable_values(params)
    assert bits(params) == average == slot_bits(optimizer)["average"]


STRUCTURES = {
    "list": list,
    "dict": lambda leaves: dict(zip(SHAPES, leaves, strict=True)),
    "nested": lambda leaves: {"layers": [leaves[0], {"b": leaves[1]}], "s": leaves[2]},
    "buffer": fastopt.pack,
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_finalize_takes_what_the_optimizer_was_built_with(structure):
    optimizer, params = built(make("Adam", use_ema=True), STRUCTURES[structure](arrays(0)))
    optimizer.finalize_variable_values(params)
    optimizer.finalize_variable_values()


@pytest.mark.parametrize("name", ["Adam", "ScheduleFreeAdamW"])
def test_finalize_without_average_does_nothing(name):
    optimizer, params = built(make(name))
    before = stepped(optimizer, params, 1, 3)
    optimizer.finalize_variable_values(params)
    assert bits(params) == before


@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_averages_do_not_pass_for_training_weights_in_a_copy(copying):
    optimizer, _ = built(fastopt.Adam(0.1, use_ema=True))
    with optimizer.evaluation_weights(), pytest.raises(RuntimeError, match="leave it, then copy"):
        copying(optimizer)
    copying(optimizer)


# -- loss scale and values that are not finite -------------------------------------------------------------------------


def test_scale_loss():
    assert fastopt.SGD().scale_loss(3.0) == 3.0
    assert fastopt.SGD(loss_scale_factor=8.0).scale_loss(3.0) == 24.0
    assert fastopt.LossScaleOptimizer(fastopt.SGD(), 16.0).scale_loss(3.0) == 48.0
    assert fastopt.SGD(loss_scale_factor=8.0).scale_loss(ones(2)).tolist() == [8.0, 8.0]


BAD = (float("nan"), float("inf"), -float("inf"))


def spoilt(value, seed=9):
    grads = arrays(seed)
    grads[0][1, 1] = value
    return grads


@several_optimizers
@pytest.mark.parametrize("value", BAD)
def test_skip_leaves_everything_but_the_flag(name, value):
    schedule = schedules.ExponentialDecay(0.1, 2, 0.5)
    optimizer, params = built(make(name, learning_rate=schedule, nonfinite="skip", use_ema=True))
    stepped(optimizer, params, 1, 3)
    before, rate = everything(optimizer, params), optimizer.learning_rate
    assert optimizer.last_step_skipped is False
    optimizer.apply(spoilt(value))
    assert optimizer.last_step_skipped is True
    assert everything(optimizer, params) == before
    assert (optimizer.iterations, optimizer.learning_rate) == (2, rate)
    optimizer.apply(arrays(3))
    assert optimizer.last_step_skipped is False
    assert optimizer.iterations == 3


@several_optimizers
def test_raise_leaves_everything(name):
    optimizer, params = built(make(name, nonfinite="raise"))
    stepped(optimizer, params, 1, 3)
    before = everything(optimizer, params)
    with pytest.raises(FloatingPointError, match="gradient 0"):
        optimizer.apply(spoilt(np.inf))
    assert everything(optimizer, params) == before


@every_optimizer
@rows("value", BAD)
def test_propagate_lets_them_in_without_a_word(name, value):
    optimizer, params = built(make(name))
    stepped(optimizer, params, 1, 3)
    optimizer.apply(spoilt(value))
    assert optimizer.iterations == 3
    assert not optimizer.last_step_skipped
    if np.isnan(value) or name not in ("Lion", "Adamax", "Adagrad"):
        assert not np.isfinite(params[0]).all()


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_keeps_nan(clip):
    optimizer, params = built(make("SGD", **{clip: 1.0}))
    optimizer.apply(spoilt(np.nan))
    assert np.isnan(params[0][1, 1])
    if clip == "global_clipnorm":
        assert all(np.isnan(param).all() for param in params)


def test_a_skipped_micro_step_does_not_count_towards_its_window():
    options = {"gradient_accumulation_steps": 2, "nonfinite": "skip"}
    (optimizer, params), (twin, twins) = (built(make("Adam", **options)) for _ in range(2))
    for grads in (arrays(1), spoilt(np.nan), arrays(2)):
        optimizer.apply(grads)
    assert stepped(twin, twins, 1, 3) == bits(params)
    assert optimizer.iterations == 1


# -- weight decay exclusion --------------------------------------------------------------------------------------------


def named():
    return {"dense": {"kernel": ones(2), "bias": ones(2)}, "norm": {"scale": ones(2)}}


def leaves(params):
    return [params["dense"]["kernel"], params["dense"]["bias"], params["norm"]["scale"]]


def decayed(optimizer, params):
    """Which parameters a step without gradients shrinks."""
    before = bits(leaves(params))
    optimizer.apply([np.zeros(2, F32)] * 3)
    return [one != two for one, two in zip(before, bits(leaves(params)), strict=True)]


EXCLUSIONS = {
    "identity": (lambda params: {"var_list": [params["dense"]["bias"]]}, [True, False, True]),
    "short name": (lambda params: {"var_names": ["bias"]}, [True, False, True]),
    "whole path": (lambda params: {"var_names": ["^dense/", "scale$"]}, [False, False, False]),
    "layer": (lambda params: {"var_names": ["norm"]}, [True, True, False]),
    "both": (lambda params: {"var_list": [params["norm"]["scale"]], "var_names": ["dense/k"]}, [False, True, False]),
    "nothing": (lambda params: {}, [True, True, True]),
}


@pytest.mark.parametrize("exclusion", EXCLUSIONS)
@pytest.mark.parametrize("when", ["before build", "after build"])
def test_exclusion_from_weight_decay(exclusion, when):
    """A deliberate difference: names match the whole path, in Keras the variable's short name only."""
    chosen, expected = EXCLUSIONS[exclusion]
    optimizer, params = make("AdamW", weight_decay=0.5), named()
    if when == "before build":
        optimizer.exclude_from_weight_decay(**chosen(params))
    optimizer.build(params)
    if when == "after build":
        decayed(optimizer, params)
        optimizer.exclude_from_weight_decay(**chosen(params))
    assert decayed(optimizer, params) == expected
    config = json.loads(json.dumps(optimizer.get_config()))
    again = fastopt.AdamW.from_config(config)
    again.build(params)
    assert decayed(again, params) == expected
    assert again.get_config() == optimizer.get_config()


def test_each_exclusion_replaces_the_last_and_keeps_the_state():
    optimizer, params = built(make("AdamW", weight_decay=0.5, use_ema=True), named())
    twin, twins = built(make("AdamW", weight_decay=0.5, use_ema=True), named())
    for made, held in ((optimizer, params), (twin, twins)):
        for seed in range(3):
            made.apply(arrays(seed, [(2,)] * 3))
        assert decayed(made, held) == [True] * 3
    before = everything(optimizer, leaves(params))
    optimizer.exclude_from_weight_decay(var_names=["dense"])
    assert everything(optimizer, leaves(params)) == before
    optimizer.exclude_from_weight_decay(var_names=["norm"])
    optimizer.exclude_from_weight_decay()
    assert decayed(optimizer, params) == decayed(twin, twins) == [True] * 3
    assert everything(optimizer, leaves(params)) == everything(twin, leaves(twins))


def test_an_exclusion_counts_more_than_an_override():
    optimizer, params = make("AdamW", weight_decay=0.5), named()
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    optimizer.build(params, overrides={"dense": {"weight_decay": 0.5}, "norm": {"weight_decay": None}})
    assert decayed(optimizer, params) == [False, True, False]


def test_an_exclusion_by_identity_survives_a_copy():
    optimizer, params = make("AdamW", weight_decay=0.5), named()
    optimizer.exclude_from_weight_decay(var_list=[params["dense"]["bias"]])
    for way in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        unbuilt, twins = way((optimizer, params))
        unbuilt.build(twins)
        assert decayed(unbuilt, twins) == [True, False, True]
        again, held = way((unbuilt, twins))
        assert decayed(again, held) == [True, False, True]


# -- configs, repr, names ----------------------------------------------------------------------------------------------

# All own hyper-parameters of every class away from their defaults, twice, with different common ones.
COMMON = (
    {"clipnorm": 0.5, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    {"global_clipnorm": 2.0, "loss_scale_factor": 8.0, "gradient_accumulation_steps": 4, "nonfinite": "skip"},
)
CONFIGURED = [(name, {**COMMON[k], **table.OWN[name][k], "name": f"mine_{k}"}) for name in NAMES for k in range(2)]
CONFIGURED += [
    ("Adam", {"learning_rate": schedules.CosineDecay(0.1, 100, warmup_target=0.2, warmup_steps=5)}),
    ("Adam", {"learning_rate": np.float32(0.1), "beta_1": np.float64(0.5), "epsilon": np.float32(1e-3)}),
    ("SGD", {"learning_rate": 1, "momentum": 1}),
]
configured = pytest.mark.parametrize(
    ("name", "options"), CONFIGURED, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CONFIGURED)]
)


def wrapped(optimizer):
    return fastopt.LossScaleOptimizer(optimizer, 64.0, 7, "scaled", minimum_scale=1.0, maximum_scale=128.0)


@configured
def test_configs_are_json_and_come_back_equal(name, options):
    optimizer = make(name, **options)
    config = optimizer.get_config()
    read = json.loads(json.dumps(config))
    again = type(optimizer).from_config(read)
    assert type(again) is type(optimizer)
    assert json.loads(json.dumps(again.get_config())) == read
    for key, value in options.items():
        if key != "learning_rate":
            assert getattr(again, key) == value
    if "learning_rate" in options and isinstance(options["learning_rate"], schedules.LearningRateSchedule):
        assert again._learning_rate == options["learning_rate"]


@configured
def test_what_repr_shows_can_be_evaluated(name, options):
    optimizer = make(name, **{key: value for key, value in options.items() if key != "name"})
    again = eval(repr(optimizer), {**vars(fastopt), **vars(schedules), **vars(np), "np": np})
    assert again.get_config() == optimizer.get_config()


def test_what_repr_of_a_wrapper_shows_can_be_evaluated():
    optimizer = fastopt.LossScaleOptimizer(make("Adam", beta_1=0.5), 64.0, 7, minimum_scale=1.0)
    again = eval(repr(optimizer), vars(fastopt))
    assert again.get_config() == optimizer.get_config()


def test_repr_is_short():
    assert repr(fastopt.SGD(0.5)) == "SGD(learning_rate=0.5, momentum=0.0, nesterov=False)"


def test_a_function_is_in_no_config():
    for optimizer in (fastopt.SGD(lambda: 0.1), fastopt.Adam(beta_1=lambda: 0.9)):
        with pytest.raises(TypeError, match=r"(learning_rate|beta_1).*function"):
            optimizer.get_config()


@every_optimizer
def test_get_serialize_and_deserialize_know_every_name(name):
    for spelling in (name, name.lower(), name.upper()):
        assert type(optimizers.get(spelling)) is getattr(fastopt, name)
    optimizer = make(name, clipnorm=0.5)
    serialized = json.loads(json.dumps(optimizers.serialize(optimizer)))
    for read in (optimizers.deserialize, optimizers.get):
        assert type(read(serialized)) is type(optimizer)
        assert read(serialized).get_config() == optimizer.get_config()
    assert optimizers.get(optimizer) is optimizer
    kept = copy.deepcopy(serialized)
    optimizers.deserialize({**serialized, "class_name": name.upper()})
    assert serialized == kept


def test_get_none_is_none():
    assert optimizers.get(None) is None


def test_wrappers_are_serialized_with_what_they_wrap():
    optimizer = wrapped(make("Lamb", beta_1=0.5))
    serialized = json.loads(json.dumps(optimizers.serialize(optimizer)))
    again = optimizers.get(serialized)
    assert type(again) is fastopt.LossScaleOptimizer
    assert again.get_config() == optimizer.get_config()
    assert type(again.inner_optimizer) is fastopt.Lamb


@reads_keras_variables
@every_optimizer_of_keras
def test_configs_of_keras_are_understood(name):
    theirs = getattr(keras.optimizers, name)(learning_rate=0.125)
    ours = optimizers.deserialize(keras.optimizers.serialize(theirs))
    assert type(ours) is getattr(fastopt, name)
    assert {key: ours.get_config()[key] for key in theirs.get_config()} == theirs.get_config()


def test_a_config_tells_a_class_of_an_old_release_from_todays():
    wrapped = fastopt.LossScaleOptimizer(keras_2_2.SGD(lr=0.5, decay=0.25))
    config = json.loads(json.dumps(optimizers.serialize(wrapped)))
    again = optimizers.deserialize(config).inner_optimizer
    assert type(again) is keras_2_2.SGD and again.get_config() == wrapped.inner_optimizer.get_config()


def test_a_users_signature_says_nothing_of_ranges():
    """A decorator's ``__signature__`` does not make an ``__init__`` one of ours, nor are its annotations looked at."""

    def init(self, beta_1: float = 0.9, other: "NowhereDefined" = None):  # noqa: F821
        fastopt.Adam.__init__(self, beta_1=beta_1)

    def decorated(*arguments, **kwargs):
        return init(*arguments, **kwargs)

    functools.update_wrapper(decorated, init).__signature__ = inspect.signature(init)
    kind = type("Own", (fastopt.Adam,), {"__init__": decorated, "__doc__": "Parameters\n----------\nbeta_1 : float\n"})
    assert kind.__doc__.count(" : ") == 1
    for beta_1 in (0, lambda: 0.5):
        optimizer, params = built(kind(beta_1), [ones(2)])
        optimizer.apply([ones(2)])
        assert params[0].tolist() != [1, 1]
    with pytest.raises(ValueError, match="beta_1 must be in"):
        kind(5.0)


# -- against the signatures of Keras -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*table.IN_KERAS, "LossScaleOptimizer"])
def test_signatures_are_those_of_keras(name):
    ours = inspect.signature(getattr(fastopt, name)).parameters.values()
    theirs = inspect.signature(getattr(keras.optimizers, name)).parameters.values()
    positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [(p.name, p.default) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in ours)


@reads_keras_variables
@every_optimizer_of_keras
def test_configs_hold_all_that_those_of_keras_hold(name):
    ours, theirs = getattr(fastopt, name)().get_config(), getattr(keras.optimizers, name)().get_config()
    assert theirs.keys() <= ours.keys()
    # Keras numbers its names, rounds its learning rate to float32, and has an empty list for no layers.
    assert ours["learning_rate"] == pytest.approx(theirs["learning_rate"], rel=1e-6)
    for key in theirs.keys() - {"name", "learning_rate", "exclude_layers"}:
        assert ours[key] == theirs[key], key


@reads_keras_variables
def test_config_of_the_wrapper_holds_all_that_that_of_keras_holds():
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()).get_config()
    ours = fastopt.LossScaleOptimizer(fastopt.Adam()).get_config()
    assert theirs.keys() <= ours.keys()
    assert ours["initial_scale"] == theirs["initial_scale"]
    assert ours["dynamic_growth_steps"] == theirs["dynamic_growth_steps"]


# -- state -------------------------------------------------------------------------------------------------------------


@every_optimizer
@rows("wrap", [False, True])
def test_state_survives_a_file(name, wrap, tmp_path):
    options = {"use_ema": True, "gradient_accumulation_steps": 2, **options_and_slots(name)[0]}

    def fresh():
        return wrapped(make(name, **options)) if wrap else make(name, **options)

    optimizer, params = built(fresh())
    stepped(optimizer, params, 1, 6)
    np.savez(tmp_path / "state.npz", **optimizer.state_dict())
    resumed, twins = built(fresh(), [param.copy() for param in params])
    with np.load(tmp_path / "state.npz") as file:
        resumed.load_state_dict(file)
    assert everything(resumed, twins) == everything(optimizer, params)
    assert stepped(resumed, twins, 6, 9) == stepped(optimizer, params, 6, 9)
    assert everything(resumed, twins) == everything(optimizer, params)


def test_state_is_flat_and_counters_are_numbers():
    optimizer, _ = built(make("Nadam", use_ema=True), {"layers": [ones(2)]})
    optimizer.apply([ones(2)])
    state = optimizer.state_dict()
    assert {key for key, value in state.items() if isinstance(value, np.ndarray)} == {
        "layers/0/momentum", "layers/0/velocity", "layers/0/average"
    }  # fmt: skip
    assert type(state["iterations"]) is int
    assert state["iterations"] == 1
    assert all(type(value) in (int, float, np.ndarray) for value in state.values())


def test_a_lenient_load_takes_what_fits():
    optimizer, params = built(make("Adam"))
    stepped(optimizer, params, 1, 3)
    state = optimizer.state_dict()
    fresh, _ = built(make("Adam"))
    fresh.load_state_dict({"0/momentum": state["0/momentum"], "9/norm": ones(3), "iterations": 2}, strict=False)
    assert fresh.iterations == 2
    assert bits(fresh.slots["momentum"])[0] == bits([state["0/momentum"]])[0]
    assert not fresh.slots["velocity"][0].any()


def test_arrays_of_another_dtype_are_cast():
    optimizer, params = built(make("Adam"))
    stepped(optimizer, params, 1, 3)
    state = {key: np.asarray(value, np.float64) for key, value in optimizer.state_dict().items()}
    fresh, twins = built(make("Adam"), [param.copy() for param in params])
    fresh.load_state_dict(state)
    assert stepped(fresh, twins, 3, 5) == stepped(optimizer, params, 3, 5)


@every_optimizer
def test_a_second_optimizer_does_not_disturb_the_first(name):
    alone, alone_params = built(make(name))
    expected = stepped(alone, alone_params, 1, 4)
    (one, params), (two, others) = built(make(name)), built(make(name, learning_rate=0.5))
    for seed in (1, 2, 3):
        stepped(one, params, seed, seed + 1)
        stepped(two, others, seed + 5, seed + 6)
    assert bits(params) == expected


# -- callables ---------------------------------------------------------------------------------------------------------

COEFFICIENTS = [
    ("SGD", "momentum", {}),
    ("RMSprop", "rho", {}),
    ("RMSprop", "momentum", {}),
    ("RMSprop", "epsilon", {}),
    ("Adagrad", "epsilon", {}),
    ("Adadelta", "rho", {}),
    ("Adadelta", "epsilon", {}),
    *[
        (name, key, {})
        for name in ("Adam", "AdamW", "Adamax", "Nadam", "Lamb")
        for key in ("beta_1", "beta_2", "epsilon")
    ],
    ("Lion", "beta_1", {}),
    ("Lion", "beta_2", {}),
    *[("ScheduleFreeAdamW", key, {}) for key in ("beta_1", "beta_2", "epsilon")],
]


@pytest.mark.parametrize(("name", "key", "options"), COEFFICIENTS, ids=lambda value: str(value) if value else "")
def test_coefficients_may_be_callables(name, key, options):
    """A deliberate difference: Keras documents it and fails."""
    (constant, params), (called, twins) = (
        built(make(name, **options, **{key: value})) for value in (0.625, lambda: 0.625)
    )
    assert stepped(called, twins, 1, 4) == stepped(constant, params, 1, 4)


def test_a_callable_is_asked_at_every_step():
    answers = {"rate": 0.5, "momentum": 0.5}
    optimizer, params = built(
        fastopt.SGD(lambda: answers["rate"], momentum=lambda: answers["momentum"]), [np.zeros(1, F32)]
    )
    optimizer.apply([ones(1)])
    assert optimizer.learning_rate == 0.5
    answers.update(rate=0.25, momentum=1.0)
    assert optimizer.learning_rate == 0.25
    optimizer.apply([ones(1)])
    assert params[0] == -0.5 - 0.75


def test_a_callable_is_asked_once_per_step_however_many_groups_there_are():
    answers = iter([0.5, 0.5, 0.25])  # at the build, then at each step
    optimizer = fastopt.Adam(1.0, beta_1=lambda: next(answers))
    built(optimizer, arrays(0), overrides={"0": {"learning_rate_multiplier": 2.0}})
    stepped(optimizer, arrays(0), 1, 3)
    assert next(answers, None) is None


@pytest.mark.parametrize("kind", [np.float32, np.array], ids=["scalar", "0-d array"])
def test_constant_tensors_without_axes_are_numbers(kind):
    rate, beta = kind(0.5), kind(0.625)
    optimizer = fastopt.Adam(rate, beta_1=beta, beta_2=lambda: kind(0.75))
    assert repr(optimizer).startswith("Adam(learning_rate=0.5, beta_1=0.625")
    (given, params), (plain, twins) = built(optimizer), built(fastopt.Adam(0.5, beta_1=0.625, beta_2=0.75))
    assert stepped(given, params, 1, 4) == stepped(plain, twins, 1, 4)


# -- a user's own rule -------------------------------------------------------------------------------------------------


class OwnHeavyBallScalars(NamedTuple):
    learning_rate: float
    momentum: float


def heavy_ball(param, grad, slots, s):
    (velocity,) = slots
    velocity = s.momentum * velocity + grad
    return param - s.learning_rate * velocity, (velocity,)


OwnHeavyBall = fastopt.register_rule(
    "OwnHeavyBall",
    heavy_ball,
    OwnHeavyBallScalars,
    slots={"velocity": 0.0},
    defaults={"learning_rate": 0.01, "momentum": 0.9},
    scalars=lambda h, learning_rate, t: OwnHeavyBallScalars(learning_rate, h["momentum"]),
)


def test_a_rule_of_ones_own_is_an_optimizer_like_any_other():
    optimizer, params = built(OwnHeavyBall(0.1, global_clipnorm=1.0, use_ema=True))
    exact, velocity = arrays(0, dtype=np.float64), [np.zeros(shape) for shape in SHAPES.values()]
    for seed in range(1, 6):
        grads = arrays(seed)
        optimizer.apply(grads)
        factor = min(1.0, 1.0 / norm_of(grads))
        velocity = [0.9 * v + factor * g for v, g in zip(velocity, grads, strict=True)]
        exact = [p - 0.1 * v for p, v in zip(exact, velocity, strict=True)]
    for param, reference in zip(params, exact, strict=True):
        np.testing.assert_allclose(param, reference, rtol=1e-5, atol=1e-6)
    assert set(optimizer.slots) == {"velocity", "average"}


def test_a_rule_of_ones_own_has_config_name_and_copies():
    optimizer, params = built(OwnHeavyBall(0.1, momentum=0.5, weight_decay=0.1))
    stepped(optimizer, params, 1, 3)
    again = optimizers.get(json.loads(json.dumps(optimizers.serialize(optimizer))))
    assert type(again) is OwnHeavyBall
    assert again.get_config() == optimizer.get_config()
    assert type(optimizers.get("ownheavyball")) is OwnHeavyBall
    twins, twin = pickle.loads(pickle.dumps((params, optimizer)))
    assert stepped(twin, twins, 3, 5) == stepped(optimizer, params, 3, 5)


class UnitScalars(NamedTuple):
    learning_rate: float
    weight: float


def squares(param, grad, slots, s):
    (mean,) = slots
    mean = mean + s.weight * (grad - mean)
    return (mean * mean,), (mean,)


def inverse_norm(sums, n, s):
    return 1.0 / np.sqrt(sums[0])


def unit_step(param, grad, slots, extra, s):
    (mean,) = slots
    return param - s.learning_rate * extra * mean


UnitStep = fastopt.register_rule(
    "UnitStep",
    squares,
    UnitScalars,
    slots={"mean": 0.0},
    defaults={"learning_rate": 0.1, "weight": 0.5},
    between=inverse_norm,
    second=unit_step,
)


def test_a_rule_of_ones_own_may_have_two_phases():
    """Steps of one length per parameter along a running mean; scalars by the names of their fields."""
    shapes = [(100, 100), (3,)]
    optimizer, params = built(UnitStep(weight=lambda: 0.25), arrays(0, shapes))
    exact, means = arrays(0, shapes, np.float64), [0.0, 0.0]
    for seed in range(1, 4):
        optimizer.apply(arrays(seed, shapes))
        means = [mean + 0.25 * (grad - mean) for mean, grad in zip(means, arrays(seed, shapes), strict=True)]
        exact = [param - 0.1 * mean / np.linalg.norm(mean) for param, mean in zip(exact, means, strict=True)]
    for param, reference in zip(params, exact, strict=True):
        np.testing.assert_allclose(param, reference, rtol=1e-5, atol=1e-6)


def test_a_rule_of_ones_own_may_call_its_arguments_anything():
    def plain(p, g, nothing, numbers):
        return p - numbers.learning_rate * g, nothing

    plain_class = fastopt.register_rule("PlainNames", plain, OwnHeavyBallScalars, defaults={"momentum": 0.0})
    optimizer, params = built(plain_class(0.5), [ones(2)])
    optimizer.apply([ones(2)])
    assert params[0].tolist() == [0.5, 0.5]


def test_a_loss_scale_optimizer_has_the_hyper_parameters_of_its_inner_one():
    optimizer = fastopt.LossScaleOptimizer(fastopt.Adam(beta_1=0.5, use_ema=True))
    assert (optimizer.beta_1, optimizer.use_ema) == (0.5, True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = optimizer.nothing
    optimizer.clipnorm = 2.0
    optimizer.learning_rate = 0.25
    assert (optimizer.inner_optimizer.clipnorm, optimizer.inner_optimizer.learning_rate) == (2.0, 0.25)
    optimizer.dynamic_scale = 4.0
    assert optimizer.scale_loss(1.0) == 4.0


# -- loss scaling against Keras ----------------------------------------------------------------------------------------


def keras_steps(inner, steps, params, **options):
    """(scale, counter, iterations, parameters) of Keras after every step."""
    variables = [keras.Variable(param, dtype="float32") for param in params]
    optimizer = keras.optimizers.LossScaleOptimizer(inner, **options)
    optimizer.build(variables)
    found = []
    for grads in steps:
        optimizer.apply(list(grads))
        values = [np.array(variable.value) for variable in variables]
        counters = float(optimizer.dynamic_scale), int(optimizer.step_counter), int(optimizer.iterations)
        found.append((*counters, values))
    return found


def our_steps(inner, steps, params, **options):
    optimizer = fastopt.LossScaleOptimizer(inner, **options)
    optimizer.build(params)
    found = []
    for grads in steps:
        optimizer.apply(grads)
        values = [param.copy() for param in params]
        found.append((optimizer.dynamic_scale, optimizer.step_counter, optimizer.iterations, values))
    return found


def scaled_gradients(count, seed):
    """Of losses scaled by hundreds, some steps with a NaN or Inf."""
    steps = [[np.asarray(100 * grad, F32) for grad in arrays(seed + k)] for k in range(count)]
    for k, value in ((3, np.inf), (4, np.nan), (11, -np.inf), (19, np.nan)):
        steps[k][k % 2][(0,) * steps[k][k % 2].ndim] = value
    return steps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 3, "global_clipnorm": 1.0, "weight_decay": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 3},
    ],
    ids=["plain", "accumulation", "accumulation, clipping and decay", "average"],
)
@reads_keras_variables
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_loss_scaling_follows_keras(name, options):
    steps = scaled_gradients(24, 1)
    wrapper = {"initial_scale": 256.0, "dynamic_growth_steps": 4}
    rate = {"learning_rate": table.RATES[name]}
    theirs = keras_steps(getattr(keras.optimizers, name)(**rate, **options), steps, arrays(0), **wrapper)
    ours = our_steps(getattr(fastopt, name)(**rate, **options), steps, arrays(0), **wrapper)
    assert [step[:3] for step in ours] == [step[:3] for step in theirs]
    for step, reference in zip(ours, theirs, strict=True):
        for param, expected in zip(step[3], reference[3], strict=True):
            np.testing.assert_allclose(param, expected, rtol=2e-5, atol=2e-6)


def test_the_scale_stays_between_its_bounds():
    options = {"minimum_scale": 1.0, "maximum_scale": 8.0}
    optimizer, _ = built(fastopt.LossScaleOptimizer(fastopt.SGD(0.1), 4.0, 1, **options))
    found = []
    for bad in (False, False, False, True, True, True, True, True, False):
        optimizer.apply(spoilt(np.inf) if bad else arrays(1))
        found.append(optimizer.dynamic_scale)
    assert found == [8.0, 8.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("bad", [True, False])
def test_without_bounds_the_scale_may_leave_the_range_of_float32(bad):
    """As in Keras, a run of steps of one kind ends in no error: here 200 of them, in float32."""
    params = [ones(2)]
    optimizer, _ = built(fastopt.LossScaleOptimizer(fastopt.SGD(0.0), dynamic_growth_steps=1), params)
    grad = np.full(2, np.inf if bad else 0.0, F32)
    for _ in range(200):
        optimizer.apply([grad])
    assert optimizer.last_step_skipped is bad
    assert params[0].tolist() == [1.0, 1.0]


def test_the_wrapper_shows_what_it_wraps():
    inner = make("AdamW", weight_decay=0.5, use_ema=True, global_clipnorm=1.0)
    optimizer = fastopt.LossScaleOptimizer(inner, 4.0)
    params = named()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(params, overrides={"norm": {"weight_decay": 0.0}})
    assert optimizer.built
    assert decayed(optimizer, params) == [True, False, False]
    optimizer.apply([4 * grad for grad in arrays(1, [(2,)] * 3)])
    assert optimizer.last_grad_norm == pytest.approx(norm_of(arrays(1, [(2,)] * 3)), rel=1e-6)
    assert (optimizer.iterations, inner.iterations, optimizer.step_counter) == (2, 2, 2)
    optimizer.learning_rate = 0.25
    assert inner.learning_rate == optimizer.learning_rate == 0.25
    assert slot_bits(optimizer) == slot_bits(inner)
    training = bits(leaves(params))
    with optimizer.evaluation_weights():
        assert bits(leaves(params)) == slot_bits(inner)["average"]
    assert bits(leaves(params)) == training
    optimizer.finalize_variable_values()
    assert bits(leaves(params)) == slot_bits(inner)["average"]
    again, held = pickle.loads(pickle.dumps((optimizer, params)))
    assert everything(again, leaves(held)) == everything(optimizer, leaves(params))


# -- deliberate differences from Keras that no test above shows --------------------------------------------------------


def test_learning_rate_may_be_an_int():
    optimizer, params = built(fastopt.SGD(1), [ones(2)])
    optimizer.apply([ones(2)])
    assert params[0].tolist() == [0.0, 0.0]


def test_adafactor_stays_finite_where_a_zero_row_meets_a_zero_column():
    (grad,) = arrays(1, [(4, 5)])
    grad[2] = grad[:, 3] = 0
    for dtype in ("float32", "float64"):
        optimizer, params = built(make("Adafactor"), arrays(0, [(4, 5)], dtype))
        before = params[0].copy()
        optimizer.apply([grad])
        assert np.isfinite(params[0]).all()
        assert (params[0] != before).any()


@every_optimizer
@rows("argument", ["decay", "lr", "momentun"])
def test_unknown_arguments_are_errors(name, argument):
    hint = "valid ones are" if argument == "momentun" else r"fastopt\.compat"
    with pytest.raises(TypeError, match=rf"{name}.*'{argument}'.*{hint}"):
        getattr(fastopt, name)(**{argument: 0.1})
