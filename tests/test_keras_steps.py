"""fastopt.keras against Keras's own optimizers, the same gradients, on the NumPy and torch backends."""

import contextlib
import copy
import importlib
import pickle
import threading

import numpy as np
import pytest
from keras_cases import (
    CASES,
    CLOSE,
    COPY_KEYWORD,
    NAMES,
    ON_BOTH_BACKENDS,
    SHAPES,
    STEPS,
    TORCH_SCHEDULE_FREE,
    Case,
    assert_same_state,
    assert_same_variables,
    falls_back,
    gradients,
    is_fused,
    keras_at_work,
    over,
    pair,
    parameters,
    tensors,
    train,
    values,
    variables_of,
)
from rows import rows

import fastopt

pytestmark = [pytest.mark.filterwarnings(COPY_KEYWORD), *ON_BOTH_BACKENDS]

ADAM = Case("Adam", "Adam", {"learning_rate": 0.01}, False)
EVERY_NAME = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def on_the_backend(backend, keras):
    assert keras.backend.backend() == backend


# -- the same numbers --------------------------------------------------------------------------------------------------


@over(CASES)
def test_steps_are_those_of_keras(case, keras, fast, backend):
    if case.optimizer == "ScheduleFreeAdamW" and backend == "torch":
        pytest.skip(TORCH_SCHEDULE_FREE)
    (ours, our_variables), (theirs, their_variables) = pair(case, keras, fast)
    grads = gradients(STEPS)
    train(ours, keras, our_variables, grads)
    train(theirs, keras, their_variables, grads)
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2}], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Lion", "Muon"])
def test_infinite_parameters(name, options, keras, fast):
    """Without weight decay Keras keeps what its rules keep."""
    options = options | ({"weight_decay": None, "adam_weight_decay": None} if name == "Muon" else {})
    arrays, (grads,) = parameters(), gradients(1)
    for array, grad in zip(arrays[:2], grads[:2], strict=True):
        array.flat[:2], grad.flat[:2] = (-np.inf, np.inf), 0
    case = Case(name, name, {"learning_rate": 0.01, **options}, False)
    (ours, our_variables), (theirs, their_variables) = pair(case, keras, fast, arrays)
    train(ours, keras, our_variables, [grads] * 3)
    train(theirs, keras, their_variables, [grads] * 3)
    assert is_fused(ours)
    assert np.isinf(our_variables[0].numpy()).sum() == 2
    assert_same_variables(our_variables, their_variables)


@pytest.mark.parametrize("name", ["Adam", "Nadam", "Lamb", "ScheduleFreeAdamW"])
def test_a_square_that_overflows(name, keras, fast):
    """Keras gives NaN for good; here it is as with fastopt on arrays, which is held against torch."""
    grads = [[np.array([1, value], np.float32)] for value in (1, 3e19, 1, 1)]
    (variable,) = variables = variables_of(keras, [np.ones(2, np.float32)])
    train(getattr(fast, name)(0.1), keras, variables, grads)
    array, optimizer = np.ones(2, np.float32), getattr(fastopt, name)(0.1)
    optimizer.build([array])
    for step in grads:
        optimizer.apply(step)
    assert np.isfinite(array).all()
    np.testing.assert_array_equal(variable.numpy(), array)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in ("SGD", "Adam", "Lamb"))) for name in NAMES]
)
def test_float64_is_computed_in_float64(name, keras, fast):
    """Keras's own has some factors in float32: compared with the same optimizer on arrays, bit for bit."""
    import fastopt

    grads = [[grad.astype(np.float64) for grad in step] for step in gradients(10)]
    options = {"learning_rate": 2.0**-7, "global_clipnorm": 1.0}
    if name in ("Adagrad", "Ftrl"):
        options["initial_accumulator_value"] = 0.125  # Keras rounds it to float32, on its NumPy backend
    variables = variables_of(keras, parameters(), dtype="float64")
    optimizer = getattr(fast, name)(**options)
    train(optimizer, keras, variables, grads)
    arrays = [np.array(array, np.float64) for array in parameters()]
    plain = getattr(fastopt, name)(**options)
    plain.build(arrays)
    for step in grads:
        plain.apply(step)
    assert is_fused(optimizer)
    for variable, array in zip(variables, arrays, strict=True):
        assert variable.numpy().dtype == np.float64
        np.testing.assert_array_equal(variable.numpy(), array)


