"""The optimizers of old Keras releases: trajectories recorded from them, their surface, their weights lists."""

import copy
import inspect
import json
import pickle
from pathlib import Path

import children
import keras_reference
import legacy_oracle
import numpy as np
import pytest
import table
from compare import relative_error
from fastopt.kernels.compile import _jit
from rows import rows

import fastopt
import fastopt.compat
from fastopt.compat import arguments_for, keras_1_0, keras_2_2, keras_2_3, load_weights, releases, weights_of
from fastopt.compat import backend as K

pytestmark = pytest.mark.xdist_group("compat")

BOUND = 1e-12
PROFILES = {"1.0.2": keras_1_0, "2.2.4": keras_2_2, "2.3.1": keras_2_3}
NAMES = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam")
CLASSES = [(release, name) for release in PROFILES for name in NAMES if (release, name) != ("1.0.2", "Nadam")]
every_class = pytest.mark.parametrize(("release", "name"), CLASSES, ids=lambda value: value)
later_profiles = pytest.mark.parametrize("release", ["2.2.4", "2.3.1"])

RECORDED = json.loads((Path(__file__).parent / "golden" / "legacy.json").read_text())
SHAPES = ((3, 2), (1,), (), (5,))


def make(release, name, /, *args, **kwargs):
    return getattr(PROFILES[release], name)(*args, **kwargs)


def arrays(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def trained(optimizer, steps, dtype=np.float64, first=1):
    """The optimizer's parameters after some steps."""
    params = arrays(0, dtype=dtype)
    optimizer.build(params)
    step(optimizer, range(first, first + steps))
    return params


def step(optimizer, seeds):
    for seed in seeds:
        optimizer.apply(arrays(seed))


def same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def state(optimizer):
    return {key: np.asarray(value).tobytes() for key, value in optimizer.state_dict().items()}


# -- trajectories ------------------------------------------------------------------------------------------------------


def recorded(*wanted):
    cases = [case for case in RECORDED["cases"] if case["version"] in wanted]
    ids = [f"{case['version']}-{case['optimizer']}-{'-'.join(case['kwargs'])}" for case in cases]
    return pytest.mark.parametrize("case", cases, ids=ids)


def float64(lists):
    return [np.array(values, np.float64) for values in lists]


def assert_follows(optimizer, case):
    """Parameters after every recorded step."""
    params = float64(RECORDED["params"])
    optimizer.build(params)
    for grads, expected in zip(RECORDED["grads"], case["steps"], strict=True):
        optimizer.apply(float64(grads))
        for param, value in zip(params, expected, strict=True):
            np.testing.assert_allclose(param, value, rtol=0, atol=BOUND)


def assert_weights(weights, expected):
    assert len(weights) == len(expected)
    for array, values in zip(weights, expected, strict=True):
        np.testing.assert_allclose(array, np.array(values), rtol=0, atol=BOUND)
        assert array.shape == np.shape(values)


@recorded(*PROFILES)
def test_profiles_reproduce_their_release(case):
    module = PROFILES[case["version"]].optimizers
    if "error" in case:
        with pytest.raises(AttributeError, match=r"has no attribute 'Nadam': it came with Keras 1\.0\.5"):
            getattr(module, case["optimizer"])
        return
    optimizer = getattr(module, case["optimizer"])(**case["kwargs"])
    assert_follows(optimizer, case)
    assert_weights(optimizer.get_weights(), case["weights"])
    assert_weights(weights_of(optimizer, case["version"]), case["weights"])
    assert list(optimizer.get_config().items()) == list(case["config"].items())


@recorded("1.1.0", "1.2.2")
def test_other_releases_through_the_table_of_differences(case):
    release, name = case["version"], case["optimizer"]
    if "error" in case:
        kind, message = case["error"].split(": ", 1)
        with pytest.raises(Exception, match=message) as caught:
            arguments_for(release, name, case["kwargs"])
        assert caught.type.__name__ == kind
        return
    optimizer = getattr(keras_2_2, name)(**arguments_for(release, name, case["kwargs"]))
    assert_follows(optimizer, case)
    absent = {
        key
        for row in releases.DIFFERENCES
        if release in row.releases and name in row.classes
        for key in row.absent_from_config
    }
    assert {k: v for k, v in optimizer.get_config().items() if k not in absent} == case["config"]
    expected = case["weights"]
    if name == "SGD" and not optimizer.decay:
        expected = [5.0, *expected[1:]]  # the release counts only where it decays
    assert_weights(weights_of(optimizer, release), expected)


def test_every_recorded_case_is_used():
    assert len(RECORDED["cases"]) == 55
    assert {case["version"] for case in RECORDED["cases"]} == {*PROFILES, "1.1.0", "1.2.2"}


OPTIONS = {
    "plain": {},
    "epsilon": {"epsilon": 1e-2},
    "decay": {"decay": 0.3},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.1},
    "both": {"clipnorm": 2.0, "clipvalue": 0.3, "decay": 0.01},
    "own": {"momentum": 1.05, "nesterov": True, "rho": 0.5, "beta_1": 0.5, "beta_2": 0.8, "amsgrad": True,
            "schedule_decay": 0.5},
    "odd": {"momentum": -0.5, "rho": 1.0, "beta_1": -0.5, "schedule_decay": -1.0, "epsilon": 1e-3, "decay": -0.001},
}  # fmt: skip


