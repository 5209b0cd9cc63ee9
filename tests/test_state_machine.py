"""Calls of the public API in any order, against the slow model of tests/model.py, with everything compared after each.

`Calls` is a Hypothesis state machine: a failure is printed as the shortest program that shows it. `make test` runs the
same few programs each time, of few rules, as each costs a compilation; `make test-all` runs others every time, of all.
"""

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from layouts import LAYOUTS, WRITEABLE, dense
from model import ABSENT, RATES, Model

import fastopt

FEW = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
MANY = settings(FEW, max_examples=1500, stateful_step_count=40, derandomize=False)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = [(), (0,), (1,), (3,), (7,), (2, 3), (3, 1), (0, 3), (2, 3, 4), (2, 1, 3, 2), (64,), (33, 5)]
PARALLEL = (40_000,)
"""Large enough for several threads."""
RARELY, SELDOM = [False] * 15 + [True], [False] * 3 + [True]
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")

HYPER = {
    "SGD": st.fixed_dictionaries({"momentum": st.sampled_from([0.0, 0.5, 0.9, 1.0]), "nesterov": st.booleans()}),
    "Adam": st.fixed_dictionaries(
        {"beta_1": st.sampled_from([0.0, 0.5, 0.9]), "beta_2": st.sampled_from([0.0, 0.9, 0.999]),
         "epsilon": st.sampled_from([1e-7, 1e-3]), "amsgrad": st.booleans()}
    ),
    "Lion": st.fixed_dictionaries(
        {"beta_1": st.sampled_from([0.5, 0.9, 1.0]), "beta_2": st.sampled_from([0.0, 0.5, 0.99])}
    ),
}  # fmt: skip
FEW_HYPER = {
    "SGD": st.fixed_dictionaries({"momentum": st.sampled_from([0.5, 0.9]), "nesterov": st.just(False)}),
    "Adam": st.fixed_dictionaries(
        {"beta_1": st.sampled_from([0.0, 0.9]), "beta_2": st.sampled_from([0.9, 0.999]),
         "epsilon": st.just(1e-3), "amsgrad": st.just(False)}
    ),
}  # fmt: skip
CHANGES = {
    "SGD": {"momentum": [0.3, 0.8]},
    "Adam": {"beta_1": [0.7, 0.95], "beta_2": [0.7, 0.95], "epsilon": [1e-5]},
    "Lion": {"beta_1": [0.7, 0.95], "beta_2": [0.7, 0.95]},
}
"""Hyper-parameters of the rules that may change between steps."""
OPTIONS = st.fixed_dictionaries(
    {
        "weight_decay": st.sampled_from([None, None, 0.0, 0.1]),
        "use_ema": st.booleans(),
        "ema_momentum": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "ema_overwrite_frequency": st.sampled_from([None, None, 1, 2, 3]),
        "loss_scale_factor": st.sampled_from([None, None, 8.0, 3.0]),
        "gradient_accumulation_steps": st.sampled_from([None, None, None, 2, 3]),
        "nonfinite": st.sampled_from(["propagate", "propagate", "skip", "raise"]),
    }
)
CLIPPING = st.one_of(
    st.just({}), st.builds(lambda way, limit: {way: limit}, st.sampled_from(CLIPS), st.sampled_from([0.3, 1.5, 100.0]))
)
OVERRIDES = st.one_of(
    st.none(),
    st.sampled_from(
        [
            {"weight_decay": 0.0},
            {"weight_decay": 0.3},
            {"learning_rate_multiplier": 2.0},
            {"weight_decay": None, "learning_rate_multiplier": 0.5},
            {"trainable": False},
        ]
    ),
)


# -- structures of parameters ------------------------------------------------------------------------------------------


def _nested(arrays):
    outer = {"even": arrays[::2], "odd": {f"p{k}": array for k, array in enumerate(arrays[1::2])}}
    return outer if len(arrays) > 1 else {"even": arrays}


STRUCTURES = {
    "list": list,
    "tuple": tuple,
    "dict": lambda arrays: {f"p{k}": array for k, array in enumerate(arrays)},
    "nested": _nested,
    "packed": lambda arrays: fastopt.pack(list(arrays)),
    "packed dict": lambda arrays: fastopt.pack({f"p{k}": array for k, array in enumerate(arrays)}),
}


def leaves(structure, path=()):
    """(path, array) of every parameter, in order."""
    if isinstance(structure, np.ndarray):
        yield "/".join(path), structure
        return
    structure = structure.views if isinstance(structure, fastopt.FlatBuffer) else structure
    items = structure.items() if isinstance(structure, dict) else enumerate(structure)
    for key, value in items:
        yield from leaves(value, (*path, str(key)))


# -- the machine -------------------------------------------------------------------------------------------------------