@EVERY_NAME
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_empty_variables(name, keras, fast):
    shapes = ((3, 2), (0,), (0, 5), (2,))
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters(shapes))
        train(getattr(module, name)(learning_rate=0.01), keras, variables, gradients(1, shapes))
        found.append(values(variables))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@EVERY_NAME
def test_variables_and_config_are_those_of_keras(name, keras, fast):
    options = {"use_ema": True, "gradient_accumulation_steps": 2, "name": "same"}
    ours, theirs = (getattr(module, name)(**options) for module in (fast, keras.optimizers))
    assert ours.get_config() == theirs.get_config()
    for optimizer in (ours, theirs):
        optimizer.build(variables_of(keras, parameters()))
    described = [[_description(variable) for variable in optimizer.variables] for optimizer in (ours, theirs)]
    assert described[0] == described[1]


def _description(variable):
    """Nadam's product has no name of its own: Keras numbers it."""
    path = "" if variable.path.startswith("variable") else variable.path
    return path, variable.shape, variable.dtype


def test_average_moves_at_real_updates_only(keras, fast):
    """A deliberate difference: Keras moves it at every micro-step."""
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=3)
    plain = fast.Adam(0.1, use_ema=True, ema_momentum=0.5)
    alone = variables_of(keras, parameters())
    grads = gradients(4)
    for number, step in enumerate(grads, 1):
        for micro in range(3):
            train(optimizer, keras, variables, [step])
            if micro < 2 and number == 1:
                assert not any(v.numpy().any() for v in optimizer._model_variables_moving_average)
        train(plain, keras, alone, [step])
    assert_same_variables(variables, alone)
    assert_same_variables(optimizer._model_variables_moving_average, plain._model_variables_moving_average)


# -- registered, serialised, copied ------------------------------------------------------------------------------------


@EVERY_NAME
def test_round_trips_of_the_config(name, keras, fast):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = getattr(fast, name)(learning_rate=schedule, clipnorm=2.0, name="mine")
    again = [
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
        copy.deepcopy(optimizer),
        pickle.loads(pickle.dumps(optimizer)),
    ]
    for other in again:
        assert type(other) is getattr(fast, name)
        assert other.get_config() == optimizer.get_config()
    assert type(keras.optimizers.get(f"fastopt>{name}")) is getattr(fast, name)
    assert keras.optimizers.get(optimizer) is optimizer


def test_the_names_of_keras_stay_its_own(keras, fast):
    assert type(keras.optimizers.get("adam")).__module__.startswith("keras.")


@EVERY_NAME
@rows("by", ["own variables", "assignment"])
@rows("direction", ["to fastopt", "to Keras"])
def test_state_moves_between_keras_and_fastopt(name, by, direction, keras, fast, backend):
    if name == "ScheduleFreeAdamW" and backend == "torch":
        pytest.skip(TORCH_SCHEDULE_FREE)
    case = Case(name, name, {"learning_rate": 0.01, "use_ema": True}, False)
    (ours, our_variables), (theirs, their_variables) = pair(case, keras, fast)
    giver, receiver = (theirs, ours) if direction == "to fastopt" else (ours, theirs)
    from_, to = (their_variables, our_variables) if direction == "to fastopt" else (our_variables, their_variables)
    train(giver, keras, from_, gradients(7))
    train(receiver, keras, to, gradients(2, seed=9))
    for variable, source in zip(to, from_, strict=True):
        variable.assign(source.numpy())
    if by == "own variables":
        store = {}
        giver.save_own_variables(store)
        receiver.load_own_variables(store)
    else:
        for variable, source in zip(receiver.variables, giver.variables, strict=True):
            variable.assign(source)
    for optimizer, variables in ((giver, from_), (receiver, to)):
        train(optimizer, keras, variables, gradients(7, seed=3))
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_state_that_does_not_fit_is_skipped_with_keras_warning(keras, fast):
    optimizer = fast.Adam()
    optimizer.build(variables_of(keras, parameters()))
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        optimizer.load_own_variables({"0": np.zeros(())})


# -- gradients ---------------------------------------------------------------------------------------------------------


OPTIONED = Case(
    "Adam-optioned", "Adam",
    {"learning_rate": 0.01, "global_clipnorm": 1.0, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.9,
     "ema_overwrite_frequency": 4},
    False,
)  # fmt: skip


