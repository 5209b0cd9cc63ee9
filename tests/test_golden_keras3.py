"""Trajectories recorded from Keras 3.15.1, and where moving averages differ from it on purpose."""

import numpy as np
import pytest
import table
from compare import Trajectory, assert_close, copied, with_schedule

import fastopt


@pytest.mark.parametrize("case", table.golden(), ids=lambda case: case.id)
def test_float32_reproduces_golden(case):
    params = [param.copy() for param in case.params]
    optimizer = getattr(fastopt, case.optimizer)(**with_schedule(case.kwargs))
    optimizer.build(params)
    steps, iterations = [], []
    for grads in case.grads:
        optimizer.apply(grads)
        steps.append([param.copy() for param in params])
        iterations.append(optimizer.iterations)
    assert_close(Trajectory(steps, copied(optimizer.slots)), Trajectory(case.steps, case.slots), 4e-6)
    assert optimizer.slots.keys() == case.slots.keys()
    assert iterations == case.iterations


def test_average_moves_and_overwrites_on_real_updates_only():
    """Keras also pulls the average on accumulation micro-steps, and overwrites before the update of a window."""
    param = np.array([1.0, -2.0])
    accumulation = {
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 3,
        "gradient_accumulation_steps": 2,
    }
    optimizer = fastopt.SGD(0.25, **accumulation)
    optimizer.build([param])
    seen = []
    for _ in range(6):
        optimizer.apply([np.ones(2)])
        seen.append((param[0], optimizer.slots["average"][0][0]))
    # The first update sets the average, the second pulls it half way, the third also puts it into the parameter.
    assert seen[1:] == [(0.75, 0.75), (0.75, 0.75), (0.5, 0.625), (0.5, 0.625), (0.4375, 0.4375)]
    assert optimizer.iterations == 3