def known(release, name, options):
    """Those of the options that a class takes."""
    takes = {*legacy_oracle.DEFAULTS[name], *["epsilon"] * (name != "SGD"), "clipnorm", "clipvalue"}
    if name == "Nadam":
        takes -= {"decay"}
    if release == "1.0.2":
        takes -= {"amsgrad", *["decay"] * (name != "SGD")}
    return {key: value for key, value in options.items() if key in takes}


@rows("options", OPTIONS.values(), ids=OPTIONS)
@every_class
def test_float64_follows_the_oracle(release, name, options):
    options = known(release, name, options)
    rng = np.random.default_rng(7)
    params = [np.asarray(rng.normal(size=shape)) for shape in table.SHAPES]
    steps = table.gradients(rng, table.SHAPES, 50)
    oracle = legacy_oracle.Oracle(name, release, params, lr=table.RATES[name], **options)
    optimizer = make(release, name, table.RATES[name], **options)
    optimizer.build(params)
    for grads in steps:
        grads = [np.asarray(grad, np.float64) for grad in grads]
        optimizer.apply(grads)
        for param, expected in zip(params, oracle.apply(grads), strict=True):
            assert relative_error(param, expected) < BOUND
    assert optimizer.iterations == 50


@every_class
def test_float32_stays_close_to_float64(release, name):
    ours, exact = (trained(make(release, name, 0.01), 20, dtype) for dtype in (np.float32, np.float64))
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@every_class
def test_second_step_compiles_nothing(release, name):
    """Nor does the first: all that a build leaves undone is the step that follows."""
    optimizer = make(release, name, clipnorm=1.0, clipvalue=0.5)
    params = arrays(0)
    optimizer.build(params)
    step(optimizer, [1])
    before = _jit.compilations
    with children.recorded_compilations() as events:
        step(optimizer, [2, 3])
    assert (_jit.compilations - before, list(events)) == (0, [])


@every_class
def test_one_launch_per_step(release, name, launches):
    optimizer = make(release, name)
    trained(optimizer, 1)
    launches.clear()
    step(optimizer, [2])
    assert len(launches) == 1


# -- the learning rate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", PROFILES)
def test_decay_counts_updates(release):
    """Rate 0.1, decay 0.5, gradient 1: SGD is at -0.1, -0.16667, -0.21667 after three steps."""
    param = np.zeros(1)
    optimizer = make(release, "SGD", lr=0.1, decay=0.5)
    optimizer.build([param])
    seen = []
    for _ in range(3):
        optimizer.apply([np.ones(1)])
        seen.append(param[0])
    np.testing.assert_allclose(seen, [-0.1, -0.1 - 0.1 / 1.5, -0.1 - 0.1 / 1.5 - 0.05], rtol=1e-15)
    assert (optimizer.lr, optimizer.learning_rate, optimizer.iterations) == (0.1, 0.1, 3)


@pytest.mark.parametrize(("release", "moved"), [("1.0.2", -0.3), ("2.2.4", -0.2), ("2.3.1", -0.2)])
def test_negative_decay(release, moved):
    """1.0 applies it, later releases ignore it."""
    param = np.zeros(1)
    optimizer = make(release, "SGD", lr=0.1, decay=-0.5)
    optimizer.build([param])
    for _ in range(2):
        optimizer.apply([np.ones(1)])
    assert param[0] == pytest.approx(moved)


def test_decay_that_divides_by_zero_is_refused():
    param = np.zeros(1)
    optimizer = keras_1_0.SGD(decay=-1.0)
    optimizer.build([param])
    optimizer.apply([np.ones(1)])
    before = state(optimizer), param.copy()
    with pytest.raises(ValueError, match="by zero at iteration 1"):
        optimizer.apply([np.ones(1)])
    assert (state(optimizer), param) == before


@later_profiles
def test_only_a_decay_that_was_positive_at_first_can_be_changed(release):
    for start, rates in ((0.0, [0.1, 0.1]), (0.5, [0.1, 0.1 / 2])):
        param = np.zeros(1)
        optimizer = make(release, "SGD", 0.1, decay=start)
        optimizer.build([param])
        optimizer.decay = 1.0
        for _ in rates:
            optimizer.apply([np.ones(1)])
        assert param[0] == pytest.approx(-sum(rates))


@every_class
def test_rate_can_be_set(release, name):
    optimizer = make(release, name)
    optimizer.learning_rate = 0.5
    assert optimizer.lr == 0.5
    if release == "2.3.1":
        with pytest.raises(AttributeError):
            optimizer.lr = 0.25
        assert optimizer.learning_rate == 0.5
    else:
        optimizer.lr = 0.25
        assert optimizer.learning_rate == 0.25
    assert optimizer.get_config()["learning_rate" if release == "2.3.1" else "lr"] == optimizer.lr


