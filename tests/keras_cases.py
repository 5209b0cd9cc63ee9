"""What the tests of fastopt.keras share: cases, variables, gradients, and the comparison with Keras's own optimizers.

Nothing here imports Keras: it comes as an argument.
"""

import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import table

NAMES = tuple(table.IN_KERAS)
SHAPES = ((7, 5), (5,), (2, 3, 4), (1,), ())
STEPS = 100
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TORCH_SCHEDULE_FREE = "Keras's ScheduleFreeAdamW reads the old z after overwriting it, on its torch backend"

ON_BOTH_BACKENDS = [
    pytest.mark.usefixtures("on_backend"),
    pytest.mark.parametrize(
        "backend",
        [
            pytest.param(name, marks=[pytest.mark.keras_backend(name), pytest.mark.xdist_group(f"keras-{name}")])
            for name in ("numpy", "torch")
        ],
    ),
]

COPY_KEYWORD = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
"""What Keras itself runs into with NumPy 2 when it reads a variable."""


@dataclass(frozen=True, eq=False)
class Case:
    """`learning_rate` may be (schedule name, arguments)."""

    id: str
    optimizer: str
    kwargs: dict
    full: bool

    def make(self, keras, module):
        """The optimizer of a module: keras.optimizers or fastopt.keras."""
        return getattr(module, self.optimizer)(**with_schedule(keras, self.kwargs))


def with_schedule(keras, kwargs):
    if not isinstance(kwargs.get("learning_rate"), tuple):
        return kwargs
    name, arguments = kwargs["learning_rate"]
    return kwargs | {"learning_rate": getattr(keras.optimizers.schedules, name)(**arguments)}


def _options(name):
    """Options together, with what is not compatible with one another apart."""
    average = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}
    rows = {
        "plain": {},
        "global": {"global_clipnorm": 1.0, **average, **table.decay_of(name, 0.5)},
        "accumulated": {"clipnorm": 0.5, "gradient_accumulation_steps": 2},
        "scaled": {"clipvalue": 0.1, "loss_scale_factor": 128.0},
        "scheduled": {"learning_rate": table.cosine(table.RATES[name])},
        "own": table.OWN[name][0],
        "own-2": table.OWN[name][1] | {"weight_decay": 0.1},
    }
    return rows | table.VARIANTS.get(name, {})


_COVERING = {
    "plain": NAMES,
    "global": ("SGD", "Nadam", "Muon", "Adam", "Lamb"),
    "accumulated": ("AdamW", "Adafactor", "RMSprop", "Nadam", "Lamb"),
    "scaled": ("Lion", "Adagrad", "Adadelta"),
    "scheduled": ("Adamax", "ScheduleFreeAdamW", "Ftrl"),
    "own": ("Ftrl", "RMSprop", "Adam", "ScheduleFreeAdamW", "SGD", "Muon"),
    "nesterov": ("SGD",),
}

CASES = [
    Case(f"{name}-{option}", name, {"learning_rate": table.RATES[name]} | kwargs, name not in _COVERING.get(option, ()))
    for name in NAMES
    for option, kwargs in _options(name).items()
]


def over(cases):
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.id, marks=[pytest.mark.full] * case.full) for case in cases]
    )


def parameters(shapes=SHAPES, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=0.5, size=shape).astype(np.float32) for shape in shapes]


def gradients(steps, shapes=SHAPES, seed=2):
    """Per step a list of arrays, as in the table of all optimizers."""
    return table.gradients(np.random.default_rng(seed), shapes, steps)


def variables_of(keras, arrays, dtype="float32", **options):
    """Keras variables with their own memory: two from one array would share it, on the torch backend."""
    return [keras.Variable(np.array(array), name=f"v{k}", dtype=dtype, **options) for k, array in enumerate(arrays)]


def tensors(keras, arrays):
    """Gradients as the backend has them; None stays None."""
    return [None if array is None else keras.ops.convert_to_tensor(np.array(array)) for array in arrays]


def values(variables):
    return [np.array(variable.numpy(), copy=True) for variable in variables]


@contextmanager
def keras_at_work():
    """Keras's own updates divide by zero where all gradients are zero, on the NumPy backend."""
    with np.errstate(divide="ignore", invalid="ignore"):
        yield


def train(optimizer, keras, variables, grads_per_step):
    """Build, and step."""
    if not optimizer.built:
        optimizer.build(variables)
    for grads in grads_per_step:
        with keras_at_work():
            optimizer.apply(tensors(keras, grads))


def assert_same_variables(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), **CLOSE, err_msg=b.path)


def assert_same_state(actual, expected):
    """Two optimizers' variables, but for what Adafactor derives from its factors and fastopt does not keep up.

    Slots differ in size, so the floor is relative to the largest number of each.
    """
    derived = _derived(expected)
    for a, b in zip(actual.variables, expected.variables, strict=True):
        if id(b) not in derived:
            reference = b.numpy()
            floor = 1e-5 * max(1.0, np.max(np.abs(reference), initial=0.0))
            np.testing.assert_allclose(a.numpy(), reference, rtol=1e-5, atol=floor, err_msg=b.path)


def _derived(optimizer):
    """Adafactor's `velocity` of a matrix is the outer product of its factors, computed anew at every step."""
    if type(optimizer).__name__ != "Adafactor":
        return set()
    return {id(variable) for variable in optimizer._v if variable is not None and variable.ndim > 1}


def is_fused(optimizer):
    """Whether the last step was fastopt's: Keras's own leaves no attachment behind."""
    return optimizer._attachment is not None


def pair(case, keras, fast, arrays=None):
    """(ours, its variables), (Keras's, its variables), built, from equal starts."""
    arrays = parameters() if arrays is None else arrays
    pairs = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, arrays)
        optimizer = case.make(keras, module)
        optimizer.build(variables)
        pairs.append((optimizer, variables))
    return pairs


@contextmanager
def falls_back(optimizer, reason):
    """The block makes an optimizer say, once, that Keras's own update runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(warning.message) for warning in caught if "Keras's own update runs" in str(warning.message)]
    assert len(said) == 1 and reason in said[0], [str(warning.message) for warning in caught]
    assert not is_fused(optimizer)
