"""Steps that repeat the last one give the bits that steps give which work everything out anew."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import table
from fastopt.kernels.compile import _jit
from fastopt.kernels.cpu import launch, repeated_step
from rows import rows

import fastopt
from fastopt import optimizers, scalars, schedules
from fastopt.compat import keras_2_2
from fastopt.steps.repeated import RepeatedSteps

NAMES = tuple(table.RATES)
SHAPES = ((), (7, 5), (33,), (3, 4, 5))
every_optimizer = pytest.mark.parametrize("name", NAMES)

OPTIONS = [
    {},
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    {"clipvalue": 0.5, "loss_scale_factor": 8.0},
    {"global_clipnorm": 1.0},
    {"clipnorm": 1.0},
    {"gradient_accumulation_steps": 2},
    {"nonfinite": "skip"},
]


@pytest.fixture
def repeated(monkeypatch):
    """Counts the steps that were done as the last one was."""
    done = []
    step = RepeatedSteps.step

    def counted(self, *arguments):
        done.append(step(self, *arguments))
        return done[-1]

    monkeypatch.setattr(RepeatedSteps, "step", counted)
    return done


def make(name, **options):
    return getattr(optimizers, name)(**({"learning_rate": table.RATES[name]} | options))


def arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in SHAPES]


class Twins:
    """An optimizer that may repeat steps, and one that may not."""

    def __init__(self, make, dtype=np.float32, overrides=None):
        self.both = [(make(), arrays(0, dtype)) for _ in range(2)]
        for optimizer, params in self.both:
            optimizer.build(params, overrides)
        self._dtype, self._steps = dtype, 0

    def step(self, count=1, **options):
        for _ in range(count):
            self._steps += 1
            for k, (optimizer, _) in enumerate(self.both):
                if k:
                    optimizer._repeated = None
                optimizer.apply(arrays(self._steps, self._dtype), **options)
            self.check()

    def do(self, change):
        for optimizer, _ in self.both:
            change(optimizer)

    def check(self):
        (one, own), (other, others) = self.both
        for a, b in zip(own, others, strict=True):
            assert a.tobytes() == b.tobytes()
        found, wanted = one.state_dict(), other.state_dict()
        assert found.keys() == wanted.keys()
        for key in found:
            assert np.asarray(found[key]).tobytes() == np.asarray(wanted[key]).tobytes(), key
        assert (one.last_grad_norm, one.last_step_skipped) == (other.last_grad_norm, other.last_step_skipped)


@every_optimizer
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_are_those_of_ordinary_steps(name, options, repeated):
    twins = Twins(lambda: make(name, **options))
    twins.step(9)
    by_norm = {"global_clipnorm", "clipnorm", "nonfinite"} & set(options)
    excluded = {"gradient_accumulation_steps", "ema_overwrite_frequency"} & set(options)
    assert any(repeated) == (not excluded and not (by_norm and name == "Muon"))  # that is two rules


@every_optimizer
def test_in_float64_with_groups(name, repeated):
    groups = {"^[01]$": {"learning_rate_multiplier": 0.5}, "^2$": {"weight_decay": 0.1}, "^3$": {"trainable": False}}
    Twins(lambda: make(name), np.float64, groups).step(6)
    assert any(repeated)


@every_optimizer
def test_gradients_that_come_and_go(name, repeated):
    """All of them matrices, so that Muon has one rule too."""
    both = [make(name), make(name)]
    params = [[np.full((6, 4), 0.5, np.float32), np.full((4, 6), 0.25, np.float32)] for _ in both]
    for optimizer, own in zip(both, params, strict=True):
        optimizer.build(own)
    rng = np.random.default_rng(3)
    for step in range(12):
        grads = [rng.normal(size=p.shape).astype(np.float32) for p in params[0]]
        if step in (5, 6, 9):
            grads[step % 2] = None
        both[1]._repeated = None
        for optimizer in both:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                optimizer.apply(list(grads))
        assert [p.tobytes() for p in params[0]] == [p.tobytes() for p in params[1]], step
    assert any(repeated)


def changes(name):
    """What may happen between two steps, by name."""

    def set_own(optimizer):
        for key in optimizer._own:
            value = getattr(optimizer, key)
            if type(value) is float and 0 < value < 1:
                setattr(optimizer, key, value * 0.5)

    def evaluate(optimizer):
        if optimizer.use_ema:
            with optimizer.evaluation_weights(), pytest.raises(RuntimeError, match="evaluation_weights"):
                optimizer.apply(arrays(1))

    def fail(optimizer):
        with pytest.raises((TypeError, ValueError)):
            optimizer.apply([np.ones(3, np.float32)])

    def rebuild(optimizer):
        optimizer.exclude_from_weight_decay(var_names=["1"])

    def start_again(optimizer):
        optimizer.load_state_dict(make_built(name).state_dict())

    numbers = {
        "learning_rate": 1e-3, "weight_decay": 0.2, "clipvalue": 0.1, "global_clipnorm": 0.5, "clipnorm": 0.5,
        "ema_momentum": 0.5, "loss_scale_factor": 4.0, "nonfinite": "raise",
    }  # fmt: skip
    settings = {key: partial(set_one, key=key, value=value) for key, value in numbers.items()}
    own = {each.__name__: each for each in (set_own, evaluate, fail, rebuild, start_again)}
    return settings | own


def set_one(optimizer, key, value):
    setattr(optimizer, key, value)


def make_built(name):
    optimizer = make(name, use_ema=True, ema_momentum=0.9)
    optimizer.build(arrays(0))
    return optimizer


class Rates:
    """A rate that is another one at every call."""

    def __init__(self):
        self._calls = 0

    def __call__(self):
        self._calls += 1
        return 0.01 / self._calls


@every_optimizer
def test_whatever_changes_is_noticed(name, repeated):
    for change in (*changes(name).values(), lambda optimizer: set_one(optimizer, "learning_rate", Rates())):
        twins = Twins(lambda: make(name, use_ema=True, ema_momentum=0.9))
        twins.step(4)
        assert repeated[-1]
        twins.do(change)
        twins.step(4)


def test_changes_within_a_hot_loop_are_noticed(repeated):
    """The interpreter replaces such assignments by faster ones."""
    twins = Twins(lambda: fastopt.SGD(0.1, momentum=0.9))
    for t in range(200):
        for optimizer, _ in twins.both:
            optimizer.momentum = 0.5 if t % 4 == 0 else 0.25
        twins.step()
    assert any(repeated) and not all(repeated)


def test_attributes_set_behind_the_back_are_noticed(repeated):
    def replace(optimizer):
        optimizer.__dict__ = dict(optimizer.__dict__, momentum=0.7)

    twins = Twins(lambda: fastopt.SGD(0.1, momentum=0.9))
    for change in (lambda optimizer: vars(optimizer).update(momentum=0.3), replace):
        twins.step(4)
        assert repeated[-1]
        twins.do(change)
        twins.step(4)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_values_that_can_change_within_are_looked_at_every_time(name, repeated):
    twins = Twins(lambda: make(name, weight_decay=0.5))
    twins.step(4)
    assert repeated[-1]
    decay = np.array(0.5)
    twins.do(lambda optimizer: setattr(optimizer, "weight_decay", decay))
    twins.step(3)
    decay[...] = 0.25
    twins.step(3)


class Halving:
    """Mixed in: the rate falls with the updates."""

    def _scalars(self, branch, learning_rate, t):
        return super()._scalars(branch, learning_rate / t, t)


class HalvingSGD(Halving, fastopt.SGD):
    pass


class HalvingAdam(Halving, fastopt.Adam):
    pass


class Warming(fastopt.Adam):
    """A hyper-parameter that is worked out."""

    @property
    def beta_1(self):
        return min(self._beta, 0.1 * (1 + getattr(self, "iterations", 0)))

    @beta_1.setter
    def beta_1(self, value):
        self._beta = value


class Derived(fastopt.Adam):
    """A hyper-parameter that is worked out from what is kept under its name."""

    @property
    def beta_1(self):
        return self.__dict__["beta_1"] * (0.5 if self.__dict__.get("_counts") and self.iterations % 2 else 1.0)

    @beta_1.setter
    def beta_1(self, value):
        self.__dict__["beta_1"] = value


class Cooling(fastopt.Adam):
    """Settings that are not made of hyper-parameters alone."""

    factor = 1.0

    def _settings(self, branch, learning_rate):
        return super()._settings(branch, learning_rate * self.factor)

    def _advance(self, t):
        self.factor *= 0.5


class Varying(fastopt.Adam):
    """Other values than those that were set."""

    def _value(self, name):
        return super()._value(name) * (0.5 if name == "beta_1" and self.iterations % 2 else 1.0)


class Decaying(fastopt.SGD):
    """A hyper-parameter that every step sets."""

    def _advance(self, t):
        self.learning_rate *= 0.5


@pytest.mark.parametrize("kind", [HalvingSGD, HalvingAdam, Warming, Derived, Cooling, Varying, Decaying])
def test_subclasses_whose_rules_change(kind):
    Twins(lambda: kind(0.01)).step(8)


def test_methods_of_an_instance(repeated):
    twins = Twins(lambda: fastopt.Adam(0.01))
    twins.step(4)
    assert repeated[-1]
    for optimizer, _ in twins.both:
        own = optimizer._settings
        optimizer._settings = lambda branch, rate, own=own: own(branch, rate * 0.5)
    twins.step(4)
    assert not repeated[-1]


@pytest.mark.parametrize("count", [2**62, 1e300])
def test_counts_that_nobody_reaches_are_refused(count):
    optimizer = make_built("Adam")
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"iterations: expected a count below 2\*\*62"):
        optimizer.load_state_dict({key: value + 1 for key, value in before.items()} | {"iterations": count})
    assert all(np.array_equal(value, before[key]) for key, value in optimizer.state_dict().items())


class Interrupted(fastopt.SGD):
    """The user is impatient."""

    def _advancing(self, t):
        raise KeyboardInterrupt


def test_a_first_step_that_is_cut_short_does_not_count():
    optimizer = Interrupted(0.1)
    with pytest.raises(KeyboardInterrupt):
        optimizer.apply(arrays(1), arrays(0))
    assert not optimizer.built and optimizer.iterations == 0


def test_nothing_is_compiled_after_building():
    for name in NAMES:
        optimizer = make(name)
        optimizer.build(arrays(0))
        before = _jit.compilations + _jit.loads
        for seed in range(6):
            optimizer.apply(arrays(seed))
        assert _jit.compilations + _jit.loads == before, name


def test_tuples_of_another_length_are_refused(repeated):
    twins = Twins(lambda: fastopt.SGD(0.1))
    twins.step(4)
    assert repeated[-1]
    grads = arrays(5)
    for wrong in (grads[:-1], (), [*grads, grads[0]]):
        for optimizer, _ in twins.both:
            with pytest.raises(ValueError, match="gradients"):
                optimizer.apply(tuple(wrong))
        twins.check()
    twins.step(3)


def test_averages_begin_with_the_first_update(repeated):
    """Also after the count alone was set back."""
    twins = Twins(lambda: fastopt.SGD(0.1, use_ema=True, ema_momentum=0.9))
    twins.step(4)
    assert repeated[-1]
    twins.do(lambda optimizer: optimizer.load_state_dict({"iterations": 0}, strict=False))
    twins.step(4)


def test_counters_of_copies_are_their_own():
    params = arrays(0)
    optimizer = fastopt.Adam(0.01)
    optimizer.build(params)
    for seed in range(4):
        optimizer.apply(arrays(seed))
    for twin in (copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for seed in range(3):
            twin.apply(arrays(seed))
        assert (optimizer.iterations, twin.iterations) == (4, 7)
    assert copy.copy(fastopt.Adam()).iterations == 0


@pytest.mark.parametrize(
    "kind", ["schedule", "callable", "callable of the step", "callable coefficient", "legacy decay"]
)
def test_rates_that_follow_the_count_are_not_repeated(kind, repeated):
    made = {
        "schedule": lambda: fastopt.SGD(schedules.ExponentialDecay(0.1, 2, 0.5)),
        "callable": lambda: fastopt.SGD(Rates()),
        "callable of the step": lambda: fastopt.SGD(lambda step: 0.5**step),
        "callable coefficient": lambda: fastopt.RMSprop(0.01, rho=Rates()),
        "legacy decay": lambda: keras_2_2.SGD(lr=0.1, decay=0.1),
    }[kind]
    Twins(made).step(6)
    assert not any(repeated)


def test_other_gradients_are_read_as_ever(repeated):
    twins = Twins(lambda: fastopt.Adam(0.01))
    twins.step(4)
    assert repeated[-1]
    strided = [np.repeat(np.atleast_1d(grad), 2, axis=-1)[..., ::2].reshape(grad.shape) for grad in arrays(9)]
    for grads in (strided, [grad.astype(np.float64) for grad in arrays(10)], tuple(arrays(11))):
        for optimizer, _ in twins.both:
            optimizer.apply(grads)
        twins.check()
    twins.step(2, zero_grads=True)
    for optimizer, _ in twins.both:
        with pytest.warns(UserWarning, match="no gradient for 0"):
            optimizer.apply([None, *arrays(12)[1:]])
    twins.check()


@pytest.fixture
def in_turn(monkeypatch):
    """Counts the repeated steps whose gradients were read, and whose kernels were launched, in calls of their own."""
    done = []
    step = RepeatedSteps._read_and_launch

    def counted(self, *arguments):
        done.append(None)
        step(self, *arguments)

    monkeypatch.setattr(RepeatedSteps, "_read_and_launch", counted)
    return done


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Muon"])  # that is two rules
def test_one_call_does_all_but_launches(name, dtype, repeated, in_turn, monkeypatch):
    compared = []
    compare = RepeatedSteps._step_in_turn
    monkeypatch.setattr(RepeatedSteps, "_step_in_turn", lambda *a: compared.append(None) or compare(*a))
    twins = Twins(lambda: make(name), dtype)
    twins.step(7)
    assert sum(repeated) == 5 and not in_turn and not compared


@pytest.mark.parametrize(
    "size", [repeated_step.LONG - 1, repeated_step.LONG, launch.PARALLEL_FROM - 1, launch.PARALLEL_FROM]
)
def test_arrays_of_any_length(size, in_turn):
    """Some let go of the GIL, and large ones are stepped on threads."""
    params = [np.linspace(-1, 1, size, dtype=np.float32) for _ in range(2)]
    for k, param in enumerate(params):
        optimizer = fastopt.Adam(0.01)
        optimizer.build([param])
        for seed in range(8):
            if k:
                optimizer._repeated = None
            optimizer.apply([np.random.default_rng(seed).standard_normal(size, np.float32)])
    assert params[0].tobytes() == params[1].tobytes()
    assert not in_turn


def test_threads_of_one_process():
    """They step optimizers of their own at once, and get the bits that they get one after the other."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((4, repeated_step.LONG + 100), np.float32)

    def train(k):
        param = np.zeros(grads.shape[1], np.float32)
        optimizer = fastopt.Adam(0.01)
        optimizer.build([param])
        for t in range(300):
            optimizer.apply([grads[(k + t) % 4]])
        return param.tobytes()

    alone = [train(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train, range(4))) == alone


