"""fastopt.torch under what training scripts do to optimizers behind their backs, and where steps are refused."""

import copy
import gc
import pickle
import random
import weakref

import pytest
from needs_torch import torch
from torch_reference import distance

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_hostile")

NAN = float("nan")


def leaf(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype))


def twins(name, *shapes, **kwargs):
    """Parameters and optimizer of torch, then ours, with the same numbers."""
    theirs = [leaf(*shape) for shape in shapes or ((3, 4), (5,))]
    ours = copy.deepcopy(theirs)
    return (theirs, getattr(torch.optim, name)(theirs, **kwargs)), (ours, getattr(fastopt.torch, name)(ours, **kwargs))


def give(params, t, skip=()):
    for k, p in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * t + k)
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = None if k in skip else grad


def steps(both, times, skip=()):
    for t in times:
        for params, optimizer in both:
            give(params, t, skip)
            optimizer.step()


def assert_alike(both, tolerance=1e-9):
    theirs, ours = ([p.detach() for p in params] for params, _ in both)
    assert distance(ours, theirs) < tolerance


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "AdamW", "NAdam"])
def test_the_default_device_is_where_nothing_of_a_step_lies(name):
    both = (theirs, reference), (ours, optimizer) = twins(name)
    for t in range(3):
        give(theirs, t)
        give(ours, t)
        reference.step()
        with torch.device("meta"):
            optimizer.step()
    assert_alike(both)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_state_dict_leaves_the_live_state_alone(name):
    both = twins(name)
    steps(both, range(3))
    both[1][1].state_dict()
    pickle.dumps(both[1][1])
    steps(both, range(3, 6))
    assert both[1][1].state_dict()["state"][0]["step"] == both[1][1].state[both[1][0][0]]["step"] == 6
    for params, optimizer in both:
        params.append(leaf(2))
        optimizer.add_param_group({"params": params[-1:]})
    steps(both, range(6, 9))
    assert_alike(both, 1e-7 if name == "NAdam" else 1e-9)


def test_state_dict_and_pickles_have_counters_of_their_own():
    _, (params, ours) = twins("Adam", *[(2,)] * 3)
    give(params, 0)
    ours.step()
    for states in (ours.state_dict()["state"], pickle.loads(pickle.dumps(ours)).state):
        counters = [state["step"] for state in states.values()]
        assert len({counter.data_ptr() for counter in counters}) == 3
        assert all(counter.untyped_storage().nbytes() == counter.nbytes for counter in counters)


def test_state_that_is_no_parameters():
    """Notes among the state go where torch.optim has them go: into dicts, copies and pickles, and back."""
    both = twins("Adam", lr=0.1)
    steps(both, range(2))
    for params, optimizer in both:
        optimizer.state["note"] = 1
        optimizer.state["more"] = {"step": "second"}
        give(params, 2)
        optimizer.step()
        saved = optimizer.state_dict()
        found = [copy.deepcopy(optimizer).state, pickle.loads(pickle.dumps(optimizer)).state, saved["state"]]
        optimizer.load_state_dict(copy.deepcopy(saved))
        for state in (*found, optimizer.state):
            assert (state["note"], state["more"], len(state)) == (1, {"step": "second"}, 4)
    steps(both, range(3, 5))
    assert_alike(both)


@pytest.mark.parametrize("kind", [torch.optim.Adam, fastopt.torch.Adam])
@pytest.mark.parametrize("given", [[1, 2], {"a": 1}, {"state": [3]}, {"state": {0: 4}}])
def test_hooks_give_the_state_dict_any_form(kind, given):
    """A hook's result is what `state_dict` gives, in torch.optim as here."""
    params = [leaf(3)]
    optimizer = kind(params)
    give(params, 0)
    optimizer.step()
    optimizer.register_state_dict_post_hook(lambda *_: given)
    assert optimizer.state_dict() is given


CLASSES = [name for name in fastopt.torch.__all__ if name[0].isupper()]


