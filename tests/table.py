"""THE table that drives the optimizer tests: every optimizer with every option.

Rows with `full=False` form the covering subset that always runs; the others carry the mark `full`.
"""

import ast
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import oracles
import pytest

SHAPES = ((), (0,), (1,), (7, 5), (3, 4, 5), (33,))
BIG = (1_000_003,)

RATES = {name: rule.rate for name, rule in oracles.RULES.items()}
OWN = {name: rule.own for name, rule in oracles.RULES.items()}
IN_KERAS = [name for name, rule in oracles.RULES.items() if rule.in_keras]


@dataclass(frozen=True, eq=False)
class Case:
    """`learning_rate` in `kwargs` may be a number, a zero-argument callable or (schedule name, arguments)."""

    id: str
    optimizer: str
    kwargs: dict
    full: bool = True
    shapes: tuple = SHAPES
    steps: int = 50
    names: tuple = ()  # of the parameters; without, their indices
    undecayed: tuple = ()  # indices of parameters without weight decay
    multipliers: dict = field(default_factory=dict)  # index -> learning-rate multiplier
    empty_row_and_column: bool = False  # gradients of matrices have a row and a column of zeros
    differs_from_keras: str = ""

    def __post_init__(self):
        if not oracles.RULES[self.optimizer].in_keras and not self.differs_from_keras:
            object.__setattr__(self, "differs_from_keras", f"Keras has no {self.optimizer}")

    @property
    def paths(self):
        return list(self.names or map(str, range(len(self.shapes))))

    @property
    def recorded(self):
        """The steps (from 1) after which runs keep the parameters: all, but only the last of big arrays."""
        return [self.steps] if BIG in self.shapes else list(range(1, self.steps + 1))

    def params(self, dtype):
        rng = self._rng()
        drawn = [rng.normal(scale=0.5, size=shape) for shape in self.shapes]
        # One parameter starts at zero, where Lamb and Adafactor have a branch.
        return [_array(values * (np.shape(values) != (1,)), dtype) for values in drawn]

    def gradients(self, dtype):
        """Float32 values in any dtype, so that runs in different precisions see the same numbers."""
        steps = gradients(self._rng(), self.shapes, self.steps)
        if self.empty_row_and_column:
            steps = [[_without_row_and_column(grad) for grad in step] for step in steps]
        return [[grad.astype(dtype) for grad in step] for step in steps]

    def _rng(self):
        return np.random.default_rng(zlib.crc32(self.id.encode()))


def _array(values, dtype):
    return np.asarray(values, np.float32).astype(dtype)


def _without_row_and_column(grad):
    if grad.ndim > 1:
        grad[..., 2, :] = 0
        grad[..., 1] = 0
    return grad


def gradients(rng, shapes, steps):
    """Random gradients of both signs, sizes 1e-4 to 10, single zeros, and now and then an array of nothing else."""
    return [[_gradient(rng, shape) for shape in shapes] for _ in range(steps)]


def _gradient(rng, shape):
    size = 10.0 ** rng.uniform(-4, 1)
    kept = rng.random(shape) > 0.05
    return _array(size * rng.normal(size=shape) * kept * (rng.random() > 0.05), np.float32)


def constant_rate():
    return 0.03


def exponential(rate):
    return ("ExponentialDecay", {"initial_learning_rate": rate, "decay_steps": 10, "decay_rate": 0.5})


def cosine(rate):
    warmup = {"warmup_target": rate, "warmup_steps": 8}
    return ("CosineDecay", {"initial_learning_rate": 0.1 * rate, "decay_steps": 35, "alpha": 0.1, **warmup})


def decay_of(optimizer, amount):
    return {"weight_decay": amount} | ({"adam_weight_decay": 2 * amount} if optimizer == "Muon" else {})


def common_options(optimizer):
    """What the base class offers, each alone."""
    rate = RATES[optimizer]
    average = {"use_ema": True, "ema_momentum": 0.9}
    # Most rules do not care how large gradients are, except through epsilon.
    epsilon = {"epsilon": 1e-2} if "epsilon" in OWN[optimizer][0] else {}
    return {
        "clipnorm": {"clipnorm": 0.5},
        "clipvalue": {"clipvalue": 0.1},
        "global_clipnorm": {"global_clipnorm": 1.0},
        "weight_decay": decay_of(optimizer, 0.5),
        "ema": average,
        "ema_overwrite": average | {"ema_overwrite_frequency": 3},
        "accumulation": {"gradient_accumulation_steps": 2},
        "loss_scale": {"loss_scale_factor": 128.0, **epsilon},
        "exponential_decay": {"learning_rate": exponential(rate)},
        "cosine_decay": {"learning_rate": cosine(rate)},
        "callable_rate": {"learning_rate": constant_rate},
    }