def test_scalars_that_come_not_to_fit_are_refused(in_turn):
    """With beta_2 near 1 alpha grows for a while."""
    params = arrays(0)
    optimizer = fastopt.Adam(2e38, beta_1=0.0, beta_2=0.9)
    optimizer.build(params)
    optimizer.load_state_dict(optimizer.state_dict() | {"iterations": 1})
    grads = [np.zeros_like(param) for param in params]
    for _ in range(3):
        optimizer.apply(grads)
    optimizer.learning_rate = 3.5e38
    before, t = [param.copy() for param in params], optimizer.iterations
    while optimizer.iterations < 100:
        try:
            optimizer.apply(grads)
        except ValueError as error:
            assert "does not fit float32" in str(error)
            break
    assert t + 3 < optimizer.iterations < 100 and in_turn
    assert all(map(np.array_equal, params, before))


def test_nothing_to_train():
    """No step is counted, repeated or not."""
    for name in ("SGD", "Adam"):
        optimizer = make(name)
        optimizer.build(arrays(0), {"": {"trainable": False}})
        optimizer.load_state_dict(optimizer.state_dict() | {"iterations": 5})
        for seed in range(4):
            optimizer.apply(arrays(seed))
        assert optimizer.iterations == 5


class Slowing(fastopt.SGD):
    """Its scalars depend on the update's number, and want one rate."""

    def _scalars(self, branch, learning_rate, t):
        return super()._scalars(branch, min(learning_rate, 1.0 / t), t)


