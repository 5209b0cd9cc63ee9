"""Document 001: Adam as the Keras 3 documentation describes it."""

import inspect
import json

import compare
import keras_reference
import numpy as np
import pytest
from documents.runs import assert_same_steps, steps_of
from fastopt.kernels.rules import adam as adam_rules

import fastopt

KERAS = "Keras 3 itself"
DOCUMENTED = {
    "learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07, "amsgrad": False, "weight_decay": None,
    "clipnorm": None, "clipvalue": None, "global_clipnorm": None, "use_ema": False, "ema_momentum": 0.99,
    "ema_overwrite_frequency": None, "loss_scale_factor": None, "gradient_accumulation_steps": None,
}  # fmt: skip
HALVING = {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5}
RNG = np.random.default_rng(7)
PARAMS = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5,), ())]
GRADIENTS = [[RNG.normal(size=param.shape).astype(np.float32) for param in PARAMS] for _ in range(12)]


def adam(rate, grads, beta_1, beta_2, epsilon=1e-7):
    """Kingma and Ba, arXiv 1412.6980, end of section 2, in float64; the coefficients may differ from step to step."""
    m = v = np.zeros(2)
    param, steps = np.ones(2), []
    for t, (g, b1, b2) in enumerate(zip(grads, beta_1, beta_2, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        param = param - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + epsilon)
        steps.append([param])
    return steps


# -- signature and names -----------------------------------------------------------------------------------------------


@pytest.mark.row(36, oracle="the document's signature; `inspect.signature` of Keras 3's Adam")
def test_signature():
    ours = inspect.signature(fastopt.Adam).parameters
    keras = inspect.signature(keras_reference.import_keras().optimizers.Adam).parameters
    assert list(ours)[:15] == [*DOCUMENTED, "name"] == list(keras)[:15]
    assert {key: ours[key].default for key in DOCUMENTED} == DOCUMENTED
    assert {key: keras[key].default for key in DOCUMENTED} == DOCUMENTED
    positional = dict(zip(DOCUMENTED, [0.01, 0.8, 0.9, 1e-6, True, 0.1, 1.0], strict=False))
    config = fastopt.Adam(*positional.values()).get_config()
    assert {key: config[key] for key in positional} == positional


@pytest.mark.row(37, 40, 43, 44, 45, 53, 54, oracle="the document's defaults")
def test_defaults():
    config = fastopt.Adam().get_config()
    assert {key: config[key] for key in DOCUMENTED} == DOCUMENTED


@pytest.mark.row(47, oracle="the document's default; Keras 3's resolved name")
def test_name():
    assert fastopt.Adam().name == "adam"
    keras = keras_reference.import_keras()
    keras.backend.clear_session()
    assert keras.optimizers.Adam().name == "adam"
    assert fastopt.Adam(name="mine").get_config()["name"] == "mine"


# -- every argument against Keras --------------------------------------------------------------------------------------


def against_keras(*rows, **kwargs):
    shown = ", ".join(f"{key}={value[0] if isinstance(value, tuple) else value}" for key, value in kwargs.items())
    return pytest.param(kwargs, id=shown or "defaults", marks=pytest.mark.row(*rows, oracle=KERAS))


@pytest.mark.parametrize(
    "kwargs",
    [
        against_keras(46),
        against_keras(37, learning_rate=0.05),
        against_keras(38, learning_rate=("ExponentialDecay", HALVING)),
        against_keras(40, beta_1=0.5),
        against_keras(43, beta_2=0.9),
        against_keras(44, epsilon=0.1),
        against_keras(45, learning_rate=0.05, amsgrad=True, beta_2=0.5),
        against_keras(48, learning_rate=0.05, weight_decay=0.1),
        against_keras(49, epsilon=0.1, clipnorm=0.5),
        against_keras(50, epsilon=0.1, clipvalue=0.5),
        against_keras(51, epsilon=0.1, global_clipnorm=0.5),
        against_keras(53, learning_rate=0.05, use_ema=True),
        against_keras(54, learning_rate=0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1),
        against_keras(55, learning_rate=0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4),
        against_keras(58, epsilon=0.1, loss_scale_factor=8.0),
        against_keras(60, learning_rate=0.05, gradient_accumulation_steps=3),
        against_keras(
            62,
            learning_rate=("ExponentialDecay", HALVING),
            gradient_accumulation_steps=3,
        ),
    ],
)  # fmt: skip
def test_each_argument(kwargs):
    optimizer = fastopt.Adam(**compare.with_schedule(kwargs))
    steps = steps_of(optimizer, PARAMS, GRADIENTS)
    keras_steps, keras_slots = keras_reference.run("Adam", kwargs, PARAMS, GRADIENTS)
    assert_same_steps(steps, keras_steps, rtol=0, atol=5e-6)  # of rounding to float32, on either side
    assert optimizer.slots.keys() == keras_slots.keys()
    slots = compare.worst_of_slots(optimizer.slots, keras_slots)
    assert slots.error < 1e-4, slots


# -- what the arguments mean -------------------------------------------------------------------------------------------


@pytest.mark.row(38, oracle="the iteration that each call receives, counted by hand")
def test_a_schedule_is_called_with_the_iteration():
    class Halving(fastopt.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5**step

    optimizer = fastopt.SGD(Halving())
    assert steps_of(optimizer, [np.zeros(1)], [[np.ones(1)]] * 3) == [[-1.0], [-1.5], [-1.75]]


@pytest.mark.row(39, oracle="SGD by hand with the returned rates")
def test_the_learning_rate_may_be_a_function_without_arguments():
    rate = iter([0.5, 0.25, 1.0])
    now = next(rate)
    optimizer, param = fastopt.SGD(lambda: now), np.zeros(1)
    optimizer.build([param])
    for expected in (-0.5, -0.75, -1.75):
        optimizer.apply([np.ones(1)])
        assert param[0] == expected
        now = next(rate, None)


CHANGING = [0.9, 0.5, 0.8, 0.1]
CONSTANT = [0.6] * 4
PULLS = [np.array([1.0, -2.0]), np.array([-0.5, 3.0]), np.array([0.1, 0.2]), np.array([2.0, -1.0])]


@pytest.mark.row(42, 43, oracle="NumPy Adam with a coefficient per step (Keras documents callables, and raises)")
@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_betas_may_be_functions_without_arguments(name):
    values = iter(CHANGING)
    now = next(values)
    optimizer, param, steps = fastopt.Adam(0.1, **{"beta_1": 0.6, "beta_2": 0.6} | {name: lambda: now}), np.ones(2), []
    optimizer.build([param])
    for grad in PULLS:
        optimizer.apply([grad])
        steps.append([param.copy()])
        now = next(values, None)
    betas = (CHANGING, CONSTANT) if name == "beta_1" else (CONSTANT, CHANGING)
    assert_same_steps(steps, adam(0.1, PULLS, *betas), rtol=1e-12)


@pytest.mark.row(41, 43, oracle="the same run with a Python float")
@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
@pytest.mark.parametrize("tensor", [np.float64, np.array], ids=["scalar", "0-d array"])
def test_betas_may_be_constant_tensors(name, tensor):
    pulls = [[grad] for grad in PULLS]
    with_tensor = steps_of(fastopt.Adam(**{name: tensor(0.6)}), [np.ones(2)], pulls)
    assert_same_steps(with_tensor, steps_of(fastopt.Adam(**{name: 0.6}), [np.ones(2)], pulls), rtol=0)


@pytest.mark.row(44, oracle="the paper's formula before section 2.1, and its Algorithm 1, in NumPy")
def test_epsilon_is_epsilon_hat():
    ours = steps_of(fastopt.Adam(0.1, epsilon=0.1), [np.ones(2)], [PULLS[:1]])
    (grad,) = PULLS[:1]
    expected = adam(0.1, [grad], [0.9], [0.999], epsilon=0.1)
    assert_same_steps(ours, expected, rtol=1e-12)
    algorithm_1 = 1.0 - 0.1 * grad / (np.abs(grad) + 0.1)  # both corrections are exact at the first step
    assert np.all(np.abs(ours[0][0] - algorithm_1) > 0.01)


@pytest.mark.row(46, oracle="the two properties that the document quotes from the paper")
def test_memory_and_rescaling():
    optimizer = fastopt.Adam(0.1, epsilon=0.0)
    plain = steps_of(optimizer, [np.ones(2)], [[grad] for grad in PULLS])
    assert {name: [array.shape for array in arrays] for name, arrays in optimizer.slots.items()} == {
        "momentum": [(2,)],
        "velocity": [(2,)],
    }
    diagonal = np.array([64.0, 0.001])
    rescaled = steps_of(fastopt.Adam(0.1, epsilon=0.0), [np.ones(2)], [[grad * diagonal] for grad in PULLS])
    assert_same_steps(rescaled, plain, rtol=1e-12)


@pytest.mark.row(45, oracle="max of the uncorrected second moments, followed by hand")
def test_amsgrad_keeps_the_largest_second_moment():
    optimizer, param = fastopt.Adam(amsgrad=True, beta_2=0.5), np.ones(1)
    optimizer.build([param])
    seen = []
    for grad in (2.0, 0.0, 4.0):
        optimizer.apply([np.array([grad])])
        seen.append(float(optimizer.slots["velocity_hat"][0][0]))
    assert seen == [2.0, 2.0, 8.5]  # v = 2, 1, 8.5


@pytest.mark.row(48, oracle="w − w·wd·lr by hand (gradient zero)")
def test_weight_decay_is_decoupled():
    ours = steps_of(fastopt.Adam(0.5, weight_decay=0.1), [np.array([2.0])], [[np.zeros(1)]] * 2)
    assert ours == [[pytest.approx(1.9)], [pytest.approx(1.805)]]


TWO = [np.array([3.0, 4.0]), np.array([12.0])]  # norms 5 and 12, together 13


@pytest.mark.parametrize(
    "argument, expected",
    [
        pytest.param({"clipnorm": 1.0}, [[0.6, 0.8], [1.0]], marks=pytest.mark.row(49, oracle="3-4-5")),
        pytest.param({"clipvalue": 3.5}, [[3.0, 3.5], [3.5]], marks=pytest.mark.row(50, oracle="by hand")),
        pytest.param({"global_clipnorm": 6.5}, [[1.5, 2.0], [6.0]], marks=pytest.mark.row(51, oracle="5-12-13")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_clipping(argument, expected):
    """SGD at rate 1 from zero shows the clipped gradients."""
    ((first, second),) = steps_of(fastopt.SGD(1.0, **argument), [np.zeros(2), np.zeros(1)], [TWO])
    np.testing.assert_allclose(-first, expected[0])
    np.testing.assert_allclose(-second, expected[1])


@pytest.mark.row(52, oracle=KERAS)
def test_one_way_to_clip():
    keras = keras_reference.import_keras()
    for kind in (fastopt.Adam, keras.optimizers.Adam):
        for pair in ({"clipnorm": 1.0, "clipvalue": 1.0}, {"clipnorm": 1.0, "global_clipnorm": 1.0}):
            with pytest.raises(ValueError, match="clip"):
                kind(**pair)


# -- averages ----------------------------------------------------------------------------------------------------------


def average_by_hand(weights, momentum):
    averages = [weights[0]]
    for weight in weights[1:]:
        averages.append(momentum * averages[-1] + (1 - momentum) * weight)
    return averages


@pytest.mark.row(53, 54, oracle="the document's formula, by hand")
def test_the_average_follows_the_formula():
    optimizer, param, weights, averages = fastopt.SGD(1.0, use_ema=True, ema_momentum=0.75), np.zeros(1), [], []
    optimizer.build([param])
    for _ in range(4):
        optimizer.apply([np.ones(1)])
        weights.append(float(param[0]))
        averages.append(float(optimizer.slots["average"][0][0]))
    assert weights == [-1.0, -2.0, -3.0, -4.0]
    assert averages == average_by_hand(weights, 0.75)


@pytest.mark.row(55, oracle="the document's formula, by hand")
def test_the_average_overwrites_every_so_many_iterations():
    ours = steps_of(
        fastopt.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3), [np.zeros(1)], [[np.ones(1)]] * 4
    )
    assert ours == [[-1.0], [-2.0], [-2.25], [-3.25]]  # the average of -1, -2, -3 at momentum 0.5


@pytest.mark.row(56, oracle="the document's formula, by hand")
def test_finalize_puts_the_average_into_the_parameters():
    optimizer, param = fastopt.SGD(1.0, use_ema=True, ema_momentum=0.5), np.zeros(1)
    optimizer.build([param])
    for _ in range(3):
        optimizer.apply([np.ones(1)])
    assert param[0] == -3.0, "nothing overwrites during training"
    optimizer.finalize_variable_values()
    assert param[0] == -2.25


# -- loss scaling ------------------------------------------------------------------------------------------------------


@pytest.mark.row(58, oracle="the unscaled run, bit for bit: the factor is a power of two")
def test_loss_scale_factor():
    factor = 1024.0
    optimizer = fastopt.Adam(loss_scale_factor=factor)
    assert optimizer.scale_loss(0.25) == 256.0
    scaled = [[grad * np.float32(factor) for grad in step] for step in GRADIENTS]
    assert_same_steps(steps_of(optimizer, PARAMS, scaled), steps_of(fastopt.Adam(), PARAMS, GRADIENTS), rtol=0)


@pytest.mark.row(59, oracle="Keras 3's LossScaleOptimizer, with a gradient that is not finite among others")
def test_loss_scale_optimizer():
    keras = keras_reference.import_keras()
    arguments = {"initial_scale": 8.0, "dynamic_growth_steps": 2}
    ours, theirs = (kind(inner(0.5), **arguments) for kind, inner in (
        (fastopt.LossScaleOptimizer, fastopt.SGD), (keras.optimizers.LossScaleOptimizer, keras.optimizers.SGD)
    ))  # fmt: skip
    param, variable = np.ones(1, np.float32), keras.Variable(np.ones(1, np.float32))
    ours.build([param])
    theirs.build([variable])
    for grad in (8.0, np.inf, 4.0, 2.0, np.nan, 1.0, 1.0, 1.0, 1.0):
        ours.apply([np.array([grad], np.float32)])
        theirs.apply([np.array([grad], np.float32)])
        assert ours.dynamic_scale == float(theirs.dynamic_scale.value)
        assert param == np.array(variable.value)
        assert ours.scale_loss(3.0) == 3.0 * ours.dynamic_scale
    defaults = inspect.signature(fastopt.LossScaleOptimizer).parameters
    assert (defaults["initial_scale"].default, defaults["dynamic_growth_steps"].default) == (2.0**15, 2000)


# -- accumulation ------------------------------------------------------------------------------------------------------


@pytest.mark.row(60, oracle="the mean gradient, by hand")
def test_accumulation_takes_the_mean():
    optimizer = fastopt.SGD(1.0, momentum=0.5, gradient_accumulation_steps=2)
    gradients = [[np.array([g])] for g in (1.0, 3.0, -2.0, 0.0)]
    assert steps_of(optimizer, [np.zeros(1)], gradients) == [[0.0], [-2.0], [-2.0], [-2.0]]  # v = -2, then -1 + 1
    assert optimizer.iterations == 2


@pytest.mark.row(61, oracle="the document: optimizer steps // accumulation steps, counted by hand")
def test_averages_count_real_updates():
    optimizer = fastopt.SGD(
        1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2, gradient_accumulation_steps=2
    )
    steps = steps_of(optimizer, [np.zeros(1)], [[np.ones(1)]] * 6)
    assert steps == [[0.0], [-1.0], [-1.0], [-1.5], [-1.5], [-2.5]]  # overwritten after update 2, at call 4


@pytest.mark.row(62, oracle="the rate of every call, by hand")
def test_schedules_count_calls():
    schedule = fastopt.schedules.PiecewiseConstantDecay([1, 3], [1.0, 10.0, 100.0])
    steps = steps_of(fastopt.SGD(schedule, gradient_accumulation_steps=2), [np.zeros(1)], [[np.ones(1)]] * 6)
    assert steps == [[0.0], [-1.0], [-1.0], [-11.0], [-11.0], [-111.0]]  # calls 1, 3 and 5 set the rate


# -- refused, and named ------------------------------------------------------------------------------------------------


@pytest.mark.row(63, oracle="Keras 3 refuses unknown names and lr; decay is an error here, a warning in fastopt.keras")
@pytest.mark.parametrize("name", ["lr", "decay", "unheard_of"])
def test_unknown_arguments(name):
    with pytest.raises(TypeError, match=name):
        fastopt.Adam(**{name: 0.1})
    keras = keras_reference.import_keras()
    refused = pytest.warns(UserWarning, match="decay") if name == "decay" else pytest.raises(ValueError, match=name)
    with refused:
        keras.optimizers.Adam(**{name: 0.1})


@pytest.mark.row(64, oracle="the papers that the document names")
def test_the_rules_name_their_papers():
    assert "https://arxiv.org/abs/1412.6980" in adam_rules.adam.__doc__
    assert "ryQu7f-RZ" in adam_rules.amsgrad.__doc__


@pytest.mark.row(36, oracle="JSON")
def test_every_argument_survives_a_config():
    config = fastopt.Adam(0.5, 0.8, 0.9, 1e-3, True, 0.1, 1.0, name="mine").get_config()
    assert fastopt.Adam.from_config(json.loads(json.dumps(config))).get_config() == config