@every_class
def test_rate_and_count_can_be_set_as_the_backends_set_variables(release, name):
    """``K.set_value(x, value)`` of 1.0 to 2.3 is ``x.set_value(value)`` on Theano; 2.3's ``lr`` has no other setter.

    Source: https://github.com/keras-team/keras/blob/2.3.1/keras/backend/theano_backend.py
    """
    one, other = make(release, name), make(release, name)
    before = one.lr
    one.lr.set_value(np.float32(0.25))
    K.set_value(other.lr, np.array(0.25))
    assert one.lr == other.lr == other.learning_rate == 0.25
    assert (K.get_value(before), type(before.get_value()), before) == (0.25, float, other.__class__().lr)
    params = [trained(optimizer, 2) for optimizer in (one, other)]
    K.set_value(one.iterations, 7)
    other.iterations = 7
    assert (one.iterations, K.get_value(one.iterations)) == (7, 7)
    for optimizer in (one, other):
        step(optimizer, [3])
    same(*params)
    assert one.get_config() == other.get_config()
    assert type(copy.deepcopy(one.lr)) is float
    assert type(pickle.loads(pickle.dumps(one.iterations))) is int
    assert json.loads(json.dumps({"lr": one.lr})) == {"lr": 0.25}


def test_what_set_value_refuses():
    optimizer = keras_2_2.SGD(lr=0.5, momentum=0.25)
    with pytest.raises(TypeError, match=r"0\.25 is a plain float.*optimizer\.momentum = "):
        K.set_value(optimizer.momentum, 0.5)
    with pytest.raises(ValueError, match="learning_rate"):
        optimizer.lr.set_value(float("nan"))
    with pytest.raises(ValueError, match="iterations"):
        optimizer.iterations.set_value(-1)
    assert (optimizer.lr, optimizer.iterations) == (0.5, 0)


@every_class
def test_initial_decay_is_there_where_the_release_had_it(release, name):
    """1.0 had none, and Nadam never had a decay."""
    assert hasattr(make(release, name), "initial_decay") == (release != "1.0.2" and name != "Nadam")


# -- clipping ----------------------------------------------------------------------------------------------------------


@every_class
@rows("limits", [(0.0, 0.0), (-1.0, -1.0)])
def test_limits_of_zero_or_less_are_none(release, name, limits):
    plain, limited = make(release, name), make(release, name, clipnorm=limits[0], clipvalue=limits[1])
    same(trained(limited, 3), trained(plain, 3))


def test_nan_norm_leaves_the_other_gradients_unclipped():
    params = [np.zeros(1), np.zeros(1)]
    optimizer = keras_2_2.SGD(1.0, clipnorm=0.5)
    optimizer.build(params)
    optimizer.apply([np.array([np.nan]), np.array([3.0])])
    assert np.isnan(params[0][0])
    assert params[1][0] == -3.0
    optimizer.apply([np.array([1.0]), np.array([0.0])])
    assert params[1][0] == -3.0


def test_clipping_stops_when_the_norm_is_below():
    param = np.zeros(1)
    optimizer = keras_2_3.SGD(1.0, clipnorm=2.0)
    optimizer.build([param])
    for grad in (8.0, 1.0):
        optimizer.apply([np.array([grad])])
    assert param[0] == -3.0
    assert optimizer.last_grad_norm == 1.0


@every_class
def test_no_gradient_is_an_error(release, name):
    optimizer = make(release, name)
    params = trained(optimizer, 1)
    before = state(optimizer), [param.copy() for param in params]
    grads = arrays(2)
    with pytest.raises(ValueError, match="An operation has `None` for gradient"):
        optimizer.apply([*grads[:-1], None])
    assert state(optimizer) == before[0]
    same(params, before[1])


# -- arguments ---------------------------------------------------------------------------------------------------------

SIGNATURES = {
    "1.0.2": {
        "SGD": "lr=0.01, momentum=0.0, decay=0.0, nesterov=False, *args, **kwargs",
        "RMSprop": "lr=0.001, rho=0.9, epsilon=1e-06, *args, **kwargs",
        "Adagrad": "lr=0.01, epsilon=1e-06, *args, **kwargs",
        "Adadelta": "lr=1.0, rho=0.95, epsilon=1e-06, *args, **kwargs",
        "Adam": "lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-08, *args, **kwargs",
        "Adamax": "lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-08, *args, **kwargs",
    },
    "2.2.4": {
        "SGD": "lr=0.01, momentum=0.0, decay=0.0, nesterov=False, **kwargs",
        "RMSprop": "lr=0.001, rho=0.9, epsilon=None, decay=0.0, **kwargs",
        "Adagrad": "lr=0.01, epsilon=None, decay=0.0, **kwargs",
        "Adadelta": "lr=1.0, rho=0.95, epsilon=None, decay=0.0, **kwargs",
        "Adam": "lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=None, decay=0.0, amsgrad=False, **kwargs",
        "Adamax": "lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=None, decay=0.0, **kwargs",
        "Nadam": "lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=None, schedule_decay=0.004, **kwargs",
    },
    "2.3.1": {
        "SGD": "learning_rate=0.01, momentum=0.0, nesterov=False, **kwargs",
        "RMSprop": "learning_rate=0.001, rho=0.9, **kwargs",
        "Adagrad": "learning_rate=0.01, **kwargs",
        "Adadelta": "learning_rate=1.0, rho=0.95, **kwargs",
        "Adam": "learning_rate=0.001, beta_1=0.9, beta_2=0.999, amsgrad=False, **kwargs",
        "Adamax": "learning_rate=0.002, beta_1=0.9, beta_2=0.999, **kwargs",
        "Nadam": "learning_rate=0.002, beta_1=0.9, beta_2=0.999, **kwargs",
    },
}


