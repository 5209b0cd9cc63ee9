"""fastopt.keras on variables of 16 bits: each step against Keras's own optimizer in float32, on both backends."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from children import peak_memory
from keras_cases import (
    CASES,
    COPY_KEYWORD,
    NAMES,
    ON_BOTH_BACKENDS,
    Case,
    gradients,
    is_fused,
    keras_at_work,
    parameters,
    tensors,
    train,
    variables_of,
)
from rows import rows

import fastopt

pytestmark = [pytest.mark.filterwarnings(COPY_KEYWORD), *ON_BOTH_BACKENDS]

REFUSED = ("Lamb", "Adafactor", "Muon", "ScheduleFreeAdamW")
TAKEN = [name for name in NAMES if name not in REFUSED]
HALVES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
BOTH_HALVES = pytest.mark.parametrize("half", HALVES)
OPTIONS = {
    "nearest": {},
    "at random": {"stochastic_rounding": True, "slot_dtype": "bfloat16"},
    "master": {"master_weights": "float32", "slot_dtype": "float32"},
    "split": {"master_weights": "split", "slot_dtype": {"velocity": "float32"}},
    "Kahan": {"compensation": "kahan", "slot_dtype": {"velocity": "float16", "average": "float32"}, "use_ema": True},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def on_the_backend(backend, keras):
    assert keras.backend.backend() == backend


def in_float32(keras, value):
    """A variable or tensor of any dtype as a float32 array of its own."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")), np.float32)


def cast(keras, arrays, dtype):
    return [None if array is None else keras.ops.cast(array, dtype) for array in tensors(keras, arrays)]


def rounded(arrays, half):
    return [array.astype(HALVES[half]).astype(np.float32) for array in arrays]


def apply(optimizer, keras, variables, grads, dtype):
    """Steps with gradients of the dtype; the optimizer is built, if it is not."""
    if not optimizer.built:
        optimizer.build(variables)
    for step in grads:
        with keras_at_work():
            optimizer.apply(cast(keras, step, dtype))


# -- the same numbers --------------------------------------------------------------------------------------------------

COVERED = [case for case in CASES if case.optimizer in TAKEN]
OVERWRITING = "ema_overwrite_frequency"


def _over_halves(test):
    """Every case in bfloat16 as in the table; in float16 those without options."""
    found = [
        pytest.param(case, half, id=f"{case.id}-{half}", marks=[pytest.mark.full] * (case.full or other))
        for half in HALVES
        for case in COVERED
        for other in [half == "float16" and not case.id.endswith("-plain")]
    ]
    return pytest.mark.parametrize("case, half", found)(test)


@_over_halves
def test_a_step_is_that_of_keras_in_float32_and_then_rounded(case, half, keras, fast):
    """Each step of Keras's own optimizer from where the last one of ours ended."""
    starts, shapes = rounded(parameters(), half), [array.shape for array in parameters()]
    ours, theirs = case.make(keras, fast), case.make(keras, keras.optimizers)
    variables, exact = variables_of(keras, starts, dtype=half), variables_of(keras, starts)
    ours.build(variables)
    theirs.build(exact)
    for step in gradients(12, shapes):
        grads = rounded([grad * np.float32(0.125) for grad in step], half)
        for to, of in zip([*exact, *theirs.variables], [*variables, *ours.variables], strict=True):
            to.assign(keras.ops.cast(of, to.dtype))
        before = [in_float32(keras, variable) for variable in exact]
        apply(ours, keras, variables, [grads], half)
        scale = theirs.loss_scale_factor or 1.0  # by which Keras itself divides, in 16 bits
        unscaled = [in_float32(keras, grad / scale) for grad in cast(keras, grads, half)]
        apply(theirs, keras, exact, [[grad * np.float32(scale) for grad in unscaled]], "float32")
        share = 1.0 if case.kwargs.get(OVERWRITING) else 0.5  # of the distance of two neighbours
        # Averages follow what a parameter is after rounding, here by a tenth of it.
        seen = [0.05 * _distance(np.abs(start) + 0.1, half) * ours.use_ema for start in before]
        averages = dict(zip(map(id, getattr(theirs, "_model_variables_moving_average", ())), seen, strict=False))
        for mine, its, start, slack in zip(variables, exact, before, seen, strict=True):
            slack = slack * bool(case.kwargs.get(OVERWRITING)) + 3e-6 * np.abs(start).max(initial=0)
            _assert_rounded(keras, mine, its, share, half, slack)
        for mine, its in zip(ours.variables, theirs.variables, strict=True):
            cancels = 1e-6 if its.path.endswith("linear") else 0.0  # what is small beside the parameters it is made of
            _assert_rounded(keras, mine, its, 1.0, half, averages.get(id(its), cancels))
    assert is_fused(ours)