# Structural variants: where a rule takes another branch or has another set of slots.
VARIANTS = {
    "SGD": {"nesterov": {"momentum": 0.9, "nesterov": True}},
    "RMSprop": {"momentum": {"momentum": 0.9}, "centered": {"centered": True}},
    "Adam": {"amsgrad": {"amsgrad": True}},
    "AdamW": {"amsgrad": {"amsgrad": True}, "decay_0": {"weight_decay": 0.0}},
    "Ftrl": {
        "power_0": {"learning_rate_power": 0.0},
        "l1": {"l1_regularization_strength": 0.5},
        "l2": {"l2_regularization_strength": 0.5},
        "shrinkage": {"l2_shrinkage_regularization_strength": 0.5},
        "beta": {"beta": 0.5},
    },
    "ScheduleFreeAdamW": {"warmup": {"warmup_steps": 20}},
    "Adafactor": {"relative_step_off": {"relative_step": False}, "rate_above_its_cap": {"learning_rate": 0.5}},
    "Muon": {
        "nesterov_off": {"nesterov": False},
        "rms_rate_none": {"rms_rate": None},
        "no_decay": {"weight_decay": None, "adam_weight_decay": None},
        "exclude_layers": {"exclude_layers": ["[3]$"]},
    },
}

# Which optimizers a single option runs with in the covering subset.
COVERING = {
    "clipnorm": ("Lion", "Adafactor"),
    "clipvalue": ("Adagrad", "Muon"),
    "global_clipnorm": ("SGD", "Ftrl"),
    "weight_decay": ("Adamax", "Adadelta"),
    "ema": ("Nadam", "Lamb"),
    "ema_overwrite": ("Adam", "ScheduleFreeAdamW"),
    "accumulation": ("RMSprop", "Adafactor", "Lamb"),
    "loss_scale": ("SGD", "AdamW"),
    "exponential_decay": ("Ftrl", "Lion"),
    "cosine_decay": ("Muon", "Adagrad"),
    "callable_rate": ("Adam", "Nadam"),
}
COVERING_VARIANTS = {
    "SGD": ("nesterov",),
    "RMSprop": ("momentum", "centered"),
    "Adam": ("amsgrad",),
    "AdamW": ("amsgrad",),
    "Adafactor": ("rate_above_its_cap",),
    "Muon": ("rms_rate_none", "exclude_layers"),
}


def _row(optimizer, variant, kwargs, covering=False, **rest):
    return Case(f"{optimizer}-{variant}", optimizer, {"learning_rate": RATES[optimizer]} | kwargs, not covering, **rest)


def _plain_rows():
    return [Case(f"{name}-plain", name, {}, full=False) for name in RATES]


def _option_rows():
    return [
        _row(name, option, kwargs, covering=name in COVERING[option])
        for name in RATES
        for option, kwargs in common_options(name).items()
    ]


def _own_rows():
    return [_row(name, "own", OWN[name][0], covering=True) for name in RATES]


def _own_together_rows():
    """The second set of own hyper-parameters together with most common options."""
    common = {"global_clipnorm": 2.0, "weight_decay": 0.5, "loss_scale_factor": 2.0}
    return [
        _row(name, "own-together", common | {"learning_rate": exponential(rate)} | OWN[name][1], covering=True)
        for name, rate in RATES.items()
    ]


def _variant_rows():
    return [
        _row(name, variant, kwargs, covering=variant in COVERING_VARIANTS.get(name, ()))
        for name, variants in VARIANTS.items()
        for variant, kwargs in variants.items()
    ]


def _excluded_rows():
    return [
        _row(name, "decay_excluded", decay_of(name, 0.5), covering=name in ("Adam", "Muon"), undecayed=(0, 4))
        for name in RATES
    ]


def _multiplier_rows():
    rest = {"multipliers": {1: 0.5, 3: 0.1, 5: 3.0}, "differs_from_keras": "Keras has no learning-rate multipliers"}
    kwargs = {"weight_decay": 0.5, "global_clipnorm": 1.0}
    return [
        _row(name, "multipliers", kwargs, covering=name in ("SGD", "Lamb"), **rest)
        for name in ("SGD", "Adam", "Lion", "Lamb", "ScheduleFreeAdamW", "Ftrl")
    ]


