"""With ``NUMBA_DISABLE_JIT=1``, which people set to measure coverage, everything works, interpreted.

Bits are those of compiled code, but for exponentials, logarithms and the like, which are NumPy's then, and for Muon's
products, which are not fused: hence the tolerances.
"""

import importlib.util
import os
import subprocess
import sys

import children
import pytest
import table

pytestmark = pytest.mark.xdist_group("interpreted")

THE_SUITES_OWN = (
    "test_golden_keras3.py",
    "test_front_end.py::test_a_rule_of_ones_own_is_an_optimizer_like_any_other",
    "test_front_end.py::test_a_rule_of_ones_own_may_have_two_phases",
    "test_losses.py::test_gradients_are_those_of_autograd",
    "test_losses.py::test_ignored_class",
    "test_losses.py::test_registered_formulas",
    "test_activations.py::test_values_and_derivatives",
    "test_torch_numbers.py::test_what_torch_lacks",
    "test_torch_numbers.py::test_state_is_torchs",
    "test_torch_numbers.py::test_switch_in_the_middle",
    "test_keras_torch.py::test_gradients_of_any_kind",
    "test_cuda_program.py::test_compiled_once_then_loaded",  # a GPU interprets nothing
)
"""Tests that hold against Keras, torch and NumPy what compiled code computes."""


def test_the_suites_own_tests_pass(request):
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTEST_ADDOPTS": ""}
    without_torch = importlib.util.find_spec("torch") is None
    wanted = [f"tests/{name}" for name in THE_SUITES_OWN if not (without_torch and "torch" in name)]
    warnings = [f"-W{filter}" for filter in request.config.option.pythonwarnings or ()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, "-m", "not full", *wanted]
    root = request.config.rootpath
    child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1500)
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"


def test_every_optimizer_is_as_near_to_the_oracle():
    """All own hyper-parameters away from their defaults, clipping, decay, a loss scale and a schedule: in float64."""
    code = """
        import dataclasses
        import children, compare, table

        errors = {}
        for case in table.CASES:
            if case.id.endswith("-own-together"):
                short = dataclasses.replace(case, steps=3)
                ours, exact = compare.fastopt_run(short, "float32"), compare.oracle_run(short)
                errors[case.optimizer] = compare.worst_of_steps(ours.steps, exact.steps).error
        children.report(errors=errors)
    """
    found = children.run(code, NUMBA_DISABLE_JIT=1)
    assert found["compilations"] == 0
    assert found["errors"].keys() == table.RATES.keys()
    assert max(found["errors"].values()) < 1e-5


BITS = """
    import children, fastopt
    sizes = (300, 33)
    steps = {
        kind.__name__: children.few_steps(kind(**options), sizes=sizes)
        for kind, options in (
            (fastopt.Adam, {"global_clipnorm": 1.0, "use_ema": True}),
            (fastopt.SGD, {"momentum": 0.9, "weight_decay": 0.1, "gradient_accumulation_steps": 2}),
            (fastopt.Lamb, {"clipnorm": 1.0}),
        )
    }
    children.report(steps=steps, threads=fastopt.get_num_threads())
"""


def test_bits_are_those_of_compiled_code():
    compiled, interpreted = (children.run(BITS, NUMBA_DISABLE_JIT=value) for value in (None, 1))
    assert interpreted == {"compilations": 0, "steps": compiled["steps"], "threads": 1}


def test_a_rule_of_ones_own_is_run_as_it_stands():
    """Once per element and step, where tools that follow Python see it; what it raises comes out."""
    code = """
        from typing import NamedTuple
        import children, fastopt, numpy as np

        class Scalars(NamedTuple):
            learning_rate: float

        kinds = []

        def rule(param, grad, slots, s):
            kinds.append(type(param).__name__)
            if grad > 1:
                raise ValueError("raised by the rule")
            return param - s.learning_rate * grad, slots

        optimizer = fastopt.register_rule("Seen", rule, Scalars, defaults={"learning_rate": 0.5})()
        param = np.ones(3, np.float32)
        optimizer.build([param])
        kinds.clear()
        for _ in range(2):
            optimizer.apply([np.ones(3, np.float32)])
        try:
            optimizer.apply([np.full(3, 2, np.float32)])
        except ValueError as error:
            raised = str(error)
        children.report(kinds=kinds, value=float(param[0]), raised=raised)
    """
    found = children.run(code, NUMBA_DISABLE_JIT=1)
    assert found == {"compilations": 0, "kinds": ["float32"] * 7, "value": 0.0, "raised": "raised by the rule"}
