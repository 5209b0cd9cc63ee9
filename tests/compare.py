"""Runs of one row of the table by fastopt, the oracle and Keras, and the one way in which the tests compare them."""

import functools
from typing import NamedTuple

import keras_reference
import numpy as np
import oracles

FLOOR = 1e-2


class Trajectory(NamedTuple):
    """`steps[i][j]`: parameter j after recorded step i. `slots`: {name: [array or None per parameter]} at the end."""

    steps: list
    slots: dict
    iterations: int = 0


class Worst(NamedTuple):
    """The largest relative error of a comparison and where it was."""

    error: float
    where: str


def relative_error(actual, reference, floor=FLOOR):
    """max |actual - reference| / max(|reference|, floor); NaN where one side is not finite."""
    if np.shape(actual) != np.shape(reference):
        return np.inf
    difference = np.abs(np.asarray(actual, np.float64) - reference) / np.maximum(np.abs(reference), floor)
    return float(np.max(difference, initial=0.0))


def worst_of_steps(actual, reference):
    """Compares two lists of [array per parameter]."""
    return _worst(
        Worst(relative_error(a, r), f"recorded step {step}, parameter {index}")
        for step, (actuals, references) in enumerate(zip(actual, reference, strict=True))
        for index, (a, r) in enumerate(zip(actuals, references, strict=True))
    )


def worst_of_slots(actual, reference):
    """Compares every slot of `reference`. Slots differ in size, so the floor is relative to the maximum of each."""
    return _worst(
        Worst(relative_error(a, r, FLOOR * np.max(np.abs(r), initial=1e-30)), f"slot {name} of parameter {index}")
        for name, references in reference.items()
        for index, (a, r) in enumerate(zip(actual[name], references, strict=True))
        if r is not None
    )


def _worst(errors):
    """A NaN counts as the worst of all."""
    nothing = Worst(0.0, "nothing to compare")
    return max(errors, key=lambda worst: np.inf if np.isnan(worst.error) else worst.error, default=nothing)


def assert_close(actual, reference, bound, slots_bound=None):
    """Two trajectories: parameters after every recorded step, then the slots that the reference has."""
    steps = worst_of_steps(actual.steps, reference.steps)
    assert steps.error <= bound, f"{steps.error:.2e} > {bound:.2e} at {steps.where}"
    slots = worst_of_slots(actual.slots, reference.slots)
    slots_bound = slots_bound or bound
    assert slots.error <= slots_bound, f"{slots.error:.2e} > {slots_bound:.2e} at {slots.where}"


@functools.cache
def oracle_run(case, dtype="float64"):
    params, grads = case.params(dtype), case.gradients(dtype)
    oracle = oracles.Oracle(case.optimizer, case.kwargs, params, case.paths, case.undecayed, case.multipliers)
    steps = [oracle.apply(step) for step in grads]
    return Trajectory([steps[number - 1] for number in case.recorded], oracle.slots, oracle.iterations)


@functools.cache
def keras_run(case):
    params, grads = case.params("float32"), case.gradients("float32")
    options = {"paths": case.paths, "undecayed": case.undecayed, "recorded": case.recorded}
    return Trajectory(*keras_reference.run(case.optimizer, case.kwargs, params, grads, **options))


@functools.cache
def fastopt_run(case, dtype):
    """On the CPU."""
    return run_of(case, dtype, placed=lambda array: array, taken=np.array)


def run_of(case, dtype, placed, taken):
    """fastopt's run of a row; `placed` puts an array where its engine works, `taken` copies one back to NumPy."""
    import fastopt

    params = [placed(param) for param in case.params(dtype)]
    optimizer = getattr(fastopt, case.optimizer)(**with_schedule(case.kwargs))
    if case.undecayed:
        optimizer.exclude_from_weight_decay(var_list=[params[index] for index in case.undecayed])
    optimizer.build(_structure(case, params), overrides=_overrides(case))
    steps = []
    for number, grads in enumerate(case.gradients(dtype), 1):
        optimizer.apply(_structure(case, [placed(grad) for grad in grads]))
        if number in case.recorded:
            steps.append([taken(param) for param in params])
    return Trajectory(steps, copied(optimizer.slots, taken), optimizer.iterations)


def copied(slots, taken=np.array):
    return {name: [None if array is None else taken(array) for array in arrays] for name, arrays in slots.items()}


def _structure(case, arrays):
    return dict(zip(case.names, arrays, strict=True)) if case.names else arrays


def _overrides(case):
    multipliers = case.multipliers.items()
    return {f"^{case.paths[index]}$": {"learning_rate_multiplier": value} for index, value in multipliers} or None


def with_schedule(kwargs):
    from fastopt import schedules

    if not isinstance(kwargs.get("learning_rate"), tuple):
        return kwargs
    schedule, arguments = kwargs["learning_rate"]
    return kwargs | {"learning_rate": getattr(schedules, schedule)(**arguments)}