def _assert_rounded(keras, mine, its, share, half, slack):
    """Share of the distance of two neighbours in 16 bits, and roundings of float32."""
    found, exact = in_float32(keras, mine), in_float32(keras, its)
    distance = _distance(exact, half) * share if str(mine.dtype) == half else 0.0
    roundings = 3e-5 * np.abs(exact) + 3e-6 * np.abs(exact).max(initial=0.0)
    off = np.abs(found - exact) - distance - roundings - slack
    assert np.all(off <= 0), (its.path, off.max(), found.flat[off.argmax()], exact.flat[off.argmax()])


def _distance(numbers, half):
    """From one number of 16 bits to the next, there."""
    bits, least = (7, -126) if half == "bfloat16" else (10, -14)
    return np.ldexp(np.float32(1), np.maximum(np.frexp(numbers)[1] - 1, least) - bits)


COMPARED = "SGD", "RMSprop", "Adagrad", "Adadelta", "Lion", "Ftrl"
"""Where Keras's own optimizers work in 16 bits. A ``beta_2`` of 0.999 is 1 in bfloat16, so that nothing moves; in
float16 squares of gradients are 0, and are divided by."""


@BOTH_HALVES
@rows("name", COMPARED)
def test_steps_are_near_those_of_keras_in_16_bits(name, half, keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters(), dtype=half)
        optimizer = getattr(module, name)(learning_rate=0.01, weight_decay=0.1)
        apply(optimizer, keras, variables, [[grad * np.float32(0.01) for grad in step] for step in gradients(5)], half)
        found.append([in_float32(keras, variable) for variable in variables])
    for ours, theirs in zip(*found, strict=True):
        turned = 0.02 * (name == "Lion")  # where the sign of what is nearly 0 is another one
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2 + turned)


@BOTH_HALVES
def test_adam_is_nearer_to_float32_than_that_of_keras(half, keras, fast):
    """The mean distance after 30 steps, in docs/keras.md; that of Keras's own may be NaN."""
    found = []
    for module, dtype in ((keras.optimizers, "float32"), (keras.optimizers, half), (fast, half)):
        variables = variables_of(keras, rounded(parameters(), "float16"), dtype=dtype)
        apply(module.Adam(0.01), keras, variables, gradients(30), dtype)
        found.append(np.concatenate([in_float32(keras, variable).ravel() for variable in variables]))
    exact, theirs, ours = found
    distance = np.abs(ours - exact).mean()
    assert distance < {"bfloat16": 0.004, "float16": 0.0005}[half]
    assert not np.abs(theirs - exact).mean() < 10 * distance


@rows("masters", ["float32", "split"])
@pytest.mark.parametrize("name", ["Adam", pytest.param("Nadam", marks=pytest.mark.full), "SGD"])
def test_masters_follow_keras_in_float32(name, masters, keras, fast):
    """A hundred steps, of which the model sees the nearest bfloat16."""
    starts, options = rounded(parameters(), "bfloat16"), {"momentum": 0.9} if name == "SGD" else {}
    case = Case(name, name, {"learning_rate": 1e-3, "global_clipnorm": 1.0, **options}, False)
    variables, exact = variables_of(keras, starts, dtype="bfloat16"), variables_of(keras, starts)
    ours = getattr(fast, name)(**case.kwargs, master_weights=masters, slot_dtype="float32")
    grads = gradients(100)
    apply(ours, keras, variables, grads, "float32")
    apply(case.make(keras, keras.optimizers), keras, exact, grads, "float32")
    assert is_fused(ours)
    for mine, its in zip(variables, exact, strict=True):
        reference = in_float32(keras, its)
        off = np.abs(in_float32(keras, mine) - reference)
        assert np.all(off <= _distance(reference, "bfloat16") * (0.5 if name != "Nadam" else 1.0) + 1e-5)


