"""Every row of the table in float64 against its oracle: the mathematics, free of rounding."""

import pytest
import table
from compare import assert_close, fastopt_run, oracle_run

BOUND = 1e-12
# Newton-Schulz multiplies matrices: the library behind `@` adds up in its own order, and five iterations magnify small
# singular values by up to 3.4445**5, differences included.
MUON_BOUND = 1e-10


@table.over(table.CASES)
def test_float64_follows_the_oracle(case):
    ours, oracle = fastopt_run(case, "float64"), oracle_run(case)
    assert_close(ours, oracle, MUON_BOUND if case.optimizer == "Muon" else BOUND)
    assert ours.slots.keys() == oracle.slots.keys()
    assert ours.iterations == oracle.iterations


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adafactor_stays_finite_where_zeros_meet(dtype):
    """A row of zeros that crosses a column of zeros: Keras in float32 divides 0 by 0 there."""
    (case,) = [case for case in table.CASES if case.id == "Adafactor-zero_row_and_column"]
    assert_close(fastopt_run(case, dtype), oracle_run(case), BOUND if dtype == "float64" else 1e-5)
