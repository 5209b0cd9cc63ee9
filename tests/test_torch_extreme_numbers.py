"""Parameters that are infinite, and gradients whose squares overflow: what torch makes of them.

One gradient above 1.84e19 has no square in float32.
"""

import numpy as np
import pytest
import torch_reference
from needs_torch import torch
from test_extreme_numbers import GRADIENTS, INFINITE, STEPS, assert_close

import fastopt
import fastopt.torch

pytestmark = pytest.mark.xdist_group("extreme numbers")

OF_TORCH = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}],
    "RMSprop": [{}, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.9}],
    "Adagrad": [{}, {"weight_decay": 0.1}],
    "Adadelta": [{}],
    "Adam": [{}, {"amsgrad": True}, {"weight_decay": 0.1}],
    "AdamW": [{"weight_decay": 0.0}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "amsgrad": True}],
    "Adamax": [{}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}],
    "Muon": [{"weight_decay": 0.0}, {"weight_decay": 0.1}],
}
LION = {"lr": 0.1, "betas": (0.9, 0.99), "maximize": False}
LAMB = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": True, "weight_decay": 0.0}
SCHEDULE_FREE = {
    "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0,
    "weight_lr_power": 2.0,
}  # fmt: skip


def of_torch(**others):
    """Ours, its reference, arguments: torch.optim's classes, then of ``others`` the references in torch_reference."""
    for name, variants in OF_TORCH.items():
        for kwargs in variants:
            id = "-".join([name, *(f"{key}={value}" for key, value in kwargs.items())])
            marks = [pytest.mark.full] * (kwargs is not variants[-1])
            both = getattr(fastopt.torch, name), getattr(torch.optim, name)
            yield pytest.param(*both, {"lr": 0.1} | kwargs, id=id, marks=marks)
    for name, variants in others.items():
        for kwargs in variants:
            ours, reference = (getattr(module, name) for module in (fastopt.torch, torch_reference))
            yield pytest.param(ours, reference, kwargs, id=f"{name}-{kwargs['weight_decay']}")


def torch_run(make, params, gradients):
    """The parameters after steps with these lists of gradients."""
    params = [torch.nn.Parameter(torch.tensor(param)) for param in params]
    optimizer = make(params)
    if isinstance(optimizer, fastopt.torch.ScheduleFreeAdamW):
        optimizer.train()
    torch_reference.replay(optimizer, params, [[torch.tensor(grad) for grad in grads] for grads in gradients])
    return [param.detach().numpy() for param in params]


@pytest.mark.parametrize(
    ("ours", "reference", "kwargs"), list(of_torch(Lion=[LION | {"weight_decay": decay} for decay in (0.0, 0.1)]))
)
def test_infinite_parameters_are_those_of_torch(ours, reference, kwargs, monkeypatch):
    """Kept, or NaN where torch's weight decay enters the gradient. lion-pytorch's Lion is as in torch_reference."""
    torch_reference.muon_in_full(monkeypatch)
    which = slice(1, 2) if ours is fastopt.torch.Muon else slice(2)
    params, gradients = INFINITE[which], [GRADIENTS[which]] * STEPS
    expected = torch_run(lambda params: reference(params, **kwargs), params, gradients)
    found = torch_run(lambda params: ours(params, **kwargs), params, gradients)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# -- squares that overflow ---------------------------------------------------------------------------------------------

HUGE = {np.float32: (3e19, 1e20, 3e21), np.float64: (3e154, 1e158)}
over_huge = pytest.mark.parametrize(
    ("dtype", "huge"),
    [
        pytest.param(dtype, huge, id=f"{huge:g}", marks=[pytest.mark.full] * (huge != 3e19))
        for dtype, numbers in HUGE.items()
        for huge in numbers
    ],
)


def with_one_huge(dtype, huge):
    """A parameter, and gradients of 1 but for one element of the second."""
    gradients = [[np.ones((2, 2), dtype)] for _ in range(4)]
    gradients[1][0][0, 0] = huge
    return [np.ones((2, 2), dtype)], gradients


@over_huge
@pytest.mark.parametrize(
    ("ours", "reference", "kwargs"),
    list(of_torch(Lion=[LION | {"weight_decay": 0.0}], ScheduleFreeAdamW=[SCHEDULE_FREE])),
)
def test_a_square_that_overflows_is_as_in_torch(ours, reference, kwargs, dtype, huge, monkeypatch):
    """torch adds ((1 - b2) g) g to b2 v, which may be finite where g² is not; an infinite v stays so."""
    if ours is fastopt.torch.Muon and huge > 1e20:
        pytest.skip("the norm overflows in torch, which then does not move; ours is worked out in float64")
    torch_reference.muon_in_full(monkeypatch)
    params, gradients = with_one_huge(dtype, huge)
    expected = torch_run(lambda params: reference(params, **kwargs), params, gradients)
    assert_close(torch_run(lambda params: ours(params, **kwargs), params, gradients), expected)


def test_the_example():
    """What torch.optim.AdamW makes of 1, 3e19, 1, 1 from 1 on at a rate of 0.1."""
    (found,) = torch_run(lambda params: fastopt.torch.AdamW(params, lr=0.1), *with_one_huge(np.float32, 3e19))
    np.testing.assert_allclose(found[0, 0], 0.717458, rtol=1e-6)


# Ours, its arguments; torch's, or the one in torch_reference, its arguments. Epsilons are too small to matter.
CORE = [
    ("Adam", {}, torch.optim.Adam, {}),
    ("Adam", {"amsgrad": True}, torch.optim.Adam, {"amsgrad": True}),
    ("AdamW", {"weight_decay": 0.01}, torch.optim.AdamW, {}),
    ("Nadam", {}, torch.optim.NAdam, {"momentum_decay": 1.0}),
    ("RMSprop", {"rho": 0.9}, torch.optim.RMSprop, {"alpha": 0.9}),
    ("RMSprop", {"centered": True}, torch.optim.RMSprop, {"alpha": 0.9, "centered": True}),
    ("Adadelta", {"rho": 0.9}, torch.optim.Adadelta, {"rho": 0.9}),
    ("Adamax", {}, torch.optim.Adamax, {}),
    ("Adagrad", {"initial_accumulator_value": 0.0}, torch.optim.Adagrad, {}),
    ("Lion", {"beta_2": 0.99}, torch_reference.Lion, LION | {"weight_decay": 0.0}),
    ("Lamb", {}, torch_reference.Lamb, LAMB),
    ("ScheduleFreeAdamW", {}, torch_reference.ScheduleFreeAdamW, SCHEDULE_FREE),
]


@over_huge
@pytest.mark.parametrize(("name", "kwargs", "reference", "theirs"), CORE)
def test_keras_rules_are_torchs_where_a_square_overflows(name, kwargs, reference, theirs, dtype, huge):
    """Keras itself gives NaN for good, or for RMSprop and Adadelta no step any more."""
    epsilon, eps = ({}, {}) if name == "Lion" else ({"epsilon": 1e-12}, {"eps": 1e-12})
    params, gradients = with_one_huge(dtype, huge)
    optimizer = getattr(fastopt, name)(0.1, **epsilon, **kwargs)
    expected = torch_run(lambda params: reference(params, **{"lr": 0.1} | theirs | eps), params, gradients)
    optimizer.build(params)
    for grads in gradients:
        optimizer.apply(grads)
    assert_close(params, expected)
