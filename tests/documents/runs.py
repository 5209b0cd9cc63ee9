"""Steps of fastopt's optimizers on small arrays, and how trajectories are compared."""

import importlib
import inspect

import numpy as np
import pytest
from documents import legacy


def steps_of(optimizer, params, gradients):
    """The parameters after each step; ``params`` stay as they are."""
    params = [param.copy() for param in params]
    optimizer.build(params)
    steps = []
    for grads in gradients:
        optimizer.apply(list(grads))
        steps.append([param.copy() for param in params])
    return steps


def assert_same_steps(actual, expected, rtol, atol=0.0):
    """Two trajectories agree in every parameter after every step."""
    assert len(actual) == len(expected)
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True), 1):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(a, b, rtol, atol, err_msg=f"parameter {index} after step {number}")


def differ(steps, others):
    """Whether two trajectories end at visibly different parameters."""
    ends = zip(steps[-1], others[-1], strict=True)
    return any(np.max(np.abs(a - b), initial=0.0) > 1e-7 for a, b in ends)


def era_class(era, name):
    """An optimizer class of an era, as ``optimizers.NAME`` of its module."""
    return getattr(importlib.import_module(f"fastopt.compat.{era}").optimizers, name)


def documented_signature(kind):
    """{argument: default} of what may be passed by position."""
    arguments = inspect.signature(kind).parameters.values()
    return {
        argument.name: argument.default for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD
    }


def era_steps(era, name, kwargs):
    """An era's optimizer on what the releases were recorded with."""
    return steps_of(era_class(era, name)(**kwargs), legacy.params(), legacy.gradients())


def assert_computes_what_the_formulas_say(era, name, kwargs):
    """Against `legacy.trajectory`; every argument given must matter, or the test would show nothing."""
    expected = legacy.trajectory(era, name, kwargs)
    assert_same_steps(era_steps(era, name, kwargs), expected, rtol=1e-11, atol=1e-13)
    for argument in kwargs:
        rest = {key: value for key, value in kwargs.items() if key != argument}
        without = legacy.trajectory(era, name, rest)
        assert differ(expected, without), f"{argument} makes no difference here"


def recorded_cases(era, rows):
    """Every recorded trajectory of an era's release, for `parametrize`; ``rows`` of (optimizer, its arguments)."""
    release = f"recorded trajectory of Keras {legacy.ERAS[era]}"
    return [
        pytest.param(case, id=_named(case), marks=pytest.mark.row(*rows[case.optimizer, *case.kwargs], oracle=release))
        for case in legacy.recorded(era)
        if (case.optimizer, *case.kwargs) in rows
    ]


def formula(optimizer, *rows, **kwargs):
    """One case for `assert_computes_what_the_formulas_say`."""
    shown = ", ".join(f"{key}={value}" for key, value in kwargs.items())
    mark = pytest.mark.row(*rows, oracle="NumPy formulas of the release's source")
    return pytest.param(optimizer, kwargs, id=f"{optimizer}({shown})", marks=mark)


def with_epsilon(name):
    """An epsilon that lets the size of gradients show in the steps of optimizers that would divide by it."""
    return {} if name in ("SGD", "Adadelta", "Nadam") else {"epsilon": 0.1}


def _named(case):
    return f"{case.optimizer}({', '.join(f'{key}={value}' for key, value in case.kwargs.items())})"


def rule_docstrings(module):
    """What the docstrings of a rule's module say."""
    rules = vars(importlib.import_module(f"fastopt.kernels.rules.{module}")).values()
    return "\n".join(filter(None, (rule.__doc__ for rule in rules if inspect.isfunction(rule))))