@EVERY_OPTION
def test_steps_are_those_of_fastopt_bit_for_bit(options, keras, fast):
    """With the same seed, and slots in the formats of Keras's variables."""
    kinds = {"momentum": "bfloat16", "velocity": "bfloat16"}
    kinds |= {"average": "bfloat16"} if options.get("use_ema") else {}
    chosen = options.get("slot_dtype") or {}
    kinds |= dict.fromkeys(("momentum", "velocity"), chosen) if isinstance(chosen, str) else chosen
    common = {"global_clipnorm": 1.0, "seed": 5}
    starts = [array.astype(HALVES["bfloat16"]) for array in parameters()]
    plain = fastopt.Adam(0.0078125, **{**options, "slot_dtype": kinds}, **common)
    plain.build(starts)
    ours = fast.Adam(0.0078125, **options, **common)
    variables = variables_of(keras, [array.astype(np.float32) for array in starts], dtype="bfloat16")
    for grads in gradients(6):
        plain.apply([grad.astype(HALVES["bfloat16"]) for grad in grads])
        apply(ours, keras, variables, [grads], "bfloat16")
    for variable, array in zip(variables, starts, strict=True):
        np.testing.assert_array_equal(in_float32(keras, variable), array.astype(np.float32))
    for name, attribute in {"momentum": ours._momentums, "velocity": ours._velocities, **ours._beside}.items():
        for variable, array in zip(attribute, plain.slots[name], strict=True):
            held = keras.ops.convert_to_numpy(variable)
            assert held.tobytes() == array.tobytes(), (name, held, array)


def test_variables_of_several_dtypes_in_one_model(keras, fast):
    """Those of float32 get the bits that they get in a model of float32; each dtype has its own step."""
    dtypes = ("bfloat16", "float32", "float16", "float32", "bfloat16")
    starts = rounded(rounded(parameters(), "bfloat16"), "float16")
    mixed = [variables_of(keras, [start], dtype=dtype)[0] for start, dtype in zip(starts, dtypes, strict=True)]
    for k, variable in enumerate(mixed):
        variable._path = f"v{k}"
    whole = variables_of(keras, starts)
    ours, reference = (fast.AdamW(2.0**-7, use_ema=True) for _ in range(2))
    ours.build(mixed)
    for step in gradients(8):
        ours.apply([keras.ops.cast(g, dtype) for g, dtype in zip(tensors(keras, step), dtypes, strict=True)])
    train(reference, keras, whole, gradients(8))
    assert is_fused(ours)
    for variable, other, dtype in zip(mixed, whole, dtypes, strict=True):
        found, expected = in_float32(keras, variable), in_float32(keras, other)
        if dtype == "float32":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=3e-2, atol=3e-2)


@BOTH_HALVES
def test_missing_gradients(half, keras, fast):
    """As in Keras the average of a variable without one follows it all the same, and a variable stays."""
    options = {"learning_rate": 0.0625, "use_ema": True, "ema_momentum": 0.75}
    starts = rounded(parameters(), half)
    variables, exact = variables_of(keras, starts, dtype=half), variables_of(keras, starts)
    ours, theirs = fast.Adam(**options), keras.optimizers.Adam(**options)
    apply(ours, keras, variables, gradients(3), half)
    theirs.build(exact)
    for to, of in zip([*exact, *theirs.variables], [*variables, *ours.variables], strict=True):
        to.assign(keras.ops.cast(of, to.dtype))
    before = [in_float32(keras, variable) for variable in variables]
    (step,) = gradients(1, seed=7)
    for optimizer, dtype in ((ours, half), (theirs, "float32")):
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply(cast(keras, [step[0], None, step[2], None, None], dtype))
    assert is_fused(ours)
    for k in (1, 3, 4):
        np.testing.assert_array_equal(in_float32(keras, variables[k]), before[k])
        average, expected = (each._model_variables_moving_average[k] for each in (ours, theirs))
        assert np.any(in_float32(keras, average) != before[k])
        _assert_rounded(keras, average, expected, 0.5, half, 0.0)


