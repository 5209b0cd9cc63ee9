"""Every row of the table in float32: no further from the float64 oracle than real Keras is in float32.

Two correct float32 versions of one optimizer differ from each other by as much as each does from the truth, so the
comparison goes through float64.
"""

import numpy as np
import table
from compare import fastopt_run, keras_run, oracle_run, worst_of_slots, worst_of_steps

import fastopt

FEW_ROUNDINGS = 2e-6
# Elements that come near zero by cancellation: one rounding of a number near 1 is 6e-8, and 6e-6 of the floor.
CANCELLING = {"Adafactor-clipvalue": 1e-5, "Ftrl-l1": 1e-5, "SGD-exponential_decay": 1e-5}
SLOT_ROUNDINGS = 1e-5


@table.over(table.COMPARABLE_WITH_KERAS)
def test_float32_is_as_exact_as_keras(case):
    exact, ours, keras = oracle_run(case), fastopt_run(case, "float32"), keras_run(case)
    roundings = CANCELLING.get(case.id, FEW_ROUNDINGS)
    assert_as_exact(worst_of_steps, ours.steps, keras.steps, exact.steps, roundings, factor=1.5)
    # Slots often shrink to a fraction of what they were, with the rounding errors of their better days.
    assert_as_exact(worst_of_slots, ours.slots, keras.slots, exact.slots, SLOT_ROUNDINGS, factor=2.5)


def assert_as_exact(worst, ours, keras, exact, roundings, factor):
    ours, keras = worst(ours, exact), worst(keras, exact)
    assert ours.error <= max(roundings, factor * keras.error), f"{ours}, Keras {keras}"


def test_average_of_parameters_at_rest_stays():
    """0.9999 and 1 - 0.9999, each rounded to float32, do not add up to 1: the average would drift by up to 1.6e-4."""
    param = np.linspace(0.1, 1, 7, dtype=np.float32)
    optimizer = fastopt.SGD(0.1, use_ema=True, ema_momentum=0.9999)
    optimizer.build([param])
    for _ in range(20_000):
        optimizer.apply([np.zeros_like(param)])
    np.testing.assert_allclose(optimizer.slots["average"][0], param, rtol=2e-7)
