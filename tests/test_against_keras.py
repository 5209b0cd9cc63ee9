"""Every row of the table in float32: no further from the float64 oracle than real Keras is in float32.

Two correct float32 versions of one optimizer differ from each other by as much as each does from the truth, so the
comparison goes through float64.
"""

import numpy as np
import table
from compare import fastopt_run, keras_run, oracle_run, worst_of_slots, worst_of_steps

import fastopt

# One rounding of a number near 1 is 6e-8, which is 6e-6 of the floor, should the number come down to that later.
ONE_ROUNDING = 8e-6


@table.over(table.COMPARABLE_WITH_KERAS)
def test_float32_is_as_exact_as_keras(case):
    exact, ours, keras = oracle_run(case), fastopt_run(case, "float32"), keras_run(case)
    assert_as_exact(worst_of_steps, ours.steps, keras.steps, exact.steps, factor=1.5)
    # Slots often shrink to a fraction of what they were, with the rounding errors of their better days.
    assert_as_exact(worst_of_slots, ours.slots, keras.slots, exact.slots, factor=2.5)


def assert_as_exact(worst, ours, keras, exact, factor):
    ours, keras = worst(ours, exact), worst(keras, exact)
    assert ours.error <= max(ONE_ROUNDING, factor * keras.error), f"{ours}, Keras {keras}"


def test_average_of_parameters_at_rest_stays():
    """In float32, 0.9999 and 1 - 0.9999 rounded apart do not add up to 1: the average would shrink by 1.6e-4 of itself."""
    param = np.linspace(0.1, 1, 7, dtype=np.float32)
    optimizer = fastopt.SGD(0.1, use_ema=True, ema_momentum=0.9999)
    optimizer.build([param])
    for _ in range(20_000):
        optimizer.apply([np.zeros_like(param)])
    np.testing.assert_allclose(optimizer.slots["average"][0], param, rtol=2e-7)