def test_gradients_of_another_dtype_than_their_variables(keras, fast):
    found = []
    for dtype in ("float32", "bfloat16", "float16"):
        grads = [[grad.astype(np.float16).astype(HALVES["bfloat16"]).astype(np.float16).astype(np.float32)
                  for grad in step] for step in gradients(4)]  # fmt: skip
        variables, optimizer = variables_of(keras, parameters(), dtype="bfloat16"), fast.Adam(0.01, clipnorm=1.0)
        apply(optimizer, keras, variables, grads, dtype)
        assert is_fused(optimizer)
        found.append([in_float32(keras, each) for each in (*variables, *optimizer.variables)])
    for other in found[1:]:
        for one, its in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, its)


def test_final_values_are_the_averages(keras, fast):
    variables = variables_of(keras, parameters(), dtype="bfloat16")
    optimizer = fast.Adam(0.1, use_ema=True, ema_momentum=0.5, master_weights="split")
    apply(optimizer, keras, variables, gradients(5), "bfloat16")
    averages = [in_float32(keras, each) for each in optimizer._model_variables_moving_average]
    optimizer.finalize_variable_values(variables)
    optimizer.learning_rate = 0.0
    apply(optimizer, keras, variables, gradients(1), "bfloat16")
    for variable, average in zip(variables, averages, strict=True):
        np.testing.assert_array_equal(in_float32(keras, variable), average)


@BOTH_HALVES
def test_loss_scale(half, keras, fast):
    """Overflows are skipped, and the scale moves, as with Keras's own inner optimizer."""
    pairs = []
    for module, dtype in ((fast, half), (keras.optimizers, "float32")):
        variables = variables_of(keras, rounded(parameters(), half), dtype=dtype)
        optimizer = keras.optimizers.LossScaleOptimizer(
            module.SGD(0.01, momentum=0.9), initial_scale=8.0, dynamic_growth_steps=3
        )
        optimizer.build(variables)
        pairs.append((optimizer, variables))
    scales = []
    for number, step in enumerate(gradients(20)):
        given = rounded([grad * np.float32(0.1) for grad in step], half)
        if number in (2, 3, 11):
            given[number % 4].flat[0] = [np.inf, np.nan][number % 2]
        for optimizer, variables in pairs:
            optimizer.apply(cast(keras, given, variables[0].dtype))
        scales.append([float(optimizer.dynamic_scale.numpy()) for optimizer, _ in pairs])
        assert scales[-1][0] == scales[-1][1]
    (ours, our_variables), (theirs, their_variables) = pairs
    assert is_fused(ours.inner_optimizer)
    assert int(ours.iterations) == int(theirs.iterations) == 17
    assert max(scales)[0] > 8 > min(scales)[0]
    for one, other in zip(our_variables, their_variables, strict=True):
        np.testing.assert_allclose(in_float32(keras, one), in_float32(keras, other), rtol=2e-2, atol=2e-2)


# -- variables, configs, copies ----------------------------------------------------------------------------------------