@pytest.mark.parametrize("name", CLASSES)
def test_groups_of_a_checkpoint_that_lack_keys(name):
    """torch.optim's classes say which of theirs have a default of old; the rest is as the optimizer was made."""
    shape = (3, 4)
    params = [leaf(*shape)]
    optimizer = getattr(fastopt.torch, name)(params)
    made = dict(optimizer.param_groups[0])
    bare = {"state": {}, "param_groups": [{"params": [0]}]}
    expected = dict(made)
    if hasattr(torch.optim, name):
        other = getattr(torch.optim, name)([leaf(*shape)])
        other.load_state_dict(copy.deepcopy(bare))
        expected |= {key: value for key, value in other.param_groups[0].items() if key != "params"}
    optimizer.load_state_dict(copy.deepcopy(bare))
    assert optimizer.param_groups[0] == expected
    if name == "ScheduleFreeAdamW":
        optimizer.train()
    give(params, 0)
    if name == "SparseAdam":
        params[0].grad = params[0].grad.to_sparse(1)
    optimizer.step()


def test_pickles_of_groups_that_lack_keys():
    optimizer = fastopt.torch.Lion([leaf(3)], maximize=True)
    del optimizer.param_groups[0]["maximize"], optimizer.param_groups[0]["lr"]
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["maximize"] is True
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Lion", {}), ("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}),
        pytest.param("Muon", {}, marks=pytest.mark.full), ("ScheduleFreeAdamW", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["load", "add", "data", "divide"])
def test_averages_go_on_after_rebuilds(name, kwargs, how):
    params = [leaf(3, 4)]
    optimizer = getattr(fastopt.torch, name)(params, lr=0.1, ema=0.9, **kwargs)
    if name == "ScheduleFreeAdamW":
        optimizer.train()
    average = None
    for t in range(6):
        if t == 3 and how == "load":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif t == 3 and how == "add":
            optimizer.add_param_group({**optimizer.param_groups[0], "params": [leaf(2, 2)]})
        elif t == 3 and how == "data":
            params[0].data = params[0].data.clone()
        elif t == 3:
            params[0].grad = None
            optimizer.step()
        give(params, t)
        optimizer.step()
        value = params[0].detach().clone()
        average = value if average is None else 0.9 * average + 0.1 * value
    torch.testing.assert_close(optimizer.state[params[0]]["ema"], average)


@pytest.mark.parametrize("change", ["replace all", "replace one", "zero one", "data"])
def test_counters_and_state_set_from_outside(change):
    both = twins("Adam")
    steps(both, range(3))
    for params, optimizer in both:
        for p in params if change in ("replace all", "data") else params[:1]:
            state = optimizer.state[p]
            if change == "zero one":
                state["step"].zero_()
            elif change == "data":
                state["exp_avg"].data = torch.zeros_like(p)
            else:
                state["step"] = torch.tensor(0.0)
    steps(both, range(3, 6))
    assert_alike(both)


def test_torch_steps_on_the_same_state():
    _, (params, ours) = twins("Adam")
    give(params, 0)
    ours.step()
    theirs = torch.optim.Adam(params)
    theirs.state = ours.state
    theirs.step()
    assert [ours.state[p]["step"].item() for p in params] == [2, 2]
    ours.step()
    assert [ours.state[p]["step"].item() for p in params] == [3, 3]


