"""Parameters that are infinite: what Keras makes of them. torch, and squares that overflow: test_torch_extreme_numbers.

A bias of -inf forbids a class; its gradient is 0.
"""

import keras_reference
import legacy_oracle
import numpy as np
import pytest
import table

import fastopt
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
KEPT = [name for name in table.IN_KERAS if name not in NOT_KEPT]
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