class Calls(RuleBasedStateMachine):
    """An optimizer and the model of it, called alike.

    A rule that sets something needs one line for each of the two; what steps goes through `_step`. A further kind of
    learning rate is a row of `model.RATES`.
    """

    hyper, dtypes = FEW_HYPER, ["float64"]

    # -- beginning -----------------------------------------------------------------------------------------------------

    @initialize(
        data=st.data(), options=OPTIONS, clipping=CLIPPING, rate=st.sampled_from(sorted(RATES)),
        scales=st.sampled_from(SELDOM), override=OVERRIDES, seed=SEEDS,
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5), parallel=st.sampled_from(RARELY),
        structure=st.sampled_from(sorted(STRUCTURES)),
    )  # fmt: skip
    def build(self, data, options, clipping, rate, scales, override, seed, shapes, parallel, structure):
        """Any optimizer, on parameters of any shape, dtype, layout and structure."""
        kind = data.draw(st.sampled_from(sorted(self.hyper)), "kind")
        hyper = data.draw(self.hyper[kind], "hyper-parameters")
        if kind == "SGD" and not hyper["momentum"]:
            hyper["nesterov"] = False
        options = {**options, **clipping, **({"loss_scale_factor": None} if scales else {})}
        if not options["use_ema"]:
            options["ema_overwrite_frequency"] = None
        self.rng, self.kind, self.saved, self.kept = np.random.default_rng(seed), kind, None, None
        shapes = [PARALLEL, *shapes] if parallel else shapes
        params = [self._parameter(data, shape, structure) for shape in shapes]
        self.structure = STRUCTURES[structure](params)
        overrides = {f"^{self.paths[-1]}$": override} if override else {}
        rates = RATES[rate][0](fastopt), RATES[rate][1]
        self.optimizer = getattr(fastopt, kind)(rates[0], **hyper, **options)
        self.model = Model(kind, hyper, rates[1], options)
        if scales:
            self.optimizer = fastopt.LossScaleOptimizer(self.optimizer, initial_scale=8.0, dynamic_growth_steps=3)
            self.model.scale, self.model.growth_steps = 8.0, 3
        self.model.build(self.paths, self.params, overrides)
        self.optimizer.build(self.structure, overrides)

    def _parameter(self, data, shape, structure):
        """Lion is left out of float32: the sign of a sum near zero is another one there."""
        dtypes = self.dtypes if self.kind != "Lion" and "packed" not in structure else ["float64"]
        values = self.rng.normal(size=shape).astype(data.draw(st.sampled_from(dtypes), "dtype"))
        axes = data.draw(st.permutations(range(len(shape))), "axes") if len(shape) > 1 else range(len(shape))
        return dense(values, axes)

    @property
    def paths(self):
        return [path for path, _ in leaves(self.structure)]

    @property
    def params(self):
        return [array for _, array in leaves(self.structure)]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _gradients(self, data, layouts=tuple(LAYOUTS), dtypes=("float64", "float64", "float32")):
        layout, dtype = data.draw(st.sampled_from(layouts), "layout"), data.draw(st.sampled_from(dtypes), "dtype")
        return [LAYOUTS[layout](self.rng.normal(size=param.shape).astype(dtype)) for param in self.params]

    def _step(self, grads, handed, zero_grads=False, **arguments):
        """Both step; ``grads`` are for the model, ``handed`` the same for the optimizer, in whatever form."""
        before = [np.array(grad) if isinstance(grad, np.ndarray) else grad for grad in grads]
        expected, found = self.model.step(before), None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "no gradient", UserWarning)
                self.optimizer.apply(handed, zero_grads=zero_grads, **arguments)
        except (ValueError, FloatingPointError) as error:
            found = type(error).__name__
        assert found == expected
        for grad, value in zip(grads, before, strict=True):
            if isinstance(grad, np.ndarray):
                zeroed = zero_grads and found is None
                np.testing.assert_array_equal(grad, np.zeros_like(value) if zeroed else value)

    @rule(data=st.data(), form=st.sampled_from(["list", "tuple", "dict", "structure"]), zero_grads=st.booleans())
    def step(self, data, form, zero_grads):
        """With all gradients, in one of the forms in which they may come."""
        grads = self._gradients(data, WRITEABLE if zero_grads else tuple(LAYOUTS))
        if form == "dict":
            return self._step(grads, dict(zip(self.paths, grads, strict=True)), zero_grads)
        if form == "structure" and isinstance(self.structure, fastopt.FlatBuffer):
            buffer = self.structure.like()
            for (_, place), grad in zip(leaves(buffer), grads, strict=True):
                place[...] = grad
            flat = len(grads) > 1 and data.draw(st.booleans(), "flat")
            return self._step([place for _, place in leaves(buffer)], buffer.flat if flat else buffer, zero_grads)
        return self._step(grads, tuple(grads) if form == "tuple" else grads, zero_grads)

    @rule(data=st.data(), missing=st.sets(st.integers(0, 4), min_size=1, max_size=3))
    def step_without_some_gradients(self, data, missing):
        grads = [None if k in missing else grad for k, grad in enumerate(self._gradients(data))]
        self._step(grads, grads)

    @rule(data=st.data(), order=st.lists(st.integers(0, 4), min_size=1, unique=True), zero_grads=st.booleans())
    def step_for_some_parameters(self, data, order, zero_grads):
        """Named by identity, in any order."""
        grads, params = self._gradients(data, WRITEABLE if zero_grads else tuple(LAYOUTS)), self.params
        order = [k for k in order if k < len(params)] or [0]
        given = [grads[k] if k in order else ABSENT for k in range(len(params))]
        handed = [grads[k] for k in order]
        self._step(given, handed, zero_grads, params=[params[k] for k in order])

    @rule(data=st.data(), times=st.integers(1, 5), tuples=st.booleans())
    def step_with_the_same_arrays(self, data, times, tuples):
        """Gradients that stay where they are, with other numbers: what training loops do."""
        if self.kept is None:
            self.kept = self._gradients(data, ("C",), ("float64",))
        for _ in range(times):
            for grad in self.kept:
                grad[...] = self.rng.normal(size=grad.shape)
            self._step(self.kept, tuple(self.kept) if tuples else list(self.kept))
            self.agree()

    @rule(data=st.data(), place=st.integers(0, 4), value=st.sampled_from([math.nan, math.inf, -math.inf]))
    def step_with_a_number_that_is_not_finite(self, data, place, value):
        grads = self._gradients(data, ("C",))
        grad = grads[place % len(grads)]
        if grad.size:
            grad.flat[grad.size // 2] = value
        self._step(grads, grads)

    @rule(data=st.data())
    def step_with_one_array_for_two_parameters(self, data):
        grads, shapes = self._gradients(data, ("C",)), [param.shape for param in self.params]
        grads = [grads[shapes.index(shape)] for shape in shapes]
        self._step(grads, grads)

    # -- settings ------------------------------------------------------------------------------------------------------

    def _set(self, name, value):
        setattr(self.optimizer, name, value)
        setattr(self.model, name, value)

    @precondition(lambda self: not callable(self.model.rate))
    @rule(value=st.sampled_from([0.2, 0.02, 1e-3]))
    def set_the_learning_rate(self, value):
        self.optimizer.learning_rate = self.model.rate = value

    @rule(way=st.sampled_from(CLIPS), limit=st.sampled_from([None, 0.3, 1.5]))
    def clip(self, way, limit):
        for name in CLIPS:
            self._set(name, None)
        self._set(way, limit)

    @rule(value=st.sampled_from([None, 0.0, 0.05]))
    def decay(self, value):
        self._set("weight_decay", value)

    @precondition(lambda self: self.model.use_ema)
    @rule(momentum=st.sampled_from([0.3, 0.99]), frequency=st.sampled_from([None, 2]))
    def average(self, momentum, frequency):
        self._set("ema_momentum", momentum)
        self._set("ema_overwrite_frequency", frequency)

    @rule(value=st.sampled_from(["propagate", "skip", "raise"]))
    def treat_what_is_not_finite(self, value):
        self._set("nonfinite", value)

    @precondition(lambda self: self.model.scale is None)
    @rule(value=st.sampled_from([None, 4.0]))
    def scale_the_loss(self, value):
        self._set("loss_scale_factor", value)

    @rule(data=st.data())
    def change_a_hyper_parameter(self, data):
        name = data.draw(st.sampled_from(sorted(CHANGES[self.kind])), "name")
        value = data.draw(st.sampled_from(CHANGES[self.kind][name]), "value")
        if self.model.hyper[name]:  # a momentum of 0 has no slot
            setattr(self.optimizer, name, value)
            self.model.hyper[name] = value

    @rule(chosen=st.sets(st.integers(0, 4)), by_name=st.booleans())
    def exclude_from_decay(self, chosen, by_name):
        chosen = {k for k in chosen if k < len(self.params)}
        if by_name:
            self.optimizer.exclude_from_weight_decay(var_names=[f"^{self.paths[k]}$" for k in chosen])
        else:
            self.optimizer.exclude_from_weight_decay(var_list=[self.params[k] for k in chosen])
        self.model.excluded = chosen

    # -- state ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.use_ema)
    @rule()
    def evaluate(self):
        with self.optimizer.evaluation_weights():
            self._assert_close(self.params, self.model.evaluation_weights())
            with pytest.raises(RuntimeError, match="evaluation_weights"):
                self.optimizer.apply([np.zeros_like(param) for param in self.params])

    @rule()
    def save(self):
        file = io.BytesIO()
        np.savez(file, **self.optimizer.state_dict())
        self.saved = file.getvalue(), self.model.state()

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self):
        """Into the same optimizer, whose hyper-parameters, and parameters, stay as they are."""
        self.optimizer.load_state_dict(np.load(io.BytesIO(self.saved[0])))
        self.model.load(self.saved[1])

    @rule(way=st.sampled_from([copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]))
    def copy(self, way):
        """Go on with a copy; the original is forgotten."""
        self.optimizer, self.structure = way((self.optimizer, self.structure))

    # -- what must agree -----------------------------------------------------------------------------------------------

    def _assert_close(self, found, expected):
        for array, values in zip(found, expected, strict=True):
            assert array.shape == values.shape
            bound = (1e-10, 1e-12) if self.dtypes == ["float64"] else (5e-4, 1e-4)
            finite = np.isfinite(values)
            np.testing.assert_array_equal(np.isfinite(array), finite)  # NaN or infinite: the order of operations says
            np.testing.assert_allclose(array[finite], values[finite], *bound)

    @invariant()
    def agree(self):
        """Parameters, slots, counters, norm, rate."""
        optimizer, model = self.optimizer, self.model
        self._assert_close(self.params, model.params)
        assert optimizer.iterations == model.iterations
        assert optimizer.last_step_skipped == model.skipped
        assert math.isclose(optimizer.learning_rate, model.learning_rate, rel_tol=1e-12)
        if model.scale is not None:
            assert (optimizer.dynamic_scale, optimizer.step_counter) == (model.scale, model.growth)
        if any(model.trained):
            self._agree_on_slots()
            assert optimizer.state_dict()["micro_steps"] == model.micro_steps
            assert (optimizer.last_grad_norm is None) == (model.norm is None)
            if model.norm is not None and math.isfinite(model.norm):
                assert math.isclose(
                    optimizer.last_grad_norm, model.norm, rel_tol=1e-10 if len(self.dtypes) == 1 else 1e-5
                )
            elif model.norm is not None:
                assert not math.isfinite(optimizer.last_grad_norm)

    def _agree_on_slots(self):
        slots = self.optimizer.slots
        assert slots.keys() == self.model.slots.keys()
        for name, arrays in self.model.slots.items():
            for found, expected, trained in zip(slots[name], arrays, self.model.trained, strict=True):
                assert (found is not None) == trained
                if trained:
                    self._assert_close([found], [expected])