@rows("name", TAKEN)
@BOTH_HALVES
def test_variables_are_those_of_keras(name, half, keras, fast):
    """Any state fits both, for its shapes; dtypes are Keras's but for float32 where 16 bits would not do."""
    described = []
    for module in (fast, keras.optimizers):
        optimizer = getattr(module, name)(use_ema=True, gradient_accumulation_steps=2, name="same")
        optimizer.build(variables_of(keras, parameters(), dtype=half))
        described.append([
            ("" if variable.path.startswith("variable") else variable.path, variable.shape, variable.dtype)
            for variable in optimizer.variables
        ])  # fmt: skip
    assert len(described[0]) == len(described[1])
    for ours, theirs in zip(*described, strict=True):
        path, shape, dtype = theirs
        is_wide = "gradient_accumulator" in path or (half == "float16" and path and not path.endswith("average"))
        assert ours == (path, shape, "float32" if is_wide and dtype == half else dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [*(("Adam", options) for options in OPTIONS.values()), ("Adagrad", {}), ("Ftrl", {})],
    ids=[*OPTIONS, "slots that start at a number", "one of two"],
)
def test_state_moves_on_bit_for_bit(name, options, keras, fast):
    """By Keras's own variables, into an optimizer made from the config."""
    options = {"use_ema": True, **options}
    variables = variables_of(keras, parameters(), dtype="bfloat16")
    optimizer = getattr(fast, name)(0.01, **options, seed=3)
    apply(optimizer, keras, variables, gradients(3), "bfloat16")
    other = pickle.loads(pickle.dumps(type(optimizer).from_config(optimizer.get_config())))
    assert other.get_config() == optimizer.get_config()
    assert all(getattr(other, key) == value for key, value in {**options, "seed": 3}.items())
    others = [keras.Variable(keras.ops.copy(variable.value), dtype="bfloat16") for variable in variables]
    other.build(others)
    store = {}
    optimizer.save_own_variables(store)
    other.load_own_variables(store)
    for one, its in ((optimizer, variables), (other, others)):
        apply(one, keras, its, gradients(3, seed=9), "bfloat16")
        assert is_fused(one)
    for a, b in zip([*variables, *optimizer.variables], [*others, *other.variables], strict=True):
        np.testing.assert_array_equal(in_float32(keras, a), in_float32(keras, b))


@BOTH_HALVES
@rows("direction", ["to fastopt", "to Keras"])
def test_state_moves_between_keras_and_fastopt(direction, half, keras, fast):
    givers = [fast, keras.optimizers][:: -1 if direction == "to fastopt" else 1]
    made = []
    for module in givers:
        variables = variables_of(keras, parameters(), dtype=half)
        optimizer = module.SGD(0.01, momentum=0.9, use_ema=True)
        optimizer.build(variables)
        made.append((optimizer, variables))
    (giver, _), (receiver, variables) = made
    apply(giver, keras, None, gradients(2), half)
    store = {}
    giver.save_own_variables(store)
    receiver.load_own_variables(store)
    for a, b in zip(giver.variables, receiver.variables, strict=True):
        assert a.dtype == b.dtype or half == "float16"
        np.testing.assert_array_equal(
            in_float32(keras, a).astype(HALVES[half]), in_float32(keras, b).astype(HALVES[half])
        )
    apply(receiver, keras, None, gradients(2), half)
    assert int(receiver.iterations) == 4


def test_an_optimizer_of_keras_turned_into_one_of_fastopt(keras, fast):
    variables = variables_of(keras, parameters(), dtype="bfloat16")
    theirs = keras.optimizers.SGD(0.01, momentum=0.9)
    apply(theirs, keras, variables, gradients(2), "bfloat16")
    momenta = [in_float32(keras, each) for each in theirs.momentums]
    turned = fast.from_keras(theirs)
    for variable, expected in zip(turned.momentums, momenta, strict=True):
        assert variable.dtype == "bfloat16"
        np.testing.assert_array_equal(in_float32(keras, variable), expected)
    apply(turned, keras, variables, gradients(1), "bfloat16")
    assert is_fused(turned) and int(turned.iterations) == 3


def test_signatures_name_the_options(fast):
    import inspect

    for name in NAMES:
        found = inspect.signature(getattr(fast, name)).parameters
        assert {"learning_rate", "slot_dtype", "master_weights", "compensation", "seed"} <= found.keys()
        assert found["stochastic_rounding"].kind is inspect.Parameter.KEYWORD_ONLY