@every_class
def test_signatures(release, name):
    parameters = inspect.signature(getattr(PROFILES[release], name)).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert ", ".join(map(str, bare)) == SIGNATURES[release][name]


@every_class
def test_positional_arguments(release, name):
    shown = inspect.signature(getattr(PROFILES[release], name)).parameters.values()
    keys = [p.name for p in shown if p.kind is p.POSITIONAL_OR_KEYWORD]
    values = [0.5 - 0.01 * k for k in range(len(keys))]
    by_position, by_name = make(release, name, *values), make(release, name, **dict(zip(keys, values, strict=True)))
    assert by_position.get_config() == by_name.get_config()
    assert [by_position.get_config()[key] for key in keys] == values


def test_first_release_swallows_what_it_does_not_know():
    optimizer = keras_1_0.SGD(0.5, 0.0, 0.0, False, "more", learning_rate=3.0, name="mine", use_ema=True, amsgrad=1)
    assert optimizer.get_config() == {"name": "SGD", "lr": 0.5, "momentum": 0.0, "decay": 0.0, "nesterov": False}
    assert not optimizer.use_ema
    same(trained(keras_1_0.Adam(decay=0.5, amsgrad=True), 3), trained(keras_1_0.Adam(), 3))


@rows(
    ("release", "name", "argument"),
    [
        *[(release, name, "name") for release, name in CLASSES if release != "1.0.2"],
        *[(release, name, "global_clipnorm") for release, name in CLASSES if release != "1.0.2"],
        *[("2.2.4", name, "learning_rate") for name in NAMES],
        ("2.2.4", "Nadam", "decay"), ("2.3.1", "Nadam", "decay"), ("2.2.4", "SGD", "epsilon"),
        ("2.3.1", "SGD", "epsilon"), ("2.3.1", "Adam", "schedule_decay"), ("2.2.4", "Adam", "schedule_decay"),
        ("2.2.4", "SGD", "use_ema"), ("2.3.1", "SGD", "weight_decay"),
    ],
)  # fmt: skip
def test_unknown_arguments(release, name, argument):
    with pytest.raises(TypeError, match=f"^Unexpected keyword argument passed to optimizer: {argument}$"):
        make(release, name, **{argument: 0.5})