class AllCalls(Calls):
    """The same for every rule, and for float32 beside float64."""

    hyper, dtypes = HYPER, ["float64", "float64", "float32"]


def test_calls_in_any_order():
    run_state_machine_as_test(Calls, settings=FEW)


@pytest.mark.full
def test_many_calls_of_every_rule_in_any_order():
    run_state_machine_as_test(AllCalls, settings=MANY)


# -- whether it would notice -------------------------------------------------------------------------------------------


def _forgets_a_count(apply, self, *arguments, **options):
    """Every third update is counted as the second."""
    apply(self, *arguments, **options)
    if self.iterations == 3:
        self.load_state_dict({"iterations": 2}, strict=False)


def _decays_one_group_wrongly(build, self, params, overrides=None, copies=None):
    """As if overrides of the decay were not there."""
    kept = {
        pattern: {k: v for k, v in own.items() if k != "weight_decay"} for pattern, own in (overrides or {}).items()
    }
    build(self, params, kept, copies)


def _restores_all_but_one_slot(load, self, state, strict=True, convert=False):
    kept = {name: value for name, value in state.items() if not name.endswith("momentum")}
    load(self, kept, strict=False, convert=convert)


def _writes_to_gradients(apply, self, grads, *arguments, **options):
    apply(self, grads, *arguments, **options)
    if isinstance(grads, tuple) and grads[0].flags.writeable:
        grads[0][...] *= 0.5


def _forgets_exclusions(exclude, self, var_list=None, var_names=None):
    exclude(self, var_list=None, var_names=var_names)


FAULTS = {
    "apply": [_forgets_a_count, _writes_to_gradients],
    "build": [_decays_one_group_wrongly],
    "load_state_dict": [_restores_all_but_one_slot],
    "exclude_from_weight_decay": [_forgets_exclusions],
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [pytest.param(name, fault, id=fault.__name__[1:]) for name, faults in FAULTS.items() for fault in faults],
)
def test_a_fault_is_found(name, fault, monkeypatch):
    """Faults put into the public methods: the machine would fail if the engine had them."""
    original = getattr(fastopt.Optimizer, name)
    monkeypatch.setattr(
        fastopt.Optimizer, name, lambda self, *given, **options: fault(original, self, *given, **options)
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Calls, settings=settings(FEW, max_examples=300, phases=[Phase.generate]))
