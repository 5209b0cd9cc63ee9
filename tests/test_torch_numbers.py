"""fastopt.torch against torch.optim: the same numbers, from the start and taken over from each other."""

import copy
import inspect

import pytest
from needs_torch import torch
from torch_reference import (
    FACTOR,
    STEPS,
    TOLERANCE,
    Lamb,
    Lion,
    ScheduleFreeAdamW,
    as_numbers,
    assert_as_near_as_torch,
    database,
    distance,
    error_database,
    for_loop,
    muon_in_full,
    net,
    parameters_of,
    recorded_gradients,
    replay,
    run,
)

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_numbers")

FROM_TORCH = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adafactor", "Muon")
MORE = {
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "RMSprop": [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"centered": True, "eps": 1e-3},
        {"centered": True, "momentum": 0.5, "alpha": 0.8, "weight_decay": 0.1, "eps": 1e-3},
    ],
    "Adagrad": [{"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}],
    "Adadelta": [{"lr": 2.0, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}],
    "Adam": [{"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-2, "weight_decay": 0.1}],
    "AdamW": [{"lr": 0.01, "weight_decay": 0.5, "amsgrad": True, "maximize": True}],
    "Adamax": [{"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}],
    "NAdam": [{"lr": 0.01, "momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}],
    "Adafactor": [{"lr": 0.1, "eps": (1e-3, 0.3), "d": 2.0, "beta2_decay": -0.5, "weight_decay": 0.1}],
    "Muon": [{"lr": 0.02, "nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 1e-3}],
}


def cases():
    found = database()
    for name in FROM_TORCH:
        described = [*found[name], *((str(kwargs), kwargs) for kwargs in MORE[name])]
        for description, kwargs in described:
            marks = () if kwargs is MORE[name][-1] else pytest.mark.full
            yield pytest.param(name, kwargs, id=f"{name}-{description}", marks=marks)


@pytest.fixture
def full_products(monkeypatch):
    muon_in_full(monkeypatch)


@pytest.mark.usefixtures("full_products")
@pytest.mark.parametrize(("name", "kwargs"), list(cases()))
def test_as_near_to_float64_as_torch(name, kwargs):
    make = for_loop(getattr(torch.optim, name), kwargs)
    exact = for_loop(getattr(torch.optim, name), as_numbers(kwargs))
    gradients = recorded_gradients(exact, STEPS, name)
    expected = run(exact, gradients, torch.float64, name)
    torchs = run(make, gradients, torch.float32, name)
    found = run(
        lambda params: getattr(fastopt.torch, name)(params, **copy.deepcopy(kwargs)), gradients, torch.float32, name
    )
    assert_as_near_as_torch(found, torchs, expected)


@pytest.mark.usefixtures("full_products")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "AdamW" else pytest.mark.full) for name in FROM_TORCH]
)
def test_float64(name):
    kwargs = MORE[name][-1]
    make = for_loop(getattr(torch.optim, name), kwargs)
    gradients = recorded_gradients(make, STEPS, name)
    found = run(lambda params: getattr(fastopt.torch, name)(params, **kwargs), gradients, torch.float64, name)
    # NAdam's product of momenta is a float32 number in torch's state, too.
    assert distance(found, run(make, gradients, torch.float64, name)) < (1e-7 if name == "NAdam" else 1e-11)


OWN = [
    (Lion, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True}),
    (Lion, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.01, "decoupled_weight_decay": True}),
    (Lamb, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "bias_correction": True}),
    (Lamb, {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "bias_correction": False}),
    (
        ScheduleFreeAdamW,
        {
            "lr": 0.02,
            "betas": (0.9, 0.99),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "warmup_steps": 10,
            "r": 0.5,
            "weight_lr_power": 2.0,
        },
    ),
]


@pytest.mark.parametrize(("kind", "kwargs"), OWN)
def test_what_torch_lacks(kind, kwargs):
    def make(params):
        optimizer = getattr(fastopt.torch, kind.__name__)(params, **kwargs)
        if kind is ScheduleFreeAdamW:
            optimizer.train()
        return optimizer

    def reference(params):
        return kind(params, **kwargs)

    gradients = recorded_gradients(reference, STEPS)
    expected = run(reference, gradients, torch.float64)
    assert distance(run(make, gradients, torch.float64), expected) < 1e-11
    assert_as_near_as_torch(run(make, gradients, torch.float32), run(reference, gradients, torch.float32), expected)


def test_lion_goes_on_from_lion_pytorch():
    """Its checkpoints have neither ``maximize`` nor ``decoupled_weight_decay``, which it keeps elsewhere.

    Rates of groups and schedules differ from the first, which the decay is divided by.
    """
    kwargs = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.2, "decoupled_weight_decay": True}
    gradients = recorded_gradients(lambda params: Lion(params, **kwargs), 20)
    trained = []
    for kind in (Lion, fastopt.torch.Lion):
        params = parameters_of(net(torch.float64))
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}]
        optimizer = Lion(groups, **kwargs)
        replay(optimizer, params, gradients[:10])
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            del group["decoupled_weight_decay"]
        optimizer = kind([{"params": params[:2]}, {"params": params[2:]}], **kwargs)
        optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:
            if kind is Lion:
                group["decoupled_weight_decay"] = True
            group["lr"] /= 2
        replay(optimizer, params, gradients[10:])
        trained.append([p.detach() for p in params])
    assert distance(trained[1], trained[0]) < 1e-12