def test_state_of_another_dtype_and_of_a_wrong_shape():
    _, (params, ours) = twins("Adam")
    give(params, 0)
    ours.step()
    ours.state[params[0]]["exp_avg"] = ours.state[params[0]]["exp_avg"].bfloat16()
    ours.step()
    assert ours.state[params[0]]["exp_avg"].dtype == torch.float64
    ours.state[params[1]]["exp_avg"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of parameter 1 of group 0 has the shape \(4,\)"):
        ours.step()


def test_the_first_real_update_counts_as_the_first():
    both = twins("SGD", lr=0.1, momentum=0.9, dampening=0.5)
    params, ours = both[1]
    ours.nonfinite = "skip"
    params[0].grad = torch.full_like(params[0], NAN)
    ours.step()
    assert ours.last_step_skipped and not ours.state
    steps(both, range(2), skip=(1,))
    for _, optimizer in both:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(both, range(2, 5))
    assert_alike(both)


def test_momentum_switched_on_while_a_gradient_is_missing():
    both = twins("SGD", lr=0.1, dampening=0.5)
    steps(both, range(2))
    for _, optimizer in both:
        optimizer.param_groups[0]["momentum"] = 0.9
    steps(both, [2], skip=(0,))
    steps(both, range(3, 6))
    assert_alike(both)


def test_nothing_lives_in_a_cycle():
    def alive(name, **options):
        p = leaf(3, 3)
        optimizer = getattr(fastopt.torch, name)([p], **options)
        (p * p).sum().backward()
        if not options:
            optimizer.step()
        references = [weakref.ref(optimizer), *map(weakref.ref, optimizer.state[p].values())]
        del optimizer
        return [reference() is not None for reference in references]

    for name in ("Adam", "Muon"):  # what is compiled at first use leaves cycles of its own
        alive(name)
    gc.collect()
    gc.disable()
    try:
        found = [alive("Adam"), alive("Adam", fused_backward=True), alive("Muon")]
    finally:
        gc.enable()
    assert not any(map(any, found))


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_parameter_turned_in_place(name):
    both = twins(name, (4, 4), (3,), lr=0.1)
    steps(both, range(2))
    for params, _ in both:
        params[0].data = params[0].data.t()
    steps(both, range(2, 5))
    assert_alike(both)


@pytest.mark.parametrize("change", [lambda data: data[:5], lambda data: data.view(2, 5), lambda data: data.float()])
def test_a_parameter_of_another_shape_or_dtype_in_its_memory(change):
    both = twins("SGD", (10,), lr=0.1)
    steps(both, range(2))
    for params, _ in both:
        params[0].grad = None
        params[0].data = change(params[0].data)
    steps(both, range(2, 5))
    assert_alike(both, 1e-5)


def test_only_empty_parameters():
    params = [leaf(0), leaf(3, 0)]
    give(params, 0)
    fastopt.torch.Adam(params).step()
    matrix = [leaf(0, 3)]
    give(matrix, 0)
    fastopt.torch.Muon(matrix).step()


def test_frozen_parameters_may_be_of_any_kind():
    p = leaf(3)
    frozen = [
        torch.nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False) for dtype in (torch.bfloat16, torch.int8)
    ]
    optimizer = fastopt.torch.AdamW([p, *frozen], flat=True)
    give([p], 0)
    optimizer.step()
    frozen[0].requires_grad_()
    frozen[0].grad = torch.ones_like(frozen[0])
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 is torch.bfloat16, and flat=True"):
        optimizer.step()


META = {
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}, "Adagrad": {}, "Adadelta": {},
    "Adam": {"amsgrad": True}, "AdamW": {}, "Adamax": {}, "Muon": {},
}  # fmt: skip
"""torch's Adafactor, and NAdam after loading, ask tensors for numbers that those on meta do not have."""


@pytest.mark.parametrize("name", META)
def test_parameters_on_the_device_meta(name):
    """torch.optim steps them: state appears, on that device, and updates are counted."""
    described = []
    for kind in (getattr(torch.optim, name), getattr(fastopt.torch, name)):
        shapes = [(3, 4)] if name == "Muon" else [(3, 4), (5,), ()]
        params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
        optimizer = kind(params, **META[name])
        for _ in range(2):
            sum((p * p).sum() for p in params).backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        described.append([{key: _described(value) for key, value in optimizer.state[p].items()} for p in params])
    assert described[0] == described[1]