@pytest.mark.parametrize("groups", [{}, {f"^{k}$": {"learning_rate_multiplier": k + 1.0} for k in range(4)}])
def test_a_subclass_with_scalars_of_its_own(groups, repeated, monkeypatch):
    monkeypatch.setattr(scalars, "MANY", 2)
    Twins(lambda: Slowing(1.0), overrides=groups).step(6)
    assert repeated[-1]


def test_the_caller_is_warned(recwarn):
    twins = Twins(lambda: fastopt.SGD(0.1))
    for _ in range(5):
        for optimizer, _ in twins.both:
            optimizer.apply([None, *arrays(1)[1:]])
    assert {warning.filename for warning in recwarn} == {__file__}


def test_steps_of_a_wrapper_in_between(repeated):
    """They unscale, which the optimizer's own do not."""
    twins = Twins(lambda: fastopt.SGD(0.1, momentum=0.9))
    wrappers = [fastopt.LossScaleOptimizer(optimizer) for optimizer, _ in twins.both]
    for _ in range(2):
        twins.step(4)
        assert repeated[-1]
        for wrapper in wrappers:
            wrapper.apply(arrays(7))
        twins.check()


@every_optimizer
@rows("dtype", [np.float32, np.float64])
def test_many_groups_are_worked_out_together(name, dtype, monkeypatch):
    overrides = {f"^{k}$": {"learning_rate_multiplier": 1 / (k + 3), "weight_decay": k % 3 / 10} for k in range(23)}
    runs = []
    for many in (1, 10**9):
        monkeypatch.setattr(scalars, "MANY", many)
        optimizer = make(name, weight_decay=0.3)
        params = [np.ones((3, 4), dtype) * (k + 1) for k in range(25)]
        optimizer.build(params, overrides)
        for t in range(5):
            optimizer.apply([np.full((3, 4), 0.1 * (k + t), dtype) for k in range(25)])
        runs.append([param.tobytes() for param in params])
    assert runs[0] == runs[1]