def test_lion_refuses_to_divide_by_no_rate():
    with pytest.raises(ValueError, match=r"Invalid learning rate: 0.0; decoupled_weight_decay=True divides by it"):
        fastopt.torch.Lion([torch.nn.Parameter(torch.ones(3))], 0.0, decoupled_weight_decay=True)


def test_schedule_free_evaluates_the_average():
    kwargs = OWN[-1][1]
    gradients = recorded_gradients(lambda params: ScheduleFreeAdamW(params, **kwargs), 10)
    params, others = parameters_of(net(torch.float64)), parameters_of(net(torch.float64))
    ours, reference = fastopt.torch.ScheduleFreeAdamW(params, **kwargs), ScheduleFreeAdamW(others, **kwargs)
    with pytest.raises(RuntimeError, match="not in train mode"):
        ours.step()
    ours.train()
    replay(ours, params, gradients)
    replay(reference, others, gradients)
    training = [p.detach().clone() for p in params]
    ours.eval()
    assert distance([p.detach() for p in params], [reference.state[p]["x"] for p in others]) < 1e-12
    ours.train()
    assert distance([p.detach() for p in params], training) < 1e-12


# -- from one to the other ---------------------------------------------------------------------------------------------


def half_and_half(first, second, gradients, dtype, name):
    """Train with one, hand parameters and ``state_dict`` over, train on with the other."""
    params = parameters_of(net(dtype), name)
    optimizer = first(params)
    replay(optimizer, params, gradients[: len(gradients) // 2])
    other = second(params)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    replay(other, params, gradients[len(gradients) // 2 :])
    return [p.detach().double() for p in params], other


@pytest.mark.usefixtures("full_products")
@pytest.mark.parametrize("name", FROM_TORCH)
@pytest.mark.parametrize("direction", ["from torch", "to torch"])
def test_switch_in_the_middle(name, direction):
    kwargs = MORE[name][-1]
    torchs = for_loop(getattr(torch.optim, name), kwargs)
    gradients = recorded_gradients(torchs, 2 * STEPS, name)

    def ours(params):
        return getattr(fastopt.torch, name)(params, **kwargs)

    pair = (torchs, ours) if direction == "from torch" else (ours, torchs)
    expected = run(torchs, gradients, torch.float64, name)
    found, last = half_and_half(*pair, gradients, torch.float32, name)
    assert_as_near_as_torch(found, run(torchs, gradients, torch.float32, name), expected)
    if "step" in last.state[last.param_groups[0]["params"][0]]:
        assert {state["step"].item() for state in last.state.values()} == {2.0 * STEPS}


@pytest.mark.parametrize("name", FROM_TORCH)
def test_state_is_torchs(name):
    """The same keys in the same order, the same shapes, dtypes and strides; and the same parameter groups."""
    dicts = []
    for kind in (getattr(torch.optim, name), getattr(fastopt.torch, name)):
        params = parameters_of(net(), name)
        optimizer = kind(params, **MORE[name][-1])
        replay(optimizer, params, [[torch.ones_like(p) for p in params]])
        dicts.append(optimizer.state_dict())
    torchs, ours = dicts
    assert ours["param_groups"] == torchs["param_groups"]
    assert list(ours["state"]) == list(torchs["state"])
    for k, state in torchs["state"].items():
        described = [
            {key: (value.shape, value.dtype, value.stride(), value.device) for key, value in each.items()}
            for each in (state, ours["state"][k])
        ]
        assert list(described[0].items()) == list(described[1].items())


@pytest.mark.parametrize("name", FROM_TORCH)
def test_signature_is_torchs(name):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    ours = inspect.signature(getattr(fastopt.torch, name)).parameters
    assert [(key, p.default) for key, p in ours.items()][: len(theirs)] == [(k, p.default) for k, p in theirs.items()]
    assert list(ours)[len(theirs) :] == [
        "clip_norm", "clip_value", "ema", "nonfinite", "fused_zero_grad", "flat", "fused_backward", "sparse",
        "slot_dtype", "master_weights", "compensation", "stochastic_rounding", "seed",
    ]  # fmt: skip


def test_torchs_other_classes():
    """What torch tests, and fastopt does not have; SparseAdam takes nothing but sparse gradients."""
    assert database().keys() - FROM_TORCH == {"ASGD", "LBFGS", "Rprop", "SparseAdam"}


@pytest.mark.parametrize("name", FROM_TORCH)
def test_torch_refuses_the_same(name):
    """The errors of torch's own tests; only that complex parameters are a TypeError, as whatever has a wrong dtype."""
    kind = getattr(fastopt.torch, name)
    for given, error, message, at_step in error_database()[name]:
        if not at_step:
            with pytest.raises(error, match=message):
                kind(given.params, **given.kwargs)
            continue
        assert (error, message) == (RuntimeError, f"{name} does not support complex parameters")
        optimizer = kind(given.params, **given.kwargs)
        with pytest.raises(TypeError, match="complex64"):
            optimizer.step()


def test_tolerances():
    """What the tests above allow is as the requirement says."""
    assert (TOLERANCE, FACTOR, STEPS) == (2e-6, 1.5, 50)
