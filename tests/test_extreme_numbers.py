"""Parameters that are infinite, and gradients whose squares overflow: what Keras and torch make of them.

A bias of -inf forbids a class; its gradient is 0. One gradient above 1.84e19 has no square in float32.
"""

import keras_reference
import legacy_oracle
import numpy as np
import pytest
import table
import torch
import torch_reference

import fastopt
import fastopt.torch
from fastopt.compat import keras_1_0, keras_2_2, keras_2_3

pytestmark = pytest.mark.xdist_group("extreme numbers")

STEPS = 3
INFINITE = [
    np.array([-np.inf, np.inf, 0.5, -1.0], np.float32),
    np.array([[-np.inf, 2.0, 0.5], [1.0, np.inf, 0.25]], np.float32),
]
GRADIENTS = [np.array([0, 0, 0.1, -0.3], np.float32), np.array([[0, 0.2, 0.1], [0.2, 0, 0.4]], np.float32)]

# Both say that x is the average of numbers that are infinite, or has a norm that is: they make NaN of it.
NOT_KEPT = ("Ftrl", "ScheduleFreeAdamW", "Lamb", "Adafactor")
KEPT = [name for name in table.RATES if name not in NOT_KEPT]
WITHOUT_DECAY = {
    "AdamW": {"weight_decay": 0.0},
    "Muon": {"weight_decay": None, "adam_weight_decay": None},
}


def stepped(optimizer, params, gradients, steps=STEPS):
    """The parameters after steps of an optimizer of fastopt."""
    params = [np.array(param) for param in params]
    optimizer.build(params)
    for _ in range(steps):
        optimizer.apply([np.array(grad) for grad in gradients])
    return params


def assert_close(found, expected):
    """Infinite where it must be, the rest but for rounding."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# -- infinite parameters -----------------------------------------------------------------------------------------------


def without_decay():
    options = {
        "plain": {},
        "average": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    }
    own = {"SGD": ("nesterov",), "RMSprop": ("momentum", "centered"), "Adam": ("amsgrad",)}
    for name in KEPT:
        if name != "AdamW":  # Keras's own decays by 0 times infinity
            variants = {key: table.VARIANTS[name][key] for key in own.get(name, ())}
            for key, kwargs in (options | variants).items():
                marks = [pytest.mark.full] * (key != "plain" and name not in ("SGD", "RMSprop"))
                yield pytest.param(name, kwargs | WITHOUT_DECAY.get(name, {}), id=f"{name}-{key}", marks=marks)


@pytest.mark.parametrize(("name", "kwargs"), list(without_decay()))
def test_infinite_parameters_are_kept_as_by_keras(name, kwargs):
    kwargs = {"learning_rate": table.RATES[name]} | kwargs
    expected, _ = keras_reference.run(name, kwargs, INFINITE, [GRADIENTS] * STEPS)
    found = stepped(getattr(fastopt, name)(**kwargs), INFINITE, GRADIENTS)
    assert_close(found, expected[-1])
    assert np.isinf(found[0][:2]).all() and np.isinf(found[1][[0, 1], [0, 1]]).all()


@pytest.mark.parametrize("name", KEPT)
def test_decay_leaves_infinite_parameters_alone(name):
    """torch.optim.AdamW and lion-pytorch multiply by 1 - decay. Keras subtracts a share: NaN, and right elsewhere."""
    kwargs = {"learning_rate": table.RATES[name]} | table.decay_of(name, 0.5)
    expected, _ = keras_reference.run(name, kwargs, INFINITE, [GRADIENTS] * STEPS)
    theirs = [np.where(np.isinf(param), param, array) for param, array in zip(INFINITE, expected[-1], strict=True)]
    assert_close(stepped(getattr(fastopt, name)(**kwargs), INFINITE, GRADIENTS), theirs)


def test_lamb_with_an_infinite_parameter_has_a_trust_ratio_of_one():
    """Else every step would be infinite, too, as in Keras: there is no authority but for the rest, which is Adam's."""
    adam, lamb = (kind(0.01, epsilon=1e-12) for kind in (fastopt.Adam, fastopt.Lamb))
    assert_close(stepped(lamb, INFINITE, GRADIENTS), stepped(adam, INFINITE, GRADIENTS))


OF_TORCH = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}],
    "RMSprop": [{}, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.9}],
    "Adagrad": [{}, {"weight_decay": 0.1}],
    "Adadelta": [{}],
    "Adam": [{}, {"amsgrad": True}, {"weight_decay": 0.1}],
    "AdamW": [{"weight_decay": 0.0}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "amsgrad": True}],
    "Adamax": [{}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
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


@pytest.mark.parametrize(
    ("release", "module"), [("1.0.2", keras_1_0), ("2.2.4", keras_2_2), ("2.3.1", keras_2_3)], ids=str
)
@pytest.mark.parametrize("name", legacy_oracle.DEFAULTS)
def test_infinite_parameters_in_old_releases(release, module, name):
    if not hasattr(module, name):
        pytest.skip("this release has no such class")
    oracle = legacy_oracle.Oracle(name, release, [param.astype(np.float64) for param in INFINITE], lr=0.01)
    for _ in range(STEPS):
        expected = oracle.apply([grad.astype(np.float64) for grad in GRADIENTS])
    assert_close(stepped(getattr(module, name)(lr=0.01), INFINITE, GRADIENTS), expected)


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