@pytest.mark.parametrize("case", [ADAM, OPTIONED], ids=lambda case: case.id)
def test_missing_gradients(case, keras, fast):
    rng = np.random.default_rng(5)
    pairs = pair(case, keras, fast)
    for step in gradients(30):
        given = [None if rng.random() < 0.3 else grad for grad in step]
        given[0] = step[0]
        for optimizer, _ in pairs:
            if any(grad is None for grad in given):
                with pytest.warns(UserWarning, match="Gradients do not exist"), keras_at_work():
                    optimizer.apply(tensors(keras, given))
            else:
                train(optimizer, keras, None, [given])
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_missing_gradients_in_an_accumulation(keras, fast):
    case = Case("", "Adam", {"learning_rate": 0.01, "gradient_accumulation_steps": 3, "clipnorm": 1.0}, False)
    pairs = pair(case, keras, fast)
    for number, step in enumerate(gradients(12)):
        given = list(step)
        given[number % 4] = None
        for optimizer, _ in pairs:
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                optimizer.apply(tensors(keras, given))
    (ours, our_variables), (theirs, their_variables) = pairs
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_no_gradient_at_all(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam()
    optimizer.build(variables)
    before = values(variables)
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None] * len(variables))
    optimizer.apply([])
    assert int(optimizer.iterations) == 0
    assert all(np.array_equal(a, b) for a, b in zip(values(variables), before, strict=True))


def test_subsets_in_any_order(keras, fast):
    pairs = pair(OPTIONED, keras, fast)
    for number, step in enumerate(gradients(20)):
        chosen = [[4, 0], [1, 2, 3], [2], [3, 1, 0, 2, 4]][number % 4]
        for optimizer, variables in pairs:
            with keras_at_work():
                optimizer.apply(tensors(keras, [step[k] for k in chosen]), [variables[k] for k in chosen])
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_a_variable_given_twice_is_refused(keras, fast):
    """Keras updates it twice, or once with both, as the optimizer is; nothing is lost in silence."""
    variables = variables_of(keras, [np.ones(3)])
    optimizer = fast.SGD(0.1)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="v0 is given twice"):
        optimizer.apply(2 * tensors(keras, [np.ones(3, np.float32)]), 2 * variables)
    assert np.array_equal(variables[0].numpy(), np.ones(3))


def test_pairs_and_building_on_first_use(keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters())
        optimizer = module.Adam(0.01)
        for step in gradients(3):
            returned = optimizer.apply_gradients(zip(tensors(keras, step), variables, strict=True))
        assert int(returned) == 3
        found.append(variables)
    assert_same_variables(*found)


