"""Every optimizer and option on the GPU against the CPU engine, on the same gradients."""

import pytest
import table
from compare import assert_close, fastopt_run, run_of
from on_gpu import assert_same_bits, host, require, tensor

require()

# Sums of rows and columns, matrix products and powers are worked out in another order, or by another library, than on
# the CPU. All else is the same arithmetic. Newton-Schulz magnifies differences: see test_rules_float64.py.
BOUNDS = {
    "Adafactor": {"float32": 1e-5, "float64": 1e-12},
    "Ftrl": {"float32": 1e-5, "float64": 1e-12},
    "Muon": {"float32": 1e-3, "float64": 1e-10},
}


def is_exact(case):
    return case.optimizer not in ("Adafactor", "Muon") and "learning_rate_power" not in case.kwargs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@table.over(table.CASES)
def test_as_on_the_cpu(case, dtype):
    ours, cpu = run_of(case, dtype, tensor, host), fastopt_run(case, dtype)
    assert ours.iterations == cpu.iterations
    assert ours.slots.keys() == cpu.slots.keys()
    if not is_exact(case):
        assert_close(ours, cpu, BOUNDS[case.optimizer][dtype])
        return
    for number, (found, expected) in enumerate(zip(ours.steps, cpu.steps, strict=True)):
        assert_same_bits(found, expected, f"recorded step {number}, parameter")
    for name, arrays in ours.slots.items():
        assert_same_bits(arrays, cpu.slots[name], name)
