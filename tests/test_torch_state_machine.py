"""fastopt.torch beside torch.optim, while groups, state and memory are changed under both in any order.

torch's own for-loop, in float64, is the authority: after each call parameters, state and `state_dict` must agree.
`Mutations` is a Hypothesis state machine; see test_state_machine.py for how much of it runs when.
"""

import copy
import gc
import io

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from needs_torch import torch

import fastopt.torch

FEW = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
MANY = settings(FEW, max_examples=1500, stateful_step_count=40, derandomize=False)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = [(), (3,), (2, 3), (0,), (4, 1, 2), (1,), (5, 7), (2, 3, 4), (64,)]
PLACES = st.integers(0, 7)
"""Which parameter, counted round and round."""
DECAYS = st.sampled_from([0.0, 0.1])

CLASSES = {
    "AdamW": {"weight_decay": DECAYS, "amsgrad": st.booleans(), "maximize": st.booleans()},
    "Adam": {"weight_decay": DECAYS, "amsgrad": st.booleans()},
    "SGD": {"momentum": st.sampled_from([0, 0.9]), "weight_decay": DECAYS},
    "RMSprop": {"momentum": st.sampled_from([0, 0.5]), "centered": st.booleans()},
    "Adagrad": {"lr_decay": st.sampled_from([0, 0.1])},
    "NAdam": {},
}
FEW_CLASSES = {
    "AdamW": {"weight_decay": DECAYS, "maximize": st.booleans()},
    "SGD": {"momentum": st.just(0.9), "weight_decay": DECAYS},
}
COUNTS = ("step", "mu_product")
"""State that is no slot."""


class Twin:
    """An optimizer and its parameters."""

    def __init__(self, kind, params, cut, options):
        self.params = [torch.nn.Parameter(param.clone(memory_format=torch.preserve_format)) for param in params]
        groups = [{"params": self.params[:cut], "lr": 0.05}, {"params": self.params[cut:]}]
        self.optimizer = kind(self.params if cut is None else groups, **options)

    def state_of(self, place):
        """The state of one parameter, which may be none."""
        return self.optimizer.state.get(self.params[place]) or {}

    def tensors_of(self, place):
        """Its slots: (name, tensor)."""
        state = self.state_of(place)
        return [(name, tensor) for name, tensor in state.items() if torch.is_tensor(tensor) and name not in COUNTS]