def test_what_keras_refuses_is_refused(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam()
    grads = tensors(keras, gradients(1)[0])
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply(grads)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(grads[:1], variables_of(keras, parameters()[:1]))
    with pytest.raises(ValueError, match="one-to-on"):
        optimizer.apply(grads[:2])
    with pytest.raises(ValueError, match="clipnorm"):
        fast.Adam(clipnorm=1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="not recognized"):
        fast.Adam(lr=1.0)
    with pytest.warns(UserWarning, match="`decay` is no longer supported"):
        fast.Adam(decay=1.0)


def test_a_gradient_of_the_wrong_shape_changes_nothing(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam()
    train(optimizer, keras, variables, gradients(1))
    before = values([*variables, *optimizer.variables])
    grads = gradients(1)[0]
    grads[2] = grads[2].T
    with pytest.raises(ValueError, match="expected shape"):
        optimizer.apply(tensors(keras, grads))
    assert all(np.array_equal(a, b) for a, b in zip(values([*variables, *optimizer.variables]), before, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_gradients_of_another_dtype(dtype, keras, fast):
    optimizer, variables = fast.Adam(0.01), variables_of(keras, parameters())
    reference, expected = fast.Adam(0.01), variables_of(keras, parameters())
    optimizer.build(variables)
    for step in gradients(10):
        cast = [keras.ops.cast(grad, dtype) for grad in tensors(keras, step)]
        optimizer.apply(cast)
        train(reference, keras, expected, [[keras.ops.convert_to_numpy(keras.ops.cast(g, "float32")) for g in cast]])
    assert is_fused(optimizer)
    assert_same_variables(variables, expected)


def test_gradients_as_plain_arrays(keras, fast):
    optimizer, variables = fast.Adam(0.01), variables_of(keras, parameters())
    reference, expected = fast.Adam(0.01), variables_of(keras, parameters())
    optimizer.build(variables)
    for step in gradients(5):
        optimizer.apply([grad.astype(np.float32) for grad in step])
        train(reference, keras, expected, [step])
    assert_same_variables(variables, expected)


# -- what changes while training ---------------------------------------------------------------------------------------


def test_hyper_parameters_changed_between_steps(keras, fast):
    pairs = pair(Case("", "Adam", {"learning_rate": 0.01, "clipnorm": 0.5, "use_ema": True}, False), keras, fast)
    changes = (
        ("learning_rate", 0.05), ("beta_1", 0.5), ("clipnorm", 0.1), ("clipnorm", None), ("global_clipnorm", 0.3),
        ("beta_2", 0.9), ("epsilon", 1e-3), ("weight_decay", 0.1), ("global_clipnorm", None), ("clipvalue", 0.01),
        ("ema_momentum", 0.5), ("ema_overwrite_frequency", 2), ("loss_scale_factor", 4.0), ("weight_decay", None),
        ("learning_rate", keras.optimizers.schedules.CosineDecay(0.1, 40)),
    )  # fmt: skip
    grads = iter(gradients(2 * len(changes)))
    for name, value in changes:
        steps = [next(grads), next(grads)]
        for optimizer, variables in pairs:
            setattr(optimizer, name, value)
            train(optimizer, keras, variables, steps)
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("SGD", {"momentum": 0.9}, {"nesterov": True}),
        ("SGD", {"momentum": 0.9}, {"momentum": 0.0}),
        ("Adam", {"amsgrad": True}, {"amsgrad": False}),
        ("RMSprop", {"centered": True, "momentum": 0.5}, {"centered": False}),
        ("RMSprop", {"momentum": 0.5}, {"momentum": 0.0}),
        ("Ftrl", {}, {"l1_regularization_strength": 0.5, "learning_rate_power": -0.3}),
        ("Muon", {}, {"nesterov": False, "rms_rate": None, "ns_steps": 2}),
        ("Adam", {"use_ema": True}, {"use_ema": False}),
    ],
)
def test_hyper_parameters_that_select_another_rule(name, options, changes, keras, fast):
    pairs = pair(Case("", name, {"learning_rate": 0.01} | options, False), keras, fast)
    for optimizer, variables in pairs:
        train(optimizer, keras, variables, gradients(3))
        for key, value in changes.items():
            setattr(optimizer, key, value)
        train(optimizer, keras, variables, gradients(3, seed=4))
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_state_that_was_never_built_is_missed_as_by_keras(keras, fast):
    optimizer = fast.SGD(0.1)
    optimizer.build(variables_of(keras, parameters()))
    optimizer.momentum = 0.9
    with falls_back(optimizer, "built without momentum"), pytest.raises(IndexError):
        train(optimizer, keras, None, gradients(1))


def test_a_learning_rate_from_a_function(keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        rates = iter([0.5, 0.25, 0.125, 0.0625])  # one for each step
        variables = variables_of(keras, parameters())
        train(module.SGD(lambda rates=rates: next(rates), momentum=0.9), keras, variables, gradients(4))
        found.append(variables)
    assert_same_variables(*found)


def test_state_assigned_between_steps(keras, fast):
    pairs = pair(Case("", "Adam", {"learning_rate": 0.01}, False), keras, fast)
    for optimizer, variables in pairs:
        train(optimizer, keras, variables, gradients(3))
        state = values(optimizer.variables)
        train(optimizer, keras, variables, gradients(3, seed=4))
        optimizer.set_weights(state)
        for variable in variables:
            variable.assign(variable.numpy() * 0.5)
        train(optimizer, keras, variables, gradients(3, seed=5))
        assert int(optimizer.iterations) == 6
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("when", ["before build", "after build", "between steps"])
def test_exclusion_from_weight_decay(when, keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters())
        optimizer = module.AdamW(0.01, weight_decay=0.5)
        grads = gradients(10)
        if when == "between steps":
            train(optimizer, keras, variables, grads[:5])
        elif when == "after build":
            optimizer.build(variables)
        optimizer.exclude_from_weight_decay(var_list=[variables[0]], var_names=["v[23]"])
        train(optimizer, keras, variables, grads)
        found.append(variables)
    assert_same_variables(*found)


def test_snapshots_stay_what_they_were(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.01, use_ema=True)
    train(optimizer, keras, variables, gradients(1))
    store = {}
    optimizer.save_own_variables(store)
    everything = [*variables, *optimizer.variables]
    taken = [variable.numpy() for variable in everything]
    converted = [keras.ops.convert_to_numpy(variable) for variable in everything]
    copies = [array.copy() for array in taken]
    stored = {key: array.copy() for key, array in store.items()}
    train(optimizer, keras, variables, gradients(1))
    for one, other, expected in zip(taken, converted, copies, strict=True):
        assert np.array_equal(one, expected) and np.array_equal(other, expected)
    assert all(np.array_equal(store[key], stored[key]) for key in store)


def test_the_users_arrays_are_not_written_to(keras, fast, backend):
    if backend == "torch":
        pytest.skip("Keras's torch backend shares memory with the array that a variable was made from")
    arrays = parameters()
    variables = [keras.Variable(array) for array in arrays]
    before = [array.copy() for array in arrays]
    train(fast.Adam(0.1), keras, variables, gradients(2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


# -- what no kernel can do ---------------------------------------------------------------------------------------------


def test_a_subclass_with_a_step_of_its_own(keras, fast):
    class Halving(fast.SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.assign(variable, variable * 0.5)

    class Plain(fast.SGD):
        pass

    variables = variables_of(keras, [np.ones(3)])
    optimizer = Halving(0.1)
    optimizer.build(variables)
    with falls_back(optimizer, "update_step of its own"):
        train(optimizer, keras, variables, [[np.ones(3, np.float32)]])
    assert np.array_equal(variables[0].numpy(), np.full(3, 0.5))
    plain = Plain(0.1)
    train(plain, keras, variables, [[np.ones(3, np.float32)]])
    assert is_fused(plain)


def test_a_backend_whose_variables_are_no_memory(keras, fast, monkeypatch):
    """As JAX's and TensorFlow's: Keras's update, said once; where Keras has none, a clear error."""
    monkeypatch.setattr("fastopt.keras.fused.Fused._memory", None)
    found = []
    for module in (fast, keras.optimizers):
        optimizer, variables = module.Adam(0.01), variables_of(keras, parameters())
        with falls_back(optimizer, "not memory to write to") if module is fast else contextlib.nullcontext():
            train(optimizer, keras, variables, gradients(3))
        found.append(variables)
    assert_same_variables(*found)
    old = importlib.import_module("fastopt.keras.compat.keras_2_2").SGD()
    with pytest.raises(RuntimeError, match="no update but the fused one"):
        train(old, keras, variables_of(keras, parameters()), gradients(1))
    scheduled = fast.SGD(fastopt.schedules.CosineDecay(0.1, 10))
    with falls_back(scheduled, "not memory"), pytest.raises(TypeError, match="CosineDecay is computed in Python"):
        train(scheduled, keras, variables_of(keras, parameters()), gradients(1))


def test_stateless_apply(keras, fast):
    pairs = pair(ADAM, keras, fast)
    found = []
    for optimizer, variables in pairs:
        train(optimizer, keras, variables, gradients(2))
        trainable = tensors(keras, values(variables))
        state = [keras.ops.convert_to_tensor(variable.numpy()) for variable in optimizer.variables]
        before = values([*variables, *optimizer.variables])
        grads = tensors(keras, gradients(1, seed=8)[0])
        if optimizer is pairs[0][0]:
            with falls_back(optimizer, "stateless"):
                result = optimizer.stateless_apply(state, grads, trainable)
        else:
            result = optimizer.stateless_apply(state, grads, trainable)
        after = values([*variables, *optimizer.variables])
        assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
        found.append([np.asarray(keras.ops.convert_to_numpy(x)) for part in result for x in part])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    ours, our_variables = pairs[0]
    train(ours, keras, our_variables, gradients(1))
    assert is_fused(ours)


def test_variables_that_share_memory_fall_back(keras, fast):
    """Keras updates such memory twice."""
    found = []
    for module in (fast, keras.optimizers):
        one = keras.Variable(np.ones(4, np.float32))
        other = keras.Variable(np.zeros(4, np.float32))
        other._value = one._value
        optimizer = module.SGD(0.1)
        optimizer.build([one, other])
        grads = [[np.ones(4, np.float32), np.full(4, 2, np.float32)]]
        if module is fast:
            with falls_back(optimizer, "share memory"):
                train(optimizer, keras, None, grads)
        else:
            train(optimizer, keras, None, grads)
        found.append([one, other])
    assert_same_variables(*found)


# -- around the optimizer ----------------------------------------------------------------------------------------------


def test_constraints(keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters())
        variables[0].constraint = keras.constraints.MaxNorm(0.5)
        variables[1].constraint = keras.constraints.NonNeg()
        optimizer = module.Adam(0.1, use_ema=True)
        train(optimizer, keras, variables, gradients(30))
        found.append((optimizer, variables))
    (ours, our_variables), (theirs, their_variables) = found
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


@rows("options", [{}, {"gradient_accumulation_steps": 2}, {"global_clipnorm": 1.0}], ids=str)
@EVERY_NAME
def test_variables_overwritten_with_their_gradient(name, options, keras, fast, backend):
    if name == "ScheduleFreeAdamW" and backend == "torch":
        pytest.skip(TORCH_SCHEDULE_FREE)
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters())
        variables[1].overwrite_with_gradient = True
        optimizer = getattr(module, name)(learning_rate=0.01, use_ema="gradient_accumulation_steps" not in options,
                                          **options)  # fmt: skip
        train(optimizer, keras, variables, gradients(6))
        found.append((optimizer, variables))
    (ours, our_variables), (theirs, their_variables) = found
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def test_loss_scale(keras, fast):
    pairs = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters())
        optimizer = keras.optimizers.LossScaleOptimizer(module.Adam(0.01), dynamic_growth_steps=3)
        optimizer.build(variables)
        pairs.append((optimizer, variables))
    for number, step in enumerate(gradients(20)):
        scaled = [grad * np.float32(2**15) for grad in step]
        if number in (2, 3, 11):
            scaled[number % 4].flat[0] = [np.inf, np.nan][number % 2]
        for optimizer, variables in pairs:
            train(optimizer, keras, variables, [scaled])
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours.inner_optimizer)
    assert int(ours.iterations) == 17
    assert_same_variables(our_variables, their_variables)
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5)


def test_several_optimizers(keras, fast):
    pairs = []
    for module in (fast, keras.optimizers):
        mapping = keras.optimizers.OptimizerMap(module.Adam(0.01, clipnorm=1.0))
        mapping["v[13]"] = module.SGD(0.1, momentum=0.9)
        variables = variables_of(keras, parameters())
        optimizer = keras.optimizers.MultiOptimizer(mapping)
        train(optimizer, keras, variables, gradients(20))
        pairs.append((optimizer, variables))
    (ours, our_variables), (_, their_variables) = pairs
    assert all(map(is_fused, ours.optimizers))
    assert_same_variables(our_variables, their_variables)


def test_final_values_are_the_averages(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.1, use_ema=True, ema_momentum=0.5)
    train(optimizer, keras, variables, gradients(5))
    averages = values(optimizer._model_variables_moving_average)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, averages, strict=True):
        assert np.array_equal(variable.numpy(), average)


def test_steps_in_several_threads(keras, fast):
    found, failures = {}, []

    def work(number):
        try:
            variables = variables_of(keras, parameters())
            train(fast.Adam(0.01, global_clipnorm=1.0), keras, variables, gradients(30))
            found[number] = values(variables)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(np.array_equal(a, b) for n in range(1, 4) for a, b in zip(found[0], found[n], strict=True))


def test_a_copy_goes_its_own_way(keras, fast):
    """Like Keras's own, an optimizer that is built is copied by config and weights, or with its model."""
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.01)
    train(optimizer, keras, variables, gradients(3))
    other = fast.Adam.from_config(optimizer.get_config())
    others_variables = variables_of(keras, values(variables))
    other.build(others_variables)
    other.set_weights(values(optimizer.variables))
    train(optimizer, keras, variables, gradients(3, seed=6))
    train(other, keras, others_variables, gradients(3, seed=6))
    for ours, others in zip(variables, others_variables, strict=True):
        assert np.array_equal(ours.numpy(), others.numpy())


def test_nothing_to_train(keras, fast):
    optimizer = fast.Adam()
    optimizer.build([])
    optimizer.apply([])


def test_many_shapes_stay_in_place(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(use_ema=True)
    train(optimizer, keras, variables, gradients(1))
    held = [variable._value for variable in (*variables, *optimizer._momentums)]
    train(optimizer, keras, variables, gradients(3))
    assert all(v._value is value for v, value in zip((*variables, *optimizer._momentums), held, strict=True))
    assert [variable.shape for variable in variables] == list(SHAPES)