def _averaged_accumulation_rows():
    kwargs = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3, "gradient_accumulation_steps": 2}
    reason = "Keras moves and overwrites with the average on every micro-step, fastopt on real updates"
    return [
        _row(name, "ema_accumulation", kwargs, covering=name in ("Adam", "Muon"), differs_from_keras=reason)
        for name in RATES
    ]


def _accumulated_schedule_rows():
    """Schedules count micro-steps; warm-up and bias correction count real updates."""
    options = {"gradient_accumulation_steps": 4, "clipnorm": 1.0, "weight_decay": 0.5}
    own = {"ScheduleFreeAdamW": {"warmup_steps": 6}}
    covering = ("Nadam", "ScheduleFreeAdamW")
    return [
        _row(
            name,
            "accumulated_schedule",
            {"learning_rate": cosine(rate)} | options | own.get(name, {}),
            name in covering,
        )
        for name, rate in RATES.items()
    ]


def _special_rows():
    named = {
        "shapes": ((7, 5), (5, 7), (4, 4), (6,)),
        "names": ("a_kernel", "b_embeddings", "c_head", "d_bias"),
    }
    every_matrix = {"exclude_embeddings": False, "exclude_layers": ["^c_", "head$"]}
    zeros = {
        "empty_row_and_column": True,
        "differs_from_keras": "Keras in float32 gives NaN where a row and a column of zeros meet",
    }
    return [
        _row("Muon", "embedding_by_name", {}, covering=True, **named),
        _row("Muon", "embedding_as_matrix", every_matrix, covering=True, **named),
        _row("Muon", "wide", {}, shapes=((90, 140), (140, 90)), steps=10),
        _row("Adafactor", "zero_row_and_column", {}, covering=True, **zeros),
    ]


def _big_rows():
    covering = {"Adam": {"weight_decay": 0.5}, "Lamb": {"global_clipnorm": 1.0}}
    return [
        _row(name, "big", covering.get(name, {}), covering=name in covering, shapes=(BIG, (7, 5)), steps=3)
        for name in RATES
    ]


CASES = [
    *_plain_rows(),
    *_option_rows(),
    *_own_rows(),
    *_own_together_rows(),
    *_variant_rows(),
    *_excluded_rows(),
    *_multiplier_rows(),
    *_averaged_accumulation_rows(),
    *_accumulated_schedule_rows(),
    *_special_rows(),
    *_big_rows(),
]
COMPARABLE_WITH_KERAS = [case for case in CASES if not case.differs_from_keras]


def over(cases):
    """Runs a test once per row; those of one optimizer in one process, which compiles and remembers what they share."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id, marks=_marks(case)) for case in cases])


def _marks(case):
    return [pytest.mark.xdist_group(case.optimizer), *[pytest.mark.full] * case.full]


@dataclass(frozen=True, eq=False)
class Golden:
    """What Keras 3.15.1 computed in float32: parameters and `iterations` after each step, the slots at the end."""

    id: str
    optimizer: str
    kwargs: dict
    params: list
    grads: list
    steps: list
    iterations: list
    slots: dict


def golden():
    """All recorded trajectories."""
    recorded = json.loads((Path(__file__).parent / "golden" / "keras3.json").read_text())
    params = _arrays(recorded["params"])
    grads = [_arrays(step) for step in recorded["grads"]]
    return [_golden(number, case, params, grads) for number, case in enumerate(recorded["cases"])]


def _golden(number, case, params, grads):
    kwargs = {name: _schedule(value) if isinstance(value, str) else value for name, value in case["kwargs"].items()}
    steps = [_arrays(step) for step in case["steps"]]
    iterations = [public for _, public in case["iterations"]]
    id = f"{case['optimizer']}-{number}"
    return Golden(id, case["optimizer"], kwargs, params, grads, steps, iterations, _golden_slots(case))


def _golden_slots(case):
    """{slot name: [array per parameter]} from names like "p0_momentum"; counters and rates have other names."""
    slots = {}
    for name, value in zip(case["state_names"], case["state"], strict=True):
        found = re.fullmatch(r"p\d+_(\w+)", name)
        if found:
            slots.setdefault(found[1], []).append(np.array(value, np.float32))
    return slots


def _schedule(text):
    """ "InverseTimeDecay(0.1,1,0.5)" as (name, arguments)."""
    call = ast.parse(text, mode="eval").body
    names = ("initial_learning_rate", "decay_steps", "decay_rate")
    positional = zip(names, map(ast.literal_eval, call.args), strict=True)
    return call.func.id, dict(positional) | {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def _arrays(lists):
    return [np.array(values, np.float32) for values in lists]