@later_profiles
def test_too_many_positional_arguments(release):
    with pytest.raises(TypeError, match="signature is"):
        make(release, "SGD", 0.01, 0.9, 1e-6, True, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_old_names_in_2_3(name):
    optimizer = make("2.3.1", name, 0.5, lr=0.25)
    assert (optimizer.learning_rate, optimizer.lr) == (0.25, 0.25)
    old = {"decay": 0.5, "epsilon": 1e-3} if name != "Nadam" else {"schedule_decay": 0.5, "epsilon": 1e-3}
    old = old if name != "SGD" else {"decay": 0.5}
    config = make("2.3.1", name, **old).get_config()
    assert {key: config[key] for key in old} == old
    same(trained(make("2.3.1", name, lr=0.1, **old), 4), trained(make("2.2.4", name, lr=0.1, **old), 4))


@pytest.mark.parametrize("name", NAMES[1:])
def test_epsilon(name):
    assert make("2.2.4", name, epsilon=None).epsilon == make("2.3.1", name).epsilon == 1e-7
    for release in ("2.3.1", *["1.0.2"] * (name != "Nadam")):
        with pytest.raises(TypeError, match="epsilon must be a number, got NoneType"):
            make(release, name, epsilon=None)


def test_truth_is_enough_for_a_switch():
    """The fourth argument of Adam was epsilon, and is amsgrad in 2.3."""
    optimizer = keras_2_3.Adam(0.001, 0.9, 0.999, 1e-8)
    trained(optimizer, 1)
    assert "velocity_hat" in optimizer.slots
    assert optimizer.get_config()["amsgrad"] == 1e-8


@rows("key", ["clipnorm", "clipvalue"])
@every_class
def test_clipping_arguments(release, name, key):
    for bad, error in ((None, TypeError), ("1", TypeError), (np.nan, ValueError)):
        with pytest.raises(error, match=key):
            make(release, name, **{key: bad})
    config = make(release, name, **{key: 0.0}).get_config()
    assert config.get(key, "absent") == ("absent" if release == "1.0.2" else 0.0)


REFUSED = {
    "lr": [np.nan, np.inf, "0.1", None, lambda: 0.1, [0.1]],
    "momentum": [np.nan, "0.9", lambda: 0.9],
    "decay": [np.nan, "0", None],
    "nesterov": ["yes", None, [1]],
    "amsgrad": ["yes", None],
    "rho": [1.5, -0.1, np.nan, "0.9"],
    "epsilon": [-1e-8, np.nan, "1e-8"],
    "beta_1": [1.0, -1.0, np.nan, "0.9"],
    "schedule_decay": [np.inf, "0.004"],
}


@every_class
def test_arguments_that_can_only_give_nan_are_refused(release, name):
    takes = make(release, name)
    refused = dict(REFUSED, beta_2=[np.nan, "1"] if name == "Adamax" else [1.0, 1.5, np.nan, "1"])
    tried = [key for key in refused if key == "lr" or key in takes._own]
    for key in tried:
        for value in refused[key]:
            with pytest.raises((TypeError, ValueError), match="learning_rate" if key == "lr" else key):
                make(release, name, **{key: value})
    assert len(tried) >= 2


@every_class
def test_numbers_that_the_releases_took(release, name):
    odd = {"lr": -1, "momentum": 2, "beta_1": 1.5, "rho": 1, "schedule_decay": -1, "decay": np.float32(-2)}
    takes = make(release, name)
    given = {key: value for key, value in odd.items() if key == "lr" or key in takes._own}
    params = trained(make(release, name, **given, clipnorm=np.float32(1)), 2)
    assert all(np.isfinite(param).all() for param in params)


# -- configs and look-up -----------------------------------------------------------------------------------------------


@every_class
def test_config_round_trip(release, name):
    given = known(release, name, {**OPTIONS["own"], "momentum": 0.5, "clipnorm": 1.0, "clipvalue": 2.0, "decay": 0.1})
    optimizer = make(release, name, 0.125, **given)
    config = optimizer.get_config()
    assert json.loads(json.dumps(config)) == config
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    assert type(again) is type(optimizer)
    assert repr(optimizer).startswith(f"{name}(")
    assert ("clipnorm" in config) == (release != "1.0.2")


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_2_2_are_read_in_2_3_only(name):
    config = make("2.2.4", name, 0.125).get_config()
    assert make("2.3.1", name).from_config(config).learning_rate == 0.125
    with pytest.raises(TypeError, match="Unexpected keyword argument passed to optimizer: learning_rate"):
        make("2.2.4", name).from_config(make("2.3.1", name).get_config())


def test_get_in_1_0():
    module = keras_1_0.optimizers
    for name in NAMES[:-1]:
        assert type(module.get(name)) is type(module.get(name.lower())) is getattr(module, name)
        assert getattr(module, name.lower()) is getattr(module, name)
    assert module.get("sgd", {"lr": 0.5}).lr == 0.5
    identifier = {"name": "Adam", "lr": 0.5}
    assert module.get(identifier).lr == module.get(identifier).lr == 0.5
    marker = object()
    assert module.get(marker) is marker
    for unknown in ("ADAM", "nadam", "", {"name": "nothing"}, {}):
        with pytest.raises(Exception, match=r"^Invalid optimizer: ") as caught:
            module.get(unknown)
        assert caught.type is Exception
    config = {"class_name": "adam", "config": {"lr": 0.5}}
    assert module.optimizer_from_config(config).lr == 0.5
    assert config["class_name"] == "adam"


@later_profiles
def test_get_in_2(release):
    module = PROFILES[release].optimizers
    for name in NAMES:
        assert type(module.get(name)) is type(module.get(name.upper())) is getattr(module, name)
        assert getattr(module, name.lower()) is getattr(module, name) is getattr(PROFILES[release], name)
    optimizer = module.Adam(0.5, clipnorm=1.0)
    assert module.get(optimizer) is optimizer
    serialized = module.serialize(optimizer)
    assert serialized == {"class_name": "Adam", "config": optimizer.get_config()}
    assert module.deserialize(serialized).get_config() == optimizer.get_config()
    assert module.get({**serialized, "class_name": "aDAM"}).get_config() == optimizer.get_config()
    assert module.serialize(None) is None
    mine = type("Mine", (module.SGD,), {})
    assert type(module.deserialize({"class_name": "Mine", "config": {}}, {"Mine": mine})) is mine


@later_profiles
def test_look_up_errors_in_2(release):
    module = PROFILES[release].optimizers
    with pytest.raises(ValueError, match=r"^Unknown optimizer: nothing$"):
        module.get("nothing")
    for other in (None, 3, module.SGD):
        with pytest.raises(ValueError, match=r"^Could not interpret optimizer identifier: "):
            module.get(other)
    for config in ({}, {"class_name": "SGD"}, [], None):
        with pytest.raises(ValueError, match=r"^Improper config format: "):
            module.deserialize(config)
    with pytest.raises(ValueError, match=r"^Cannot serialize"):
        module.serialize("sgd")


def test_nadam_is_not_in_1_0():
    for module in (keras_1_0, keras_1_0.optimizers):
        for name in ("Nadam", "nadam"):
            with pytest.raises(AttributeError, match=r"came with Keras 1\.0\.5"):
                getattr(module, name)
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
            getattr(module, "nothing")  # noqa: B009


# -- as any optimizer of fastopt ---------------------------------------------------------------------------------------


@every_class
def test_is_an_optimizer(release, name):
    optimizer = make(release, name, clipnorm=1.0)
    assert isinstance(optimizer, fastopt.Optimizer)
    assert isinstance(optimizer, PROFILES[release].optimizers.Optimizer)
    assert optimizer.release == release
    params = trained(optimizer, 3)
    twins = [pickle.loads(pickle.dumps((optimizer, params))), copy.deepcopy((optimizer, params))]
    step(optimizer, range(4, 7))
    for twin, its_params in twins:
        step(twin, range(4, 7))
        same(its_params, params)
        assert state(twin) == state(optimizer)
        assert twin.get_config() == optimizer.get_config()


@every_class
def test_state_dict(release, name):
    first, second = make(release, name), make(release, name)
    params, others = trained(first, 3), trained(second, 0)
    second.load_state_dict(first.state_dict())
    for other, param in zip(others, params, strict=True):
        other[...] = param
    step(first, [4, 5])
    step(second, [4, 5])
    same(others, params)


@every_class
def test_abstract_base(release, name):
    with pytest.raises(TypeError, match="is abstract"):
        PROFILES[release].optimizers.Optimizer()


def test_in_a_loss_scale_optimizer():
    plain, inner = keras_2_2.Adam(clipnorm=1.0), keras_2_2.Adam(clipnorm=1.0)
    params, scaled = trained(plain, 3), arrays(0)
    optimizer = fastopt.LossScaleOptimizer(inner, initial_scale=8.0)
    optimizer.build(scaled)
    for seed in range(1, 4):
        optimizer.apply([8.0 * grad for grad in arrays(seed)])
    same(scaled, params)
    optimizer.apply([np.full_like(grad, np.nan) for grad in arrays(4)])
    same(scaled, params)


# -- weights lists -----------------------------------------------------------------------------------------------------


@every_class
def test_weights_carry_on_bit_for_bit(release, name):
    kwargs = known(release, name, {"momentum": 0.9})
    first, second = make(release, name, **kwargs), make(release, name, **kwargs)
    params, others = trained(first, 5), trained(second, 5, first=20)
    second.set_weights(first.get_weights())
    same(second.get_weights(), first.get_weights())
    for other, param in zip(others, params, strict=True):
        other[...] = param
    step(first, range(6, 9))
    step(second, range(6, 9))
    same(others, params)


@every_class
def test_weights_before_building(release, name):
    optimizer = make(release, name)
    assert optimizer.get_weights() == []
    optimizer.set_weights([])
    with pytest.raises(Exception, match="weight"):
        optimizer.set_weights([np.zeros(2)])


def test_lists_of_first_release_leave_the_count_alone():
    optimizer = keras_1_0.SGD(momentum=0.9, decay=0.5)
    trained(optimizer, 3)
    optimizer.set_weights([np.ones(shape) for shape in SHAPES])
    assert optimizer.iterations == 3


def test_2_2_forgets_the_momenta_of_nadam_but_the_converter_does_not():
    first = keras_2_2.Nadam()
    params = trained(first, 5)
    weights = first.get_weights()
    forgetful, second = keras_2_2.Nadam(), keras_2_2.Nadam()
    others = trained(second, 0)
    trained(forgetful, 0)
    forgetful.set_weights(weights)
    assert forgetful.state_dict()["u_product"] == 1.0
    load_weights(second, weights, "2.2.4")
    assert state(second) == state(first)
    for other, param in zip(others, params, strict=True):
        other[...] = param
    step(first, [6])
    step(second, [6])
    same(others, params)


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Adadelta", "Nadam"])
def test_2_3_completes_the_lists_of_2_2(name):
    old, new = make("2.2.4", name), make("2.3.1", name)
    trained(old, 4)
    trained(new, 2)
    new.set_weights(old.get_weights())
    weights = new.get_weights()
    position, start = (1, 1.0) if name == "Nadam" else (0, 0)
    assert weights.pop(position) == start
    same(weights, old.get_weights())


@every_class
def test_weights_that_do_not_fit(release, name):
    optimizer = make(release, name)
    trained(optimizer, 2)
    before, weights = state(optimizer), optimizer.get_weights()
    error = Exception if release == "1.0.2" else ValueError
    length = "Provided weight array does not match" if release == "1.0.2" else "Length of the specified weight list"
    for wrong in (weights[2:], [*weights, weights[0]], []):
        with pytest.raises(error, match=length) as caught:
            optimizer.set_weights(wrong)
        assert caught.type is error
    with pytest.raises(error, match=r"Optimizer weight shape \(5,\) not compatible with provided weight shape \(6,\)"):
        optimizer.set_weights([np.zeros(6) if array.shape == (5,) else np.zeros_like(array) for array in weights])
    for values in (np.full(5, "x"), np.full(5, None), np.full(5, 1j)):
        with pytest.raises(TypeError, match="numbers"):
            optimizer.set_weights([values if array.shape == (5,) else array for array in weights])
    assert state(optimizer) == before


def test_counts_that_are_none():
    optimizer = keras_2_3.Adam()
    trained(optimizer, 2)
    before, weights = state(optimizer), optimizer.get_weights()
    for count in (-1, 0.5, np.nan):
        with pytest.raises(ValueError, match="iterations"):
            optimizer.set_weights([np.array(count), *weights[1:]])
    assert state(optimizer) == before


def test_dummies_of_adam():
    plain, amsgrad = keras_2_2.Adam(), keras_2_2.Adam(amsgrad=True)
    trained(plain, 2)
    trained(amsgrad, 2)
    assert [array.shape for array in plain.get_weights()[-4:]] == [(1,)] * 4
    assert [array.shape for array in amsgrad.get_weights()[-4:]] == list(SHAPES)
    with pytest.raises(ValueError, match="not compatible"):
        amsgrad.set_weights(plain.get_weights())


def test_frozen_parameters_have_no_weights():
    optimizer = keras_2_3.SGD(momentum=0.9)
    optimizer.build({"a": np.ones(2), "b": np.ones(3)}, overrides={"a": {"trainable": False}})
    assert [array.shape for array in optimizer.get_weights()] == [(), (3,)]


MODERN = {
    "SGD": [{}, {"momentum": 0.9}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}, {"centered": True}],
    "Adagrad": [{}],
    "Adadelta": [{}],
    "Adam": [{}, {"amsgrad": True}],
    "AdamW": [{}],
    "Adamax": [{}],
    "Nadam": [{}],
}
LISTED = [(name, kwargs) for name, several in MODERN.items() for kwargs in several]
RELEASES = ("1.0.2", "1.0.6", "1.1.0", "1.2.2", "2.0.8", "2.2.4", "2.3.1", "tf_keras", "3", "3.15.1")