class Mutations(RuleBasedStateMachine):
    """Two twins, to whom the same is done."""

    classes = FEW_CLASSES

    @initialize(
        data=st.data(), seed=SEEDS, shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5),
        transposed=st.booleans(), grouped=st.booleans(),
    )  # fmt: skip
    def build(self, data, seed, shapes, transposed, grouped):
        name = data.draw(st.sampled_from(sorted(self.classes)), "class")
        options = {"lr": 0.01} | data.draw(st.fixed_dictionaries(self.classes[name]), "options")
        self.generator = torch.Generator().manual_seed(seed)
        params = [self._numbers(shape) for shape in shapes]
        if transposed:
            params = [param.mT.contiguous().mT if param.ndim > 1 else param for param in params]
        cut = data.draw(st.integers(0, len(params)), "cut") if grouped else None
        ours, theirs = getattr(fastopt.torch, name), getattr(torch.optim, name)
        self.twins = [Twin(ours, params, cut, options), Twin(theirs, params, cut, options | {"foreach": False})]
        self.saved, self.state_was_dropped = None, False
        self.near = 1e-6 if name == "NAdam" else 1e-9  # torch keeps one of its factors as a float32 tensor

    def _numbers(self, shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _place(self, place):
        return place % len(self.twins[0].params)

    @property
    def groups(self):
        return [twin.optimizer.param_groups for twin in self.twins]

    # -- gradients and steps -------------------------------------------------------------------------------------------

    def _each_gradient(self, give):
        for place, param in enumerate(self.twins[0].params):
            numbers = self._numbers(param.shape)
            for twin in self.twins:
                give(place, twin.params[place], numbers)

    def _step(self):
        for twin in self.twins:
            twin.optimizer.step()

    @rule(missing=st.sets(PLACES, max_size=2))
    def step(self, missing):
        """With new gradients, of which some may be missing."""
        self._each_gradient(lambda k, p, numbers: setattr(p, "grad", None if k in missing else numbers.clone()))
        self._step()

    @rule(times=st.integers(1, 5))
    def step_with_the_same_tensors(self, times):
        """Gradients that stay where they are, with other numbers."""
        for _ in range(times):
            self._each_gradient(self._overwrite)
            self._step()
            self.agree()

    def _overwrite(self, place, param, numbers):
        if param.grad is not None and param.grad.is_contiguous():
            param.grad.copy_(numbers)
        elif param.grad is not None:
            param.grad = numbers.clone()

    @rule(how=st.sampled_from(["data", "set_", "expanded", "transposed", "inside", "shared"]))
    def step_with_gradients_in_other_memory(self, how):
        self._each_gradient(lambda place, param, numbers: self._give(how, param, numbers))
        self._step()

    def _give(self, how, param, numbers):
        if how in ("data", "set_") and param.grad is not None:
            if how == "data":
                param.grad.data = numbers.clone()
            else:
                param.grad.set_(numbers.clone())
        elif how == "expanded" and numbers.numel():
            param.grad = numbers.flatten()[0].clone().expand(numbers.shape)
        elif how == "transposed" and numbers.ndim > 1:
            param.grad = numbers.transpose(0, -1).contiguous().transpose(0, -1)
        elif how == "inside":
            param.grad = torch.stack([torch.full_like(numbers, torch.nan), numbers])[1]
        else:
            param.grad = numbers if how == "shared" else numbers.clone()

    @rule(one=PLACES, other=PLACES)
    def exchange_two_gradients(self, one, other):
        one, other = self._place(one), self._place(other)
        for params in [twin.params for twin in self.twins]:
            if params[one].shape == params[other].shape:
                params[one].grad, params[other].grad = params[other].grad, params[one].grad

    @rule(to_none=st.booleans())
    def zero_the_gradients(self, to_none):
        for twin in self.twins:
            twin.optimizer.zero_grad(to_none)

    # -- groups --------------------------------------------------------------------------------------------------------

    @rule(rate=st.sampled_from([0.001, 0.1, 0.0]), group=st.integers(0, 2))
    def set_the_rate_of_a_group(self, rate, group):
        for groups in self.groups:
            groups[group % len(groups)]["lr"] = rate

    @rule(decay=DECAYS, betas=st.sampled_from([(0.8, 0.9), (0.9, 0.99)]))
    def set_other_hyper_parameters(self, decay, betas):
        for groups in self.groups:
            for group in groups:
                group.update({name: value for name, value in (("betas", betas),) if name in group})
                group.update({name: value for name, value in (("weight_decay", decay),) if name in group})

    @precondition(lambda self: len(self.twins[0].params) < 9)
    @rule(shape=st.sampled_from(SHAPES))
    def add_a_group(self, shape):
        numbers = self._numbers(shape)
        for twin in self.twins:
            twin.params.append(torch.nn.Parameter(numbers.clone()))
            twin.optimizer.add_param_group({"params": [twin.params[-1]], "lr": 0.02})

    @rule(what=st.sampled_from(["a group", "all groups", "the lists", "the order"]))
    def replace(self, what):
        """By an equal one: dicts and lists that others may hold, or keep."""
        for twin in self.twins:
            groups = twin.optimizer.param_groups
            if what == "a group":
                groups[0] = dict(groups[0])
            elif what == "all groups":
                twin.optimizer.param_groups = [dict(group) for group in groups]
            else:
                for group in groups:
                    group["params"] = list(group["params"])
                if what == "the order":
                    groups[0]["params"].reverse()
                    self.saved = None  # a saved state follows the order, and would be that of others

    # -- parameters ----------------------------------------------------------------------------------------------------

    @rule(place=PLACES, how=st.sampled_from(["data", "set_", "copy_"]))
    def overwrite_a_parameter(self, place, how):
        place = self._place(place)
        numbers = self._numbers(self.twins[0].params[place].shape)
        for twin in self.twins:
            param = twin.params[place]
            with torch.no_grad():
                if how == "data":
                    param.data = numbers.clone()
                else:
                    getattr(param, how)(numbers.clone())

    @rule(place=PLACES, trained=st.booleans())
    def freeze(self, place, trained):
        for twin in self.twins:
            twin.params[self._place(place)].requires_grad_(trained)

    @rule()
    def share_memory(self):
        """With other processes: everything moves."""
        for twin in self.twins:
            for place, param in enumerate(twin.params):
                param.share_memory_()
                for _, tensor in twin.tensors_of(place):
                    tensor.share_memory_()

    @rule()
    def collect_garbage(self):
        gc.collect(1)  # the young: with torch loaded, all take a tenth of a second

    # -- state ---------------------------------------------------------------------------------------------------------

    @rule(place=PLACES, count=st.sampled_from([1.0, 3.0, 10.0]))
    def set_a_count(self, place, count):
        for twin in self.twins:
            state = twin.state_of(self._place(place))
            if "step" in state:
                state["step"].fill_(count)

    @rule(place=PLACES, factor=st.sampled_from([0.0, 0.5]))
    def write_to_a_slot(self, place, factor):
        for twin in self.twins:
            for _, tensor in twin.tensors_of(self._place(place)):
                tensor.mul_(factor)

    @rule(places=st.sets(PLACES, min_size=1))
    def replace_state_tensors(self, places):
        """Counts, too."""
        for twin in self.twins:
            for place in {self._place(place) for place in places}:
                state = twin.state_of(place)
                state.update({name: tensor.clone() for name, tensor in state.items() if torch.is_tensor(tensor)})

    @rule(place=st.one_of(st.none(), PLACES))
    def drop_state(self, place):
        """Of one parameter, or of all."""
        self.state_was_dropped = True
        for twin in self.twins:
            if place is None:
                twin.optimizer.state.clear()
            else:
                twin.optimizer.state.pop(twin.params[self._place(place)], None)

    @rule()
    def save(self):
        self.saved = [copy.deepcopy(twin.optimizer.state_dict()) for twin in self.twins]

    @precondition(lambda self: self.saved is not None)
    @rule(whose=st.sampled_from([0, 1]))
    def load(self, whose):
        """Our own, or torch's; one that does not fit the groups of today is refused by both."""
        errors = []
        for twin, state in zip(self.twins, (self.saved[whose], self.saved[1]), strict=True):
            try:
                twin.optimizer.load_state_dict(copy.deepcopy(state))
            except ValueError as error:
                errors.append(type(error))
        assert len(errors) in (0, 2)

    @rule(how=st.sampled_from(["deepcopy", "file"]))
    def copy(self, how):
        """Go on with copies."""
        for k, twin in enumerate(self.twins):
            if how == "deepcopy":
                self.twins[k] = copy.deepcopy(twin)
            else:
                file = io.BytesIO()
                torch.save(twin, file)
                file.seek(0)
                self.twins[k] = torch.load(file, weights_only=False)

    # -- what must agree -----------------------------------------------------------------------------------------------

    @invariant()
    def agree(self):
        ours, theirs = self.twins
        for found, expected in zip(ours.params, theirs.params, strict=True):
            _assert_close(found.detach(), expected.detach(), self.near)
        found, expected = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
        assert [group["params"] for group in found["param_groups"]] == [
            group["params"] for group in expected["param_groups"]
        ]
        states = {index: state for index, state in found["state"].items() if state}
        if self.state_was_dropped:  # ours is made anew for all at the next step, torch's for those with a gradient
            states = {index: state for index, state in states.items() if index in expected["state"]}
        assert states.keys() == expected["state"].keys()
        for index, state in expected["state"].items():
            assert states[index].keys() == state.keys()
            for name, value in state.items():
                if torch.is_tensor(value):
                    _assert_close(states[index][name], value, self.near, any_dtype=name == "mu_product")
                else:
                    assert states[index][name] == value


def _assert_close(found, expected, relative, any_dtype=False):
    """Of NAdam's product torch makes float64 when it loads it, ours float32 when it steps."""
    assert found.shape == expected.shape and (any_dtype or found.dtype == expected.dtype)
    bound = {"rtol": relative, "atol": relative * 1e-2}
    torch.testing.assert_close(found, expected, **bound, equal_nan=True, check_dtype=not any_dtype)


class AllMutations(Mutations):
    """The same for every class that the for-loop of torch has, and that is a rule of single elements."""

    classes = CLASSES


def test_mutations_in_any_order():
    run_state_machine_as_test(Mutations, settings=FEW)


@pytest.mark.full
def test_many_mutations_of_every_class_in_any_order():
    run_state_machine_as_test(AllMutations, settings=MANY)


# -- whether it would notice -------------------------------------------------------------------------------------------


def _forgets_a_count(step, self, *arguments):
    """Once, at the third."""
    step(self, *arguments)
    for state in self.state.values():
        if float(state.get("step", 0)) == 3.0:
            state["step"].fill_(2.0)


def _decays_one_group_wrongly(step, self, *arguments):
    """The last group, as if it had the decay of none."""
    decay, group = self.param_groups[-1]["weight_decay"], self.param_groups[-1]
    group["weight_decay"] = 0.0
    step(self, *arguments)
    group["weight_decay"] = decay


def _loads_all_but_one_slot(load, self, state):
    before = {param: own["exp_avg"].clone() for param, own in self.state.items() if "exp_avg" in own}
    load(self, state)
    for param, slot in before.items():
        if "exp_avg" in self.state[param]:
            self.state[param]["exp_avg"].copy_(slot)


FAULTS = {
    "step": [_forgets_a_count, _decays_one_group_wrongly],
    "load_state_dict": [_loads_all_but_one_slot],
}
RULES = {"step": None, "load_state_dict": {"step", "save", "load"}}
"""By method: the rules that come upon its faults soon; None: all."""


@pytest.mark.parametrize(
    ("name", "fault"),
    [pytest.param(name, fault, id=fault.__name__[1:]) for name, faults in FAULTS.items() for fault in faults],
)
def test_a_fault_is_found(name, fault, monkeypatch):
    """Faults put into a public method of AdamW: the machine would fail if the engine had them."""
    rules = {key for key, value in vars(Mutations).items() if hasattr(value, RULE_MARKER)}
    machine = type("SomeMutations", (Mutations,), dict.fromkeys(rules - (RULES[name] or rules)))
    original = getattr(fastopt.torch.AdamW, name)
    monkeypatch.setattr(fastopt.torch.AdamW, name, lambda self, *given: fault(original, self, *given))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(FEW, max_examples=300, phases=[Phase.generate]))