def test_rules_of_ones_own(keras, fast):
    """Adapted classes take the same options; by the class itself, bit for bit."""
    kind = fast.adapt(fastopt.AdaBelief, "tests", __name__)
    options = {"master_weights": "split", "weight_decay": 0.25, "slot_dtype": "float32"}
    starts = [array.astype(HALVES["bfloat16"]) for array in parameters()]
    plain, optimizer = fastopt.AdaBelief(0.0625, **options), kind(0.0625, **options)
    plain.build(starts)
    variables = variables_of(keras, [array.astype(np.float32) for array in starts], dtype="bfloat16")
    for grads in gradients(5):
        plain.apply(grads)
        apply(optimizer, keras, variables, [grads], "float32")
    assert is_fused(optimizer) and optimizer.get_config()["master_weights"] == "split"
    for variable, array in zip(variables, starts, strict=True):
        np.testing.assert_array_equal(in_float32(keras, variable), array.astype(np.float32))
    again = kind.from_config(optimizer.get_config())
    again.build(variables)
    assert [v.dtype for v in again.variables] == [v.dtype for v in optimizer.variables]


def test_variables_overwritten_with_their_gradient_and_empty_ones(keras, fast):
    shapes = ((3, 2), (0,), (0, 5), (2,), ())
    for options in OPTIONS.values():
        variables = variables_of(keras, parameters(shapes), dtype="bfloat16")
        variables[3].overwrite_with_gradient = True
        optimizer = fast.Adam(0.01, **options)
        apply(optimizer, keras, variables, gradients(3, shapes), "bfloat16")
        assert is_fused(optimizer)
        (last,) = rounded([gradients(3, shapes)[-1][3]], "bfloat16")
        np.testing.assert_array_equal(in_float32(keras, variables[3]), last)
        assert all(row[3] is None and row[0] is not None for row in optimizer._beside.values())


def test_the_step_works_on_the_memory_of_keras(keras, fast, backend):
    """And reads gradients of 16 bits as they lie."""
    if backend == "numpy":
        pytest.skip("only torch tells")
    import torch

    variable = keras.Variable(np.zeros((3000, 3000), np.float32), dtype="bfloat16")
    optimizer = fast.Adam(global_clipnorm=1.0, use_ema=True, compensation="kahan")
    optimizer.build([variable])
    grads = [torch.ones(3000, 3000, dtype=torch.bfloat16)]
    optimizer.apply(grads)
    addresses = [each.value.data_ptr() for each in (variable, *optimizer.variables)]
    assert peak_memory(lambda: optimizer.apply(grads)) < 1 << 20
    assert [each.value.data_ptr() for each in (variable, *optimizer.variables)] == addresses
    assert in_float32(keras, variable).max() < 0


# -- what is refused ---------------------------------------------------------------------------------------------------


