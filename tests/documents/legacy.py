"""What Keras 1.0.2, 2.2.4 and 2.3.1 computed, and what their formulas give for other arguments."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import legacy_oracle
import numpy as np

ERAS = {"keras_1_0": "1.0.2", "keras_2_2": "2.2.4", "keras_2_3": "2.3.1"}
GOLDEN = Path(__file__).parents[1] / "golden" / "legacy.json"


class Recorded(NamedTuple):
    """What a release computed: the parameters after each step."""

    optimizer: str
    kwargs: dict
    steps: list


@functools.cache
def _recording():
    return json.loads(GOLDEN.read_text())


def params():
    """The parameters that the recordings start from."""
    return [np.array(values) for values in _recording()["params"]]


def gradients():
    """The gradients of each recorded step."""
    return [[np.array(values) for values in step] for step in _recording()["grads"]]


def recorded(era):
    """Every trajectory of an era's release."""
    cases = [case for case in _recording()["cases"] if case["version"] == ERAS[era] and "steps" in case]
    return [
        Recorded(case["optimizer"], case["kwargs"], [[np.array(p) for p in step] for step in case["steps"]])
        for case in cases
    ]


def trajectory(era, optimizer, kwargs):
    """The parameters after each step by the formulas of an era; the start and the gradients are the recorded ones."""
    named = {{"learning_rate": "lr"}.get(key, key): value for key, value in kwargs.items()}
    oracle = legacy_oracle.Oracle(optimizer, ERAS[era], params(), **named)
    return [oracle.apply(grads) for grads in gradients()]