def _described(value):
    numbers = value.item() if value.device.type == "cpu" else None
    return value.shape, value.dtype, value.stride(), value.device.type, numbers


OPTIONS = {"clip_norm": 1.0, "nonfinite": "skip", "fused_zero_grad": True}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Lion", OPTIONS), ("Lamb", {"fused_backward": True}), ("ScheduleFreeAdamW", OPTIONS), ("NAdam", {}),
        ("Adafactor", {}),
    ],
)  # fmt: skip
def test_all_options_on_the_device_meta(name, options):
    """State is where torch.optim's would be."""
    p = torch.nn.Parameter(torch.empty(3, 4, device="meta"))
    optimizer = getattr(fastopt.torch, name)([p], ema=0.9, flat=True, **options)
    if name == "ScheduleFreeAdamW":
        optimizer.train()
    for _ in range(2):
        (p * p).sum().backward()
        optimizer.step()
    with optimizer.evaluation_weights():
        counters = {"step", "mu_product"}
        assert {value.device.type for key, value in optimizer.state[p].items() if key not in counters} == {"meta"}
    assert optimizer.state[p].get("step", 2.0) == 2.0


def test_parameters_on_the_device_meta_beside_others():
    shapes = (3, 4), (5,)
    for options in ({}, {"fused_backward": True}):
        both = twins("SGD", *shapes, lr=0.1, momentum=0.9)
        both[1][1].fused_backward = bool(options)
        for params, optimizer in both:
            meta = torch.nn.Parameter(torch.empty(2, device="meta"))
            optimizer.add_param_group({"params": [meta]})
            for _ in range(3):
                meta.sum().backward()
                sum((p**2).sum() for p in params).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert_alike(both)


def _wrapper():
    from torch.testing._internal.two_tensor import TwoTensor

    return torch.nn.Parameter(TwoTensor(torch.ones(3), torch.ones(3)))