def test_a_rate_too_large_for_float32_is_refused_for_many_groups_too():
    params = [np.ones(3, np.float32) for _ in range(20)]
    optimizer = fastopt.SGD(1e30)
    optimizer.build(params, {f"^{k}$": {"learning_rate_multiplier": 1e10 + k} for k in range(20)})
    with pytest.raises(ValueError, match="does not fit float32"):
        optimizer.apply([np.ones(3, np.float32)] * 20)
    assert all((param == 1).all() for param in params) and optimizer.iterations == 0


BY_NORM = [
    {"global_clipnorm": 0.5},
    {"clipnorm": 0.5},
    {"nonfinite": "skip"},
    {"nonfinite": "raise", "global_clipnorm": 0.5},
    {"nonfinite": "skip", "clipnorm": 0.5, "use_ema": True},
]


@pytest.mark.parametrize("options", BY_NORM, ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam", "Lamb", "Adafactor"])
@pytest.mark.parametrize("size", [50, launch.PARALLEL_FROM + 1])
def test_steps_that_go_by_the_norm(name, options, size, repeated, in_turn):
    """In one call, on threads and in phases too; a gradient that is not finite is left to ordinary steps."""
    rng = np.random.default_rng(0)
    steps = [[rng.normal(size=shape).astype(np.float32) for shape in ((), (size, 2))] for _ in range(12)]
    steps[6][1][size // 2, 1], steps[7][0] = np.nan, np.float32([np.inf]).reshape(())
    results = []
    for k in range(2):
        params = [np.float32([0.5]).reshape(()), np.linspace(-1, 1, 2 * size, dtype=np.float32).reshape(size, 2)]
        optimizer, seen = make(name, **options), []
        optimizer.build(params)
        for step, grads in enumerate(steps):
            if k:
                optimizer._repeated = None
            if step == 9 and "clipnorm" in options:
                optimizer.clipnorm = 0.25
            try:
                optimizer.apply(grads)
            except FloatingPointError as error:
                seen.append(str(error))
            seen.append((optimizer.last_grad_norm, optimizer.last_step_skipped, optimizer.iterations))
        results.append((repr(seen), [param.tobytes() for param in params]))
    assert results[0] == results[1]
    assert any(repeated) and not in_turn