def no_list(name, kwargs, release):
    """Why a release cannot save such an optimizer."""
    if (name, release) == ("Nadam", "1.0.2"):
        return r"Keras 1\.0\.2 has no Nadam"
    later = {"RMSprop": ("2.2.4", "2.3.1"), "Adam": ()}.get(name) if kwargs else None
    old = later is not None and release in {"1.0.2", "1.0.6", "1.1.0", "1.2.2", "2.0.8", *later}
    return "has no room for" if old else None


@rows("release", RELEASES)
@pytest.mark.parametrize(("name", "kwargs"), LISTED)
def test_converter_round_trips(name, kwargs, release):
    first, second = (getattr(fastopt, name)(0.01, **kwargs) for _ in range(2))
    params, others = trained(first, 5), trained(second, 2)
    refusal = no_list(name, kwargs, release)
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            weights_of(first, release)
        return
    weights = weights_of(first, release)
    held = {"iterations", "micro_steps"} & {e.name for e in fastopt.compat.weights.entries(first, release)}
    load_weights(second, weights, release, **({} if held else {"iterations": 5}))
    same(weights_of(second, release), weights)
    assert state(second) == state(first)
    for other, param in zip(others, params, strict=True):
        other[...] = param
    step(first, [6])
    step(second, [6])
    same(others, params)