def _fake():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(("make", "kind"), [(_wrapper, "TwoTensor"), (_fake, "FakeTensor")])
def test_parameters_of_classes_with_operations_of_their_own(make, kind):
    """There is no memory behind them that a kernel could write to."""
    optimizer = fastopt.torch.Adam([leaf(3)])
    with pytest.raises(TypeError, match=rf"^parameter 1 of group 1, a {kind}, has no memory"):
        optimizer.add_param_group({"params": [leaf(4), make()]})
    assert len(optimizer.param_groups) == 1
    frozen = make().requires_grad_(False)
    optimizer.add_param_group({"params": [frozen]})
    frozen.requires_grad_()
    frozen.grad = torch.ones_like(frozen)
    with pytest.raises(TypeError, match=rf"^parameter 0 of group 1, a {kind}, has no memory"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("options", [{}, {"flat": True}])
@pytest.mark.parametrize("where", ["fake mode", "functionalize", "grad", "vmap", "freed"])
def test_parameters_that_have_no_memory_at_the_step(where, options):
    p, memory = torch.nn.Parameter(torch.ones(3)), torch.ones(3)
    p.data = memory
    optimizer = fastopt.torch.Adam([p], **options)

    def step(value):
        if where not in ("fake mode", "freed"):
            optimizer.param_groups[0]["params"] = [value]
        value.grad = torch.ones_like(value)
        with pytest.raises(TypeError, match=r"^parameter 0 of group 0.* has no memory"):
            optimizer.step()
        return value.sum()

    if where == "fake mode":
        p.grad = torch.ones(3)
        with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            step(p)
        assert type(p.data) is torch.Tensor
    elif where == "freed":
        p.grad = torch.ones(3)
        memory.untyped_storage().resize_(0)
        with pytest.raises(TypeError, match=r"^parameter 0 of group 0 has no memory"):
            optimizer.step()
    else:
        transform = {"functionalize": torch.func.functionalize, "grad": torch.func.grad, "vmap": torch.vmap}[where]
        transform(step)(torch.ones(3, 3))
    assert not optimizer.state


def test_a_parameter_twice_in_a_group():
    """torch.optim warns that it will be an error, and steps it twice."""
    p = leaf(3)
    optimizer = fastopt.torch.SGD([leaf(4)], lr=0.1)
    with (
        pytest.warns(UserWarning, match="duplicate parameters"),
        pytest.raises(ValueError, match=r"^parameter 2 of group 1 is parameter 0, too: pass a shared parameter once"),
    ):
        optimizer.add_param_group({"params": [p, leaf(2), p]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_unknown_arguments(name):
    """Python names the class of a method that is called wrongly."""
    kind = getattr(fastopt.torch, name)
    with pytest.raises(TypeError, match=rf"^fastopt.torch.{name} has no argument 'foo': the valid ones are lr, "):
        kind([leaf(3, 3)], foo=1)
    with pytest.raises(TypeError, match=rf"{name} has no argument 'global_clipnorm': it is called clip_norm$"):
        kind([leaf(3, 3)], global_clipnorm=1.0)


def test_arguments_that_subclasses_take():
    class Own(fastopt.torch.Adam):
        def __init__(self, params, rate, **kwargs):
            super().__init__(params, lr=rate, **kwargs)

    assert Own([leaf(3)], 0.5, betas=(0.5, 0.5)).param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError, match="Own has no argument 'learning_rate'"):
        Own([leaf(3)], 0.5, learning_rate=0.1)


def test_what_overlaps_is_named_once():
    base = torch.zeros(6)
    params = [torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[2:])]
    optimizer = fastopt.torch.Adam(params)
    give(params, 0)
    with pytest.raises(ValueError, match=r"^parameters 0 of group 0 and 1 of group 0 share memory"):
        optimizer.step()
    assert not optimizer.state
    torch.optim.Adam(params).load_state_dict(optimizer.state_dict())


def lies_in(tensor, buffer):
    return 0 <= tensor.data_ptr() - buffer.data_ptr() <= buffer.nbytes - tensor.nbytes


def test_all_that_is_trained_is_packed_at_once():
    p, q = leaf(3), leaf(4)
    for options in ({}, {"fused_backward": True}):
        optimizer = fastopt.torch.Adam([p, q], flat=True, **options)
        p.sum().backward()
        optimizer.step()
        (buffer,) = optimizer.flat_parameters
        q.sum().backward()
        optimizer.step()
        assert optimizer.flat_parameters[0] is buffer
        assert lies_in(q, buffer)


def test_engines_of_several_devices_count_apart(monkeypatch):
    """Two devices that are one: what tells them apart is replaced."""
    from fastopt.torch import building

    both = twins("Adam", (3,), (4,), lr=0.1)
    params, ours = both[1]
    monkeypatch.setattr(building, "device_of", lambda tensor: tensor.numel())
    steps(both, range(3))
    assert len(ours._built.optimizers) == 2
    assert [ours.state[p]["step"].item() for p in params] == [3, 3]
    assert_alike(both)
    # The second engine is refused: nothing of the build stays.
    ours.state[params[0]]["exp_avg"] = ours.state[params[0]]["exp_avg"].clone()
    ours.state[params[1]]["exp_avg"] = torch.zeros(1, dtype=torch.float64)
    kept = copy.deepcopy(both[0][1].state[both[0][0][1]]["exp_avg"])
    with pytest.raises(ValueError, match="the parameter needs"):
        ours.step()
    ours.state[params[1]]["exp_avg"] = kept
    steps(both, range(3, 5))
    assert_alike(both)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_negated_lazily_at_a_later_step():
    p = leaf(3)
    optimizer = fastopt.torch.SGD([p, leaf(2)], lr=0.1)
    z = torch.complex(torch.ones(3).double(), torch.ones(3).double())
    for grad in (z.imag, torch.ones(3).double()):
        p.grad = grad
        optimizer.step()
        p.grad = z.conj().imag if grad is not z.imag else torch._neg_view(grad)
        before = p.detach().clone()
        with pytest.raises(TypeError, match="negated lazily"):
            optimizer.step()
        assert torch.equal(p, before)


def test_strided_gradients_that_reach_into_a_parameter():
    memory = torch.arange(100.0)
    p = torch.nn.Parameter(memory[50:60])
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    p.grad = memory[0:60:6]
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.step()


class Wrapper(torch.Tensor):
    """A tensor that has another one, and no memory."""

    @staticmethod
    def __new__(cls, inner):
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*(arg.inner if isinstance(arg, Wrapper) else arg for arg in args), **(kwargs or {}))


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