@BOTH_HALVES
@rows("name", REFUSED)
def test_rules_that_look_at_more_than_an_element_are_refused(name, half, keras, fast):
    variables = variables_of(keras, parameters(), dtype=half)
    optimizer = getattr(fast, name)()
    optimizer.build(variables)
    before = [in_float32(keras, each) for each in (*variables, *optimizer.variables)]
    with pytest.raises(TypeError, match=rf'{half}, and {name} keeps .* float64: use the dtype policy "mixed_{half}"'):
        apply(optimizer, keras, variables, gradients(1), half)
    after = [in_float32(keras, each) for each in (*variables, *optimizer.variables)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@rows(
    "options, message",
    [
        ({"slot_dtype": "8bit"}, "a number for each element"),
        ({"slot_dtype": {"velocity": "8bit"}}, "a number for each element"),
        ({"slot_dtype": "half"}, "slot_dtype must be one of"),
        ({"slot_dtype": {"average": "float16"}}, "there is none: use_ema=True"),
        ({"master_weights": "double"}, "master_weights must be"),
        ({"compensation": True}, "compensation must be"),
        ({"stochastic_rounding": True, "compensation": "kahan"}, "choose one way"),
        ({"seed": -1}, "seed must be an int"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, fast):
    with pytest.raises(ValueError, match=message):
        fast.Adam(**options)


@rows(
    "options, half, message",
    [
        (
            {"slot_dtype": {"momentums": "float32"}},
            "bfloat16",
            "there is no slot 'momentums': the slots are momentum, ",
        ),
        ({"master_weights": "split"}, "float16", "takes bfloat16 apart"),
    ],
)
def test_options_that_do_not_fit_the_variables_are_refused(options, half, message, keras, fast):
    optimizer, variables = fast.Adam(**options), variables_of(keras, parameters(), dtype=half)
    with pytest.raises(ValueError, match=message):
        optimizer.build(variables)
    assert not optimizer.built and len(optimizer.variables) == 2


def test_options_cannot_be_set_later(fast):
    optimizer = fast.Adam(master_weights="split")
    with pytest.raises(AttributeError, match=r"master_weights says how state is made, .* give it to Adam\(\.\.\.\)"):
        optimizer.master_weights = None
    assert optimizer.master_weights == "split" and optimizer.slot_dtype is None


def test_slots_in_16_bits_of_a_rule_that_has_none_are_refused(keras, fast):
    optimizer = fast.Lamb(slot_dtype="bfloat16")
    with pytest.raises(TypeError, match="Lamb keeps parameters and state in float32 or float64: leave slot_dtype out"):
        optimizer.build(variables_of(keras, parameters()))


def test_what_only_the_fused_pass_can_do_never_runs_without_it(keras, fast, monkeypatch):
    class Own(fast.SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.assign(variable, variable * 0.5)

    variables = variables_of(keras, parameters(), dtype="bfloat16")
    before = [in_float32(keras, variable) for variable in variables]
    for optimizer in (Own(0.1, stochastic_rounding=True), fast.SGD(0.1, stochastic_rounding=True)):
        optimizer.build(variables)
        held = [keras.ops.convert_to_tensor(variable) for variable in optimizer.variables]
        grads = cast(keras, gradients(1)[0], "bfloat16")
        with pytest.raises(RuntimeError, match="stochastic_rounding=True is for the fused update only: "):
            if type(optimizer) is Own:
                optimizer.apply(grads)
            else:
                optimizer.stateless_apply(held, grads, [variable.value for variable in variables])
    for variable, expected in zip(variables, before, strict=True):
        np.testing.assert_array_equal(in_float32(keras, variable), expected)
    monkeypatch.setattr("fastopt.keras.fused.Fused._memory", None)
    with pytest.raises(RuntimeError, match="master_weights='split' is for the fused update only: the "):
        fast.Adam(master_weights="split")


@rows("options", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_subclass_with_a_step_of_its_own_is_what_runs(options, keras, fast):
    class Halving(fast.SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.assign(variable, variable * 0.5)

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

    variables = variables_of(keras, [np.ones(3)], dtype="bfloat16")
    with pytest.warns(UserWarning, match="update_step of its own"):
        apply(Halving(0.1, **options), keras, variables, [[np.ones(3, np.float32)]] * 2, "bfloat16")
    np.testing.assert_array_equal(in_float32(keras, variables[0]), 0.5 if options else 0.25)


def test_a_layer_moved_to_another_dtype_never_reaches_the_kernels(keras, fast, backend):
    """Keras's own update runs, and says so."""
    if backend == "numpy":
        pytest.skip("here a variable is moved back: Keras itself starts some in another dtype than they say")
    (variable,) = variables_of(keras, [np.ones(3)])
    optimizer = fast.SGD(0.25, momentum=0.5)
    optimizer.build([variable])
    variable._value = keras.ops.cast(variable.value, "bfloat16")
    with pytest.warns(UserWarning, match="is float32 .* needs bfloat16"):
        optimizer.apply(cast(keras, [np.ones(3, np.float32)], "bfloat16"))
    assert not is_fused(optimizer)
    np.testing.assert_array_equal(in_float32(keras, variable), 0.75)