@every_class
def test_converter_between_releases(release, name):
    """What a program of one release saved, taken up by today's class and handed to the next release."""
    kwargs = known(release, name, {"momentum": 0.9})
    old, modern, new = make(release, name, 0.01, **kwargs), getattr(fastopt, name)(0.01, **kwargs), make("2.3.1", name)
    trained(old, 4)
    trained(modern, 1)
    trained(new, 1)
    weights = weights_of(old, release)
    counted = {} if weights[0].shape == () else {"iterations": 4}
    load_weights(modern, weights, release, **counted)
    assert modern.iterations == 4
    load_weights(new, weights_of(modern, "3"), "3")
    for slot, found in new.slots.items():
        same(found, old.slots[slot])
    assert new.iterations == 4


def keras_weights(optimizer):
    return [np.array(variable.value) for variable in optimizer.variables]


@rows("common", [{}, {"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize(("name", "kwargs"), LISTED)
def test_variables_of_real_keras_3(name, kwargs, common):
    """Trained by Keras, taken over, trained on by both; then handed back."""
    keras = keras_reference.import_keras()
    shapes = ((3, 2), (5,))
    params = arrays(0, shapes, np.float32)
    variables = [keras.Variable(param, dtype="float32") for param in params]
    theirs = getattr(keras.optimizers, name)(learning_rate=0.01, **kwargs, **common)
    theirs.build(variables)
    for seed in range(1, 6):
        theirs.apply(arrays(seed, shapes, np.float32))
    params = [np.array(variable.value) for variable in variables]
    ours = getattr(fastopt, name)(0.5, **kwargs, **common)
    ours.build(params)
    load_weights(ours, keras_weights(theirs), "3")
    same(weights_of(ours, "3"), [np.asarray(array, other.dtype) for array, other in zip(
        keras_weights(theirs), weights_of(ours, "3"), strict=True)])  # fmt: skip
    assert ours.learning_rate == np.float32(0.01)
    assert ours.iterations == theirs.iterations
    for seed in range(6, 8):
        ours.apply(arrays(seed, shapes, np.float32))
        theirs.apply(arrays(seed, shapes, np.float32))
    for param, variable in zip(params, variables, strict=True):
        np.testing.assert_allclose(param, variable.value, rtol=0, atol=1e-6)
    again = getattr(keras.optimizers, name)(learning_rate=0.01, **kwargs, **common)
    again.build(variables)
    again.set_weights(weights_of(ours, "3"))
    for ours_now, theirs_now in zip(weights_of(ours, "3"), keras_weights(again), strict=True):
        np.testing.assert_allclose(theirs_now, ours_now, rtol=1e-6)


def test_converter_asks_for_what_a_list_lacks():
    optimizer = fastopt.SGD(momentum=0.9)
    trained(optimizer, 2)
    before, weights = state(optimizer), weights_of(optimizer, "1.0.2")
    with pytest.raises(ValueError, match="pass iterations="):
        load_weights(optimizer, weights, "1.0.2")
    with pytest.raises(ValueError, match="holds the count itself"):
        load_weights(optimizer, weights_of(optimizer, "2.3.1"), "2.3.1", iterations=2)
    for bad in (-1, 2.0, True, "2"):
        with pytest.raises((TypeError, ValueError), match="iterations"):
            load_weights(optimizer, weights, "1.0.2", iterations=bad)
    assert state(optimizer) == before


@pytest.mark.parametrize("release", ["2.4.0", "2.3", "4", "3.", "0.3.3", "latest", "", "2.2.4.1", "tf", "1.10.0x"])
def test_releases_that_are_none(release):
    optimizer = fastopt.SGD()
    trained(optimizer, 0)
    with pytest.raises(ValueError, match="release must be"):
        weights_of(optimizer, release)


def test_converter_refuses():
    unbuilt, lion, averaged = fastopt.Adam(), fastopt.Lion(), fastopt.Adam(use_ema=True)
    with pytest.raises(RuntimeError, match="not built"):
        weights_of(unbuilt, "2.2.4")
    trained(lion, 1)
    with pytest.raises(TypeError, match="weights lists of SGD"):
        weights_of(lion, "2.2.4")
    trained(averaged, 1)
    for convert in (weights_of, lambda optimizer, release: load_weights(optimizer, [], release)):
        with pytest.raises(ValueError, match="no room for average"):
            convert(averaged, "2.2.4")
    for other in (None, "adam", fastopt.Adam):
        with pytest.raises(TypeError, match="fastopt optimizer"):
            weights_of(other, "2.2.4")
    with pytest.raises(TypeError, match="release"):
        weights_of(averaged, 3)


HOSTILE = {
    "too short": lambda w: w[:-1],
    "too long": lambda w: [*w, w[-1]],
    "backwards": lambda w: w[::-1],
    "negative count": lambda w: [np.array(-1), *w[1:]],
    "count in words": lambda w: [np.array("many"), *w[1:]],
    "too large for float32": lambda w: [w[0], np.full_like(w[1], 1e39, np.float64), *w[2:]],
    "text": lambda w: [w[0], w[1].astype(str), *w[2:]],
    "complex": lambda w: [*w[:-1], w[-1] + 1j],
    "nothing": lambda w: [None] * len(w),
    "ragged": lambda w: [*w[:-1], [[1.0], [1.0, 2.0]]],
    "no list": lambda w: None,
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_lists_change_nothing(change):
    optimizer = fastopt.Adamax()
    trained(optimizer, 2, np.float32)
    before, weights = state(optimizer), weights_of(optimizer, "2.3.1")
    with pytest.raises((TypeError, ValueError)):
        load_weights(optimizer, change(weights), "2.3.1")
    assert state(optimizer) == before


# -- the table of differences ------------------------------------------------------------------------------------------


def test_differences_are_in_the_docstring():
    for row in releases.DIFFERENCES:
        assert row.what in fastopt.compat.__doc__


def test_arguments_for():
    assert arguments_for("1.1.0", "Adamax", {"decay": 0.1, "lr": 0.5}) == {"epsilon": 1e-8, "lr": 0.5}
    assert arguments_for("1.2.2", "Adamax", {"decay": 0.1, "epsilon": 1e-3}) == {"epsilon": 1e-3, "decay": 0.1}
    assert arguments_for("1.2.2", "SGD", {}) == {}
    with pytest.raises(ValueError, match=r"no release '2\.0\.0'"):
        arguments_for("2.0.0", "SGD", {})