WITHOUT_MEMORY = {
    "wrapper": lambda: Wrapper(torch.ones(4)),
    "freed": lambda: freed(torch.ones(4)),
    "freed, not at the start": lambda: freed(torch.ones(8)[4:]),
    "zeros that are not there": lambda: torch._efficientzerotensor(4),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_gradients_without_memory_are_none_of_those_that_are_missing(kind, known, monkeypatch):
    """In torch a gradient is missing that is None; address 0 says so to kernels only."""
    if not known:
        monkeypatch.setattr("fastopt.torch.reading.obstacle", lambda: "the test forbids it")
    params = [leaf(4, dtype=torch.float32), leaf(4, dtype=torch.float32, seed=1)]
    optimizer = fastopt.torch.Adam(params)
    for t in range(2):
        give(params, t)
        optimizer.step()
    params[1].grad = WITHOUT_MEMORY[kind]()
    before = copy.deepcopy(([p.detach() for p in params], list(optimizer.state.values())))
    with pytest.raises(TypeError, match="gradient of parameter 1 of group 0 has no memory"):
        optimizer.step()
    assert str(before) == str(([p.detach() for p in params], list(optimizer.state.values())))
    give(params, 2)
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [3, 3]


@pytest.mark.parametrize("kind", ["freed", "freed, not at the start"])
def test_parameters_and_state_without_memory_are_refused(kind):
    """torch ends in a segmentation fault."""
    p = torch.nn.Parameter(WITHOUT_MEMORY[kind]())
    p.grad = torch.ones(4)
    with pytest.raises(TypeError, match="parameter 0 of group 0 has no memory"):
        fastopt.torch.Adam([p]).step()
    p = leaf(4, dtype=torch.float32)
    optimizer = fastopt.torch.Adam([p])
    give([p], 0)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = WITHOUT_MEMORY[kind]()
    before = p.detach().clone()
    with pytest.raises(TypeError, match="state 'exp_avg' of parameter 0 of group 0 has no memory"):
        optimizer.step()
    assert torch.equal(p, before)


def test_gradients_that_functionalize_makes_are_refused():
    p = leaf(4)
    optimizer = fastopt.torch.SGD([p])

    def step(grad):
        p.grad = grad
        with pytest.raises(TypeError, match="has no memory"):
            optimizer.step()
        return grad

    torch.func.functionalize(step)(torch.ones(4, dtype=torch.float64))


def test_a_refused_gradient_leaves_no_state():
    p, q = leaf(3), leaf(4, 3)
    optimizer = fastopt.torch.Adam([p, q])
    give([p, q], 0)
    q.grad = q.grad.to_sparse()
    with pytest.raises(ValueError, match="is sparse"):
        optimizer.step()
    assert not optimizer.state


def test_gradients_of_inference_mode_and_those_that_are_dropped():
    p = leaf(3)
    optimizer = fastopt.torch.SGD([p], lr=0.1, fused_zero_grad=True)
    with torch.inference_mode():
        p.grad = torch.ones(3).double()
    optimizer.step()
    optimizer.zero_grad()
    p.grad = torch.ones(3).double()
    optimizer.step()
    reference = weakref.ref(p.grad)
    p.grad = None
    gc.collect()
    assert reference() is None
    p.grad = torch.ones(3).double()
    optimizer.zero_grad()
    assert p.grad is None


def test_gradients_can_be_resized_after_a_step():
    p = leaf(4, 3)
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    for grad in (torch.ones(4, 3).double(), torch.ones(3, 4).double().t()):
        p.grad = grad
        optimizer.step()
        grad.untyped_storage().resize_(0)


def test_autograd_is_told_of_what_was_updated_only():
    p, q = leaf(3), leaf(4)
    optimizer = fastopt.torch.SGD([p, q], lr=0.1, nonfinite="skip")
    give([p, q], 0)
    optimizer.step()
    give([p, q], 1, skip=(1,))
    before = p._version, q._version
    optimizer.step()
    assert p._version > before[0] and q._version == before[1]
    p.grad.fill_(NAN)
    before = p._version
    optimizer.step()
    assert optimizer.last_step_skipped and p._version == before


def test_autograd_is_told_of_what_was_updated_before_a_refusal(monkeypatch):
    """Of two devices, the second of which has a gradient that is refused."""
    from fastopt.torch import building

    p, q = leaf(3), leaf(4)
    optimizer = fastopt.torch.SGD([p, q], lr=0.1, momentum=0.9)
    monkeypatch.setattr(building, "device_of", lambda tensor: tensor.numel())
    give([p, q], 0)
    optimizer.step()
    give([p, q], 1)
    q.grad = q.grad.to_sparse()
    before = p._version, q._version
    with pytest.raises(ValueError, match="is sparse"):
        optimizer.step()
    assert p._version > before[0] and q._version == before[1]


def test_gradients_that_come_and_go_at_random_settle():
    both = twins("Adam", *[(2,)] * 8, lr=0.1)
    generator = random.Random(0)
    built = []
    for t in range(30):
        steps(both, [t], skip=generator.sample(range(8), 4))
        built.append(both[1][1]._built.optimizers)
    assert_alike(both)
    assert all(engines[0][0] is built[-1][0][0] for engines in built[15:])


def test_scaled_steps_without_any_gradient():
    p = leaf(4, dtype=torch.float32)
    optimizer = fastopt.torch.Adam([p])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    optimizer.grad_scale = torch.tensor(2.0)
    scaler.step(optimizer)
    assert not optimizer.last_step_skipped


# -- averages ----------------------------------------------------------------------------------------------------------


def averaged():
    p = leaf(3)
    optimizer = fastopt.torch.SGD([p], lr=0.1, ema=0.5)
    for t in range(2):
        give([p], t)
        optimizer.step()
    return p, optimizer


def test_evaluation_of_parameters_that_moved():
    p, optimizer = averaged()
    p.data = p.data.clone()
    before = p.detach().clone()
    with optimizer.evaluation_weights():
        assert torch.equal(p, optimizer.state[p]["ema"]) and not torch.equal(p, before)
    assert torch.equal(p, before)


def test_no_step_during_evaluation_whatever_happens():
    p, optimizer = averaged()
    q = leaf(4)
    with optimizer.evaluation_weights():
        optimizer.add_param_group({"params": [q]})
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        give([p, q], 2)
        with pytest.raises(RuntimeError, match="leave the context"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="does not nest"), optimizer.evaluation_weights():
            pass
    optimizer.step()


def test_autograd_notices_evaluation():
    p, optimizer = averaged()
    loss = (p**2).sum()
    with optimizer.evaluation_weights(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_evaluation_before_the_first_step_makes_no_state():
    p = leaf(3)
    optimizer = fastopt.torch.Adam([p], ema=0.9)
    give([p], 0)
    with pytest.raises(RuntimeError, match="before the first step"), optimizer.evaluation_weights():
        pass
    assert not optimizer.state


# -- fused backward ----------------------------------------------------------------------------------------------------


def test_fused_backward_steps_what_is_thawed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    model[0].requires_grad_(True)
    for _ in range(2):
        before = model[0].weight.detach().clone()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, before)
        assert model[0].weight.grad is None


def test_fused_backward_refuses_scalers():
    p = leaf(3)
    optimizer = fastopt.torch.SGD([p], lr=0.1, fused_backward=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((p**2).sum()).backward()
    with pytest.raises(RuntimeError, match=r"fused_backward=True .* GradScaler"):
        scaler.step(optimizer)


def test_fused_backward_notices_exchanged_state_and_groups():
    p, q = leaf(3), leaf(4)
    optimizer = fastopt.torch.SGD([p, q], lr=0.1, momentum=0.9, fused_backward=True)
    for change in (optimizer.state.clear, lambda: optimizer.state.update({p: {}})):
        ((p**2).sum() + q.sum()).backward()
        change()
        ((p**2).sum() + q.sum()).backward()
        assert optimizer.state[p]["momentum_buffer"].any()
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.0}
    before = p.detach().clone()
    (p**2).sum().backward()
    assert torch.equal(p, before)
    optimizer.param_groups[0]["params"] = [q]
    (p.sum() + q.sum()).backward()
    assert p.grad is not None and q.grad is None


def test_fused_backward_is_refused_like_steps():
    p = leaf(3)
    optimizer = fastopt.torch.ScheduleFreeAdamW([p], fused_backward=True)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="train mode"):
        (p**2).sum().backward()
    assert torch.equal(p, before)
    optimizer.train()
    (p**2).sum().backward()
    assert not torch.equal(p, before)


# -- options and modes -------------------------------------------------------------------------------------------------


def test_options_are_checked_whenever_they_are_set():
    optimizer = fastopt.torch.SGD([leaf(3)], clip_norm=1.0)
    for name, value in (("clip_norm", -1.0), ("ema", 1.0), ("nonfinite", "no"), ("fused_backward", True)):
        with pytest.raises(ValueError):
            setattr(optimizer, name, value)
    assert (optimizer.clip_norm, optimizer.ema, optimizer.fused_backward) == (1.0, None, False)
    assert copy.deepcopy(optimizer).clip_norm == 1.0


def test_infinite_limits_measure_only():
    both = twins("SGD", lr=0.1)
    both[1][1].clip_norm = both[1][1].clip_value = float("inf")
    steps(both, range(2))
    assert_alike(both)
    norm = torch.nn.utils.get_total_norm([p.grad for p in both[0][0]])
    assert both[1][1].last_grad_norm == pytest.approx(norm.item())


def test_schedule_free_modes_after_a_change_of_dtype():
    params = [leaf(4, dtype=torch.float32), leaf(3, dtype=torch.float32)]
    optimizer = fastopt.torch.ScheduleFreeAdamW([{"params": [p]} for p in params])
    optimizer.train()
    give(params, 0)
    optimizer.step()
    for p in params:
        p.data = p.data.double()
    optimizer.eval()
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]


# -- all at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
        ("AdamW", {"amsgrad": True, "weight_decay": 0.1}),
        ("NAdam", {"weight_decay": 0.1}),
        ("Adagrad", {"lr_decay": 0.1}),
        ("Adafactor", {"lr": 0.1}),
    ],
)
def test_random_events(name, kwargs):
    for seed in range(4):
        both = twins(name, (3, 4), (5,), (2, 3, 2), **kwargs)
        generator = random.Random(seed)
        for t in range(25):
            event = generator.choice(["save", "load", "lr", "data", "wd", "", "", ""])
            for params, optimizer in both:
                group = optimizer.param_groups[0]
                if event == "save":
                    optimizer.state_dict()
                elif event == "load":
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                elif event in ("lr", "wd"):
                    group["lr" if event == "lr" else "weight_decay"] = 0.1 / (t + 1)
                elif event == "data":
                    for p in params:
                        p.data = p.data.clone()
            steps(both, [t], skip=[k for k in range(3) if generator.random() < 0.25])
        assert_alike(both, 1e-7)
