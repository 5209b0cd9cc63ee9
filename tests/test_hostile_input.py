"""Bad calls, one table: each is refused with an error that says why, and leaves no trace."""

import copy
import functools
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import children
import numba
import numpy as np
import pytest
from fastopt.kernels.cpu.engines import Elementwise
from numpy.lib.stride_tricks import as_strided
from rows import rows as folded

import fastopt
from fastopt import optimizers, registry, schedules
from fastopt.device.host import Host

SHAPES = {"w": (3, 4), "b": (4,), "s": ()}
W, B, S = range(3)  # their positions in a list
F32 = np.float32


# -- scenes: what a bad call meets -------------------------------------------------------------------------------------


class Scene:
    """An optimizer with parameters and gradients, the same numbers in every instance."""

    def __init__(self, optimizer, container=None, *, dtype="float32", steps=1, overrides=None):
        rng = np.random.default_rng(7)
        drawn = [{name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()} for _ in range(2)]
        self.container = container or (lambda arrays: list(arrays.values()))
        self.params, self.grads = map(self.container, drawn)
        self.optimizer = optimizer
        self.overrides = overrides
        self._guarded = []
        for _ in range(steps):
            self.step()

    def step(self):
        """A correct step, after a correct build if there was none."""
        if not self.optimizer.built:
            self.optimizer.build(self.params, overrides=self.overrides)
        self.optimizer.apply(self.grads)

    def apply(self, changed=None, **options):
        """A step with some of the gradients replaced: {index or key: gradient}."""
        grads = self.grads.copy()
        for key, grad in (changed or {}).items():
            grads[key] = self.guard(grad)
        self.optimizer.apply(self.guard(grads), **options)

    def build(self, array, **options):
        """Build with one of the parameters replaced."""
        params = [*self.params]
        params[W] = self.guard(array)
        self.optimizer.build(params, **options)

    def load(self, changed, **options):
        """Load the present state with some entries replaced, or left out where the new value is `ABSENT`."""
        state = {**self.optimizer.state_dict(), **changed}
        given = {key: value for key, value in state.items() if value is not ABSENT}
        self.optimizer.load_state_dict(self.guard(given), **options)

    def guard(self, value):
        """Have `trace` include what is handed to a bad call."""
        self._guarded.append((value, frozen(value)))
        return value

    def guarded_values_changed(self):
        return [value for value, before in self._guarded if frozen(value) != before]

    def trace(self):
        """All that a refused call must leave as it is."""
        optimizer = self.optimizer
        trace = {"params": frozen(self.params), "grads": frozen(self.grads), "built": optimizer.built}
        trace |= {"iterations": optimizer.iterations, "known": registry.names()}
        trace["threads"] = fastopt.get_num_threads()
        if optimizer.built:
            trace |= {"slots": frozen(optimizer.slots), "state": frozen(optimizer.state_dict())}
        return trace


ABSENT = object()


def frozen(value):
    """The bytes of all arrays in a structure."""
    if isinstance(value, fastopt.FlatBuffer):
        return frozen(value.flat)
    if isinstance(value, dict):
        return {key: frozen(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(child) for child in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.strides, value.tobytes()
    return value if isinstance(value, (int, float, str)) else type(value)


class Named(NamedTuple):
    """The arrays by name."""

    w: np.ndarray
    b: np.ndarray
    s: np.ndarray


class Dial:
    """A callable hyper-parameter that a row can break and mend: it returns `answer`, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, *arguments):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @contextmanager
    def turned_to(self, answer):
        good, self.answer = self.answer, answer
        try:
            yield
        finally:
            self.answer = good


class DialSchedule(Dial, schedules.LearningRateSchedule):
    """The same as a schedule."""


def training(**options):
    return Scene(fastopt.Adam(**options))


def unbuilt(**options):
    return Scene(fastopt.Adam(**options), steps=0)


def in_a_dict():
    return Scene(fastopt.Adam(), lambda arrays: {"layer": {"w": arrays["w"]}, "b": arrays["b"], "s": arrays["s"]})


def in_a_flat_dict():
    return Scene(fastopt.Adam(), dict)


def with_one_frozen():
    return Scene(fastopt.Adam(), overrides={"0": {"trainable": False}})


def packed():
    return Scene(fastopt.Adam(), fastopt.pack)


def averaging():
    return training(use_ema=True)


def accumulating():
    return Scene(fastopt.Adam(gradient_accumulation_steps=2), steps=3)


def scheduled():
    return training(learning_rate=schedules.ExponentialDecay(0.1, 10, 0.5))


def loss_scaled():
    return Scene(fastopt.LossScaleOptimizer(fastopt.Adam(), initial_scale=8.0))


def with_dial(make, answer, dial=Dial):
    """A scene of an optimizer with one dial, which is `scene.dial`."""

    def scene():
        turning = dial(answer)
        made = Scene(make(turning))
        made.dial = turning
        return made

    return scene


def raising(dtype="float32", **options):
    return lambda: Scene(fastopt.Adam(nonfinite="raise", **options), dtype=dtype)


# -- pieces of bad calls -----------------------------------------------------------------------------------------------


def step_with_dial_at(answer):
    def call(scene):
        with scene.dial.turned_to(answer):
            scene.step()

    return call


def step_with_attribute(name, value):
    def call(scene):
        good = getattr(scene.optimizer, name)
        setattr(scene.optimizer, name, value)
        try:
            scene.step()
        finally:
            setattr(scene.optimizer, name, good)

    return call


def zeros(*shape, dtype=F32):
    return np.zeros(shape or SHAPES["w"], dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def misaligned(*shape):
    raw = np.zeros(int(np.prod(shape)) * 4 + 1, np.uint8)
    return raw[1:].view(F32).reshape(shape)


def overlapping_itself():
    return as_strided(np.zeros(6, F32), (3, 4), (4, 4))


def shifted(array, by=1):
    """An array of the same shape that starts a few elements after the given one, within its memory."""
    flat = array.reshape(-1)
    return as_strided(flat[by:], array.shape, array.strides)


def bad_element(value, dtype="float32"):
    grad = np.ones(SHAPES["b"], dtype)
    grad[2] = value
    return grad


def tensor(*shape):
    torch = pytest.importorskip("torch")
    return torch.zeros(shape)


class CudaArray:
    """What fastopt sees of an array on a GPU."""

    dtype, shape, ndim, size = np.dtype(F32), SHAPES["w"], 2, 12
    __cuda_array_interface__ = {"shape": SHAPES["w"], "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012


def override(values, pattern="^0$"):
    return lambda scene: scene.optimizer.build(scene.params, overrides={pattern: values})


def build_with_strange_exclusion(scene):
    scene.optimizer.exclude_from_weight_decay(var_list=[zeros()])
    try:
        scene.optimizer.build(scene.params)
    finally:
        scene.optimizer.exclude_from_weight_decay()


def build_sharing(*slices):
    def call(scene):
        owner = scene.guard(np.zeros(10, F32))
        scene.optimizer.build([owner[part] for part in slices])

    return call


def apply_while_evaluating(scene):
    with scene.optimizer.evaluation_weights():
        scene.step()


def nested_evaluation(scene):
    with scene.optimizer.evaluation_weights(), scene.optimizer.evaluation_weights():
        pass


def evaluate(scene):
    with scene.optimizer.evaluation_weights():
        pass


def apply_to(*chosen):
    """A step on some of the parameters: functions from the scene's list to arrays."""

    def call(scene):
        arrays = [choose(scene.params) for choose in chosen]
        scene.optimizer.apply([np.zeros_like(array) for array in arrays], arrays)

    return call


class Scalars(NamedTuple):
    """Of the rules below."""

    learning_rate: float
    momentum: float


def heavy_ball(param, grad, slots, s):
    (velocity,) = slots
    velocity = s.momentum * velocity + grad
    return param - s.learning_rate * velocity, (velocity,)


TWO_PHASES = {
    "rule": lambda p, g, v, s: ((g * g,), v),
    "between": lambda sums, n, s: sums[0],
    "second": lambda p, g, v, factor, s: p - factor * g,
}
GOOD_RULE = {
    "name": "NeverRegistered",
    "rule": heavy_ball,
    "scalars_type": Scalars,
    "slots": {"velocity": 0.0},
    "defaults": {"learning_rate": 0.01, "momentum": 0.9},
}


def register(**changed):
    return lambda scene: fastopt.register_rule(**(GOOD_RULE | changed))


def make(cls, *args, **kwargs):
    """A bad constructor call, while another optimizer is training."""
    return lambda scene: cls(*args, **kwargs)


def wrap(inner=None, **options):
    return lambda scene: fastopt.LossScaleOptimizer(fastopt.SGD() if inner is None else inner, **options)


def set_to(name, value):
    return lambda scene: setattr(scene.optimizer, name, value)


def set_bounds_crossed(scene):
    scene.optimizer.maximum_scale = 2.0
    scene.optimizer.minimum_scale = 4.0


class Ball:
    """Rules that are no plain functions."""

    def rule(self, param, grad, slots, s):
        return heavy_ball(param, grad, slots, s)

    __call__ = rule


# -- the table ---------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One bad call: what it meets, the call, the error's type and a pattern that its message must contain."""

    id: str
    scene: Callable
    call: Callable
    error: type | tuple
    message: str


def rows(prefix, scene, *table):
    return [Row(f"{prefix}-{id}", scene, *rest) for id, *rest in table]


A = fastopt.Adam
EXCLUDES = "exclude_from_weight_decay"
NAN, INF = float("nan"), float("inf")

CONSTRUCTORS = rows(
    "make",
    training,
    ("lr", make(A, lr=0.1), TypeError, r"'lr'.*learning_rate.*fastopt\.compat"),
    ("decay", make(fastopt.SGD, decay=1e-4), TypeError, r"'decay'.*fastopt\.compat"),
    ("unknown_argument", make(fastopt.SGD, momentom=0.9), TypeError, "SGD.*'momentom'.* momentum"),
    ("torchs_betas", make(A, betas=(0.9, 0.99)), TypeError, "'betas': it is called beta_1 and beta_2$"),
    ("torchs_eps", make(A, eps=1e-3), TypeError, "'eps': it is called epsilon$"),
    ("optaxs_b1", make(fastopt.Lion, b1=0.9), TypeError, "Lion.*'b1': it is called beta_1$"),
    ("torchs_alpha", make(fastopt.RMSprop, alpha=0.9), TypeError, "'alpha': it is called rho$"),
    ("betas_elsewhere", make(fastopt.SGD, betas=(0.9, 0.99)), TypeError, "'betas': the valid ones are .*momentum"),
    ("our_torchs_clip_norm", make(A, clip_norm=1.0), TypeError, "'clip_norm': it is called global_clipnorm$"),
    ("argument_twice", lambda s: A(0.1, learning_rate=0.1), TypeError, "Adam.*multiple values.*learning_rate"),
    ("too_many_arguments", make(A, *range(30)), TypeError, "Adam.*too many positional"),
    ("abstract", make(fastopt.Optimizer), TypeError, "abstract"),
    ("two_clips", make(A, clipnorm=1.0, clipvalue=1.0), ValueError, "clipnorm and clipvalue"),
    ("two_norms", make(A, clipnorm=1.0, global_clipnorm=1.0), ValueError, "clipnorm and global_clipnorm"),
    ("three_clips", make(A, clipnorm=1.0, clipvalue=1.0, global_clipnorm=1.0), ValueError, "choose one"),
    ("clipnorm_text", make(A, clipnorm="1"), TypeError, "clipnorm.*str"),
    ("clipnorm_bool", make(A, clipnorm=True), TypeError, "clipnorm.*bool"),
    ("clipvalue_nan", make(A, clipvalue=NAN), ValueError, "clipvalue.*nan"),
    ("global_clipnorm_inf", make(A, global_clipnorm=INF), ValueError, "global_clipnorm.*inf"),
    ("rate_nan", make(A, NAN), ValueError, "learning_rate.*finite.*nan"),
    ("rate_inf", make(A, -INF), ValueError, "learning_rate.*finite.*inf"),
    ("rate_text", make(A, "0.1"), TypeError, "learning_rate.*str"),
    ("rate_bool", make(A, True), TypeError, "learning_rate.*bool"),
    ("rate_none", make(A, None), TypeError, "learning_rate.*NoneType"),
    ("rate_complex", make(A, 1j), TypeError, "learning_rate.*complex"),
    ("rate_array", make(A, np.ones(2)), TypeError, "learning_rate.*ndarray"),
    ("rate_class", make(A, schedules.CosineDecay), TypeError, "class CosineDecay.*instance"),
    ("beta_1_one", make(A, beta_1=1.0), ValueError, r"beta_1.*\[0, 1\).*1"),
    ("beta_2_negative", make(A, beta_2=-0.1), ValueError, "beta_2.*-0.1"),
    ("beta_1_nan", make(fastopt.Lamb, beta_1=NAN), ValueError, "beta_1.*nan"),
    ("beta_1_text", make(fastopt.Nadam, beta_1="0.9"), TypeError, "beta_1.*str"),
    ("beta_1_none", make(fastopt.Adamax, beta_1=None), TypeError, "beta_1.*NoneType"),
    ("lion_beta_1_zero", make(fastopt.Lion, beta_1=0.0), ValueError, r"beta_1.*\(0, 1\]"),
    (
        "schedule_free_beta_1_zero",
        make(fastopt.ScheduleFreeAdamW, beta_1=0),
        ValueError,
        r"beta_1.*\[1e-08, 1\), got 0",
    ),
    ("warmup_negative", make(fastopt.ScheduleFreeAdamW, warmup_steps=-1), ValueError, "warmup_steps.*-1"),
    ("epsilon_negative", make(A, epsilon=-1e-7), ValueError, "epsilon.*-1e-07"),
    ("epsilon_nan", make(fastopt.Adadelta, epsilon=NAN), ValueError, "epsilon.*nan"),
    ("epsilon_none", make(A, epsilon=None), TypeError, "epsilon.*NoneType"),
    ("momentum_above_one", make(fastopt.SGD, momentum=1.5), ValueError, "momentum.*1.5"),
    ("rho_negative", make(fastopt.RMSprop, rho=-0.5), ValueError, "rho.*-0.5"),
    ("ftrl_power_positive", make(fastopt.Ftrl, learning_rate_power=0.5), ValueError, "learning_rate_power.*0.5"),
    ("ftrl_l1_negative", make(fastopt.Ftrl, l1_regularization_strength=-1), ValueError, "l1_regularization.*-1"),
    ("ftrl_start_negative", make(fastopt.Ftrl, initial_accumulator_value=-1.0), ValueError, "initial_accumulator"),
    ("adafactor_threshold_zero", make(fastopt.Adafactor, clip_threshold=0), ValueError, "clip_threshold.*0"),
    ("adafactor_decay_positive", make(fastopt.Adafactor, beta_2_decay=0.5), ValueError, "beta_2_decay.*0.5"),
    ("muon_no_steps", make(fastopt.Muon, ns_steps=0), ValueError, "ns_steps.*0"),
    ("muon_layers_text", make(fastopt.Muon, exclude_layers="head"), TypeError, "exclude_layers.*list.*'head'"),
    ("muon_layers_pattern", make(fastopt.Muon, exclude_layers=["("]), ValueError, r"exclude_layers.*'\('"),
    ("adamw_without_decay", make(fastopt.AdamW, weight_decay=None), ValueError, "weight_decay"),
    ("decay_negative", make(A, weight_decay=-0.1), ValueError, "weight_decay.*-0.1"),
    ("decay_nan", make(fastopt.AdamW, 0.1, NAN), ValueError, "weight_decay.*nan"),
    ("decay_bool", make(A, weight_decay=True), TypeError, "weight_decay.*bool"),
    ("accumulate_one", make(A, gradient_accumulation_steps=1), ValueError, "gradient_accumulation_steps.*1"),
    ("accumulate_negative", make(A, gradient_accumulation_steps=-1), ValueError, "gradient_accumulation_steps.*-1"),
    ("accumulate_fraction", make(A, gradient_accumulation_steps=1.5), TypeError, "gradient_accumulation_steps.*1.5"),
    ("accumulate_text", make(A, gradient_accumulation_steps="2"), TypeError, "gradient_accumulation_steps.*'2'"),
    ("accumulate_bool", make(A, gradient_accumulation_steps=True), TypeError, "gradient_accumulation_steps.*True"),
    ("ema_number", make(A, use_ema=1), TypeError, "use_ema.*1"),
    ("ema_momentum_high", make(A, use_ema=True, ema_momentum=1.5), ValueError, "ema_momentum.*1.5"),
    ("ema_momentum_nan", make(A, use_ema=True, ema_momentum=NAN), ValueError, "ema_momentum.*nan"),
    ("ema_momentum_text", make(A, use_ema=True, ema_momentum="0.9"), TypeError, "ema_momentum.*str"),
    ("ema_overwrite_zero", make(A, use_ema=True, ema_overwrite_frequency=0), ValueError, "ema_overwrite_frequency"),
    ("ema_overwrite_part", make(A, use_ema=True, ema_overwrite_frequency=1.5), TypeError, "ema_overwrite_frequency"),
    ("loss_scale_zero", make(A, loss_scale_factor=0.0), ValueError, "loss_scale_factor.*0"),
    ("loss_scale_negative", make(A, loss_scale_factor=-2.0), ValueError, "loss_scale_factor.*-2"),
    ("loss_scale_text", make(A, loss_scale_factor="8"), TypeError, "loss_scale_factor.*str"),
    ("nonfinite_unknown", make(A, nonfinite="ignore"), ValueError, "nonfinite.*propagate.*skip.*raise.*ignore"),
    ("nonfinite_none", make(A, nonfinite=None), ValueError, "nonfinite.*None"),
    ("name_number", make(A, name=5), TypeError, "name.*int"),
)

PARAMETERS = rows(
    "build",
    unbuilt,
    ("int", lambda s: s.build(zeros(dtype=np.int64)), TypeError, "parameter 0.*int64"),
    ("bool", lambda s: s.build(zeros(dtype=bool)), TypeError, "parameter 0.*bool"),
    ("complex", lambda s: s.build(zeros(dtype=np.complex64)), TypeError, "parameter 0.*complex64"),
    ("object", lambda s: s.build(zeros(dtype=object)), TypeError, "parameter 0.*object"),
    ("text", lambda s: s.build(np.array(["1", "2"])), TypeError, "parameter 0.*<U1"),
    ("structured", lambda s: s.build(np.zeros(3, [("a", F32)])), TypeError, "parameter 0.*'a'"),
    ("half", lambda s: s.build(zeros(dtype=">f2")), TypeError, "parameter 0.*float16.*got >f2"),
    ("uint16", lambda s: s.build(zeros(dtype=np.uint16)), TypeError, "parameter 0.*say .*bfloat16.* in an override"),
    ("list", lambda s: s.build([[1.0, 2.0]]), TypeError, "parameter 0/0/0.*ndarray.*float"),
    ("number", lambda s: s.build(1.0), TypeError, "parameter 0.*ndarray.*float"),
    ("scalar", lambda s: s.build(F32(1.0)), TypeError, "parameter 0.*float32.*0-d"),
    ("none", lambda s: s.build(None), TypeError, "parameter 0.*NoneType"),
    ("masked", lambda s: s.build(np.ma.masked_array(zeros())), TypeError, r"parameter 0.*MaskedArray.*\.data"),
    ("tensor", lambda s: s.build(tensor(3, 4)), TypeError, r"parameter 0.*Tensor.*numpy\(\)"),
    ("cuda", lambda s: s.build(CudaArray()), TypeError, "parameter 0.*CUDA"),
    ("memoryview", lambda s: s.build(memoryview(zeros())), TypeError, "parameter 0.*memoryview"),
    ("read_only", lambda s: s.build(read_only(zeros())), ValueError, "parameter 0.*read-only"),
    ("broadcast", lambda s: s.build(np.broadcast_to(F32(1), (3, 4))), ValueError, "parameter 0"),
    ("gapped", lambda s: s.build(zeros(6)[::2]), ValueError, "parameter 0.*gaps.*copy"),
    ("columns", lambda s: s.build(zeros(3, 8)[:, :4]), ValueError, "parameter 0.*gaps"),
    ("backwards", lambda s: s.build(zeros(6)[::-1]), ValueError, "parameter 0.*backwards"),
    ("backwards_axis", lambda s: s.build(zeros(3, 4)[:, ::-1]), ValueError, "parameter 0.*backwards"),
    ("overlaps_itself", lambda s: s.build(overlapping_itself()), ValueError, "parameter 0.*overlaps itself"),
    ("one_element_many_times", lambda s: s.build(as_strided(zeros(1), (5,), (0,))), ValueError, "overlaps itself"),
    ("byte_order", lambda s: s.build(zeros(dtype=">f4")), ValueError, "parameter 0.*native byte order"),
    ("misaligned", lambda s: s.build(misaligned(3, 4)), ValueError, "parameter 0.*aligned.*copy"),
    ("shared_twice", lambda s: s.optimizer.build([s.params[W], s.params[W]]), ValueError, "0 and 1 share memory"),
    ("overlapping_pair", build_sharing(slice(0, 6), slice(5, 10)), ValueError, "0 and 1 share memory"),
    ("one_inside_another", build_sharing(slice(0, 10), slice(2, 3)), ValueError, "0 and 1 share memory"),
    ("view_of_another", lambda s: s.optimizer.build([s.params[W], s.params[W].T]), ValueError, "share memory"),
    ("one_path_twice", lambda s: s.optimizer.build({"a/b": zeros(), "a": {"b": zeros()}}), ValueError, "'a/b'"),
    ("key_as_text_twice", lambda s: s.optimizer.build({1: zeros(), "1": zeros()}), ValueError, "'1'"),
    ("generator", lambda s: s.optimizer.build(p for p in s.params), TypeError, "params.*generator"),
    ("set", lambda s: s.optimizer.build({1.0}), TypeError, "params.*set"),
    ("nothing", lambda s: s.optimizer.build(None), TypeError, "params.*NoneType"),
    ("name", lambda s: s.optimizer.build("w"), TypeError, "params.*str"),
    ("strange_exclusion", build_with_strange_exclusion, ValueError, r"var_list\[0\]"),
    ("first_step_with_bad_params", lambda s: s.optimizer.apply(s.grads, [zeros(dtype=int)]), TypeError, "parameter 0"),
)

OVERRIDES = rows(
    "override",
    unbuilt,
    ("no_mapping", lambda s: s.optimizer.build(s.params, overrides=["0"]), TypeError, "overrides.*list"),
    ("bad_pattern", override({"trainable": False}, "("), ValueError, r"overrides.*'\('"),
    ("pattern_number", override({"trainable": False}, 0), TypeError, "overrides.*int"),
    ("no_settings", override(0.1), TypeError, "'\\^0\\$'.*dict.*float"),
    ("unknown_key", override({"momentum": 0.5}), ValueError, "'momentum'.*learning_rate_multiplier"),
    ("misspelt_key", override({"learning_rate": 0.5}), ValueError, "'learning_rate'.*learning_rate_multiplier"),
    ("no_match", override({"trainable": False}, "kernel"), ValueError, "'kernel' matches no.*'0', '1', '2'"),
    ("multiplier_negative", override({"learning_rate_multiplier": -1.0}), ValueError, "learning_rate_multiplier.*-1"),
    ("multiplier_nan", override({"learning_rate_multiplier": NAN}), ValueError, "learning_rate_multiplier.*nan"),
    ("multiplier_text", override({"learning_rate_multiplier": "1"}), TypeError, "learning_rate_multiplier.*str"),
    ("multiplier_none", override({"learning_rate_multiplier": None}), TypeError, "learning_rate_multiplier.*None"),
    ("decay_negative", override({"weight_decay": -0.1}), ValueError, "weight_decay.*-0.1"),
    ("trainable_number", override({"trainable": 0}), TypeError, "trainable.*bool.*0"),
    (
        "two_for_one_key",
        lambda s: s.optimizer.build(s.params, {"0": {"weight_decay": 0.0}, "0$": {"weight_decay": 0.1}}),
        ValueError,
        "parameter 0.*two overrides.*weight_decay",
    ),
)

GRADIENTS = rows(
    "apply",
    training,
    ("int", lambda s: s.apply({W: zeros(dtype=np.int32)}), TypeError, "gradient 0.*int32"),
    ("bool", lambda s: s.apply({W: zeros(dtype=bool)}), TypeError, "gradient 0.*bool"),
    ("complex", lambda s: s.apply({B: zeros(4, dtype=np.complex128)}), TypeError, "gradient 1.*complex128"),
    ("half", lambda s: s.apply({S: zeros(dtype=">f2")}), TypeError, "gradient 2.*float16.*got >f2"),
    ("object", lambda s: s.apply({W: zeros(dtype=object)}), TypeError, "gradient 0.*object"),
    ("list", lambda s: s.apply({B: [0.0, 0.0, 0.0, 0.0]}), (TypeError, ValueError), "gradient"),
    ("number", lambda s: s.apply({S: 1.0}), TypeError, "gradient 2.*float"),
    ("masked", lambda s: s.apply({W: np.ma.masked_array(zeros())}), TypeError, "gradient 0.*MaskedArray"),
    ("tensor_in_graph", lambda s: s.apply({W: tensor(3, 4).requires_grad_()}), TypeError, r"gradient 0.*detach\(\)"),
    ("tensor_bfloat16", lambda s: s.apply({W: tensor(3, 4).bfloat16()}), TypeError, "gradient 0.*BFloat16"),
    ("tensor_of_ints", lambda s: s.apply({W: tensor(3, 4).int()}), TypeError, "gradient 0.*int32"),
    ("tensor_meta", lambda s: s.apply({W: tensor(3, 4).to("meta")}), TypeError, "gradient 0.*meta"),
    ("cuda", lambda s: s.apply({W: CudaArray()}), TypeError, "gradient 0.*CUDA"),
    ("byte_order", lambda s: s.apply({W: zeros(dtype=">f8")}), TypeError, "gradient 0.*native byte order"),
    ("misaligned", lambda s: s.apply({W: misaligned(3, 4)}), ValueError, "gradient 0.*aligned"),
    ("transposed", lambda s: s.apply({W: zeros(4, 3)}), ValueError, r"gradient 0.*\(3, 4\).*\(4, 3\)"),
    ("more_axes", lambda s: s.apply({W: zeros(1, 3, 4)}), ValueError, r"gradient 0.*\(1, 3, 4\)"),
    ("as_many_elements", lambda s: s.apply({W: zeros(12)}), ValueError, r"gradient 0.*\(12,\)"),
    ("broadcastable", lambda s: s.apply({B: zeros(1)}), ValueError, r"gradient 1.*\(4,\).*\(1,\)"),
    ("one_for_0d", lambda s: s.apply({S: zeros(1)}), ValueError, r"gradient 2.*\(\).*\(1,\)"),
    ("empty_for_full", lambda s: s.apply({W: zeros(0, 4)}), ValueError, r"gradient 0.*\(0, 4\)"),
    ("too_few", lambda s: s.optimizer.apply(s.grads[:2]), ValueError, "3 gradients.*got 2"),
    ("too_many", lambda s: s.optimizer.apply([*s.grads, zeros()]), ValueError, "3 gradients.*got 4"),
    ("no_list", lambda s: s.optimizer.apply(s.grads[W]), ValueError, "3 gradients.*got 1"),
    ("empty", lambda s: s.optimizer.apply([]), ValueError, "3 gradients.*got 0"),
    ("none", lambda s: s.optimizer.apply(None), (TypeError, ValueError), "grad"),
    ("all_none", lambda s: s.optimizer.apply([None] * 3), ValueError, "all.*None"),
    ("generator", lambda s: s.optimizer.apply(g for g in s.grads), (TypeError, ValueError), "grad"),
    ("a_dict_for_a_list", lambda s: s.optimizer.apply(dict(zip("wbs", s.grads, strict=True))), ValueError, "missing"),
    ("deeper", lambda s: s.optimizer.apply([s.grads[:2]]), ValueError, "structure.*'2'.*'0/1'"),
    ("deeper_as_many", lambda s: s.optimizer.apply([s.grads[:2], s.grads[2]]), ValueError, "structure.*'2'.*'0/1'"),
    ("named", lambda s: s.optimizer.apply(Named(*s.grads)), ValueError, "structure.*'0'.*'w'"),
    ("part_of_its_parameter", lambda s: s.apply({B: shifted(s.params[B], 1)[:4]}), ValueError, "overlaps"),
    ("transposed_parameter", lambda s: s.apply({W: s.params[W].reshape(4, 3).T}), ValueError, "gradient 0.*overlaps"),
    ("other_parameter", lambda s: s.apply({B: s.params[W][1]}), ValueError, "gradient 1.*overlaps"),
    ("slot", lambda s: s.apply({W: s.optimizer.slots["momentum"][W]}), ValueError, "gradient 0.*overlaps"),
    ("part_of_a_slot", lambda s: s.apply({B: s.optimizer.slots["velocity"][W][2]}), ValueError, "overlaps"),
    ("other_dtype_in_slot", lambda s: s.apply({B: wide_view(s.optimizer)}), ValueError, "gradient 1.*overlaps"),
    ("zeroed_parameter", lambda s: s.apply({W: s.params[W]}, zero_grads=True), ValueError, "gradient 0.*zero_grads"),
    ("zeroed_read_only", lambda s: s.apply({W: read_only(zeros())}, zero_grads=True), ValueError, "0.*read-only"),
    ("zeroed_scalar", lambda s: s.apply({S: F32(1)}, zero_grads=True), TypeError, "gradient 2.*0-d"),
    ("unknown_parameter", apply_to(lambda p: zeros()), ValueError, "not built with"),
    ("equal_parameter", apply_to(lambda p: p[B], lambda p: p[W].copy()), ValueError, "not built with"),
    ("view_of_parameter", apply_to(lambda p: p[W][:]), ValueError, "not built with"),
    ("parameter_twice", apply_to(lambda p: p[B], lambda p: p[B]), ValueError, "1 is given twice"),
    ("subset_lengths", lambda s: s.optimizer.apply(s.grads[:2], s.params[:1]), ValueError, "1 gradients.*got 2"),
    ("subset_all_none", lambda s: s.optimizer.apply([None], s.params[:1]), ValueError, "None"),
    ("subset_bad_dtype", lambda s: s.optimizer.apply([zeros(4, dtype=int)], [s.params[B]]), TypeError, "gradient 1"),
    ("pairs_none", lambda s: s.optimizer.apply_gradients(None), TypeError, "NoneType"),
    ("pairs_of_one", lambda s: s.optimizer.apply_gradients([(g,) for g in s.grads]), TypeError, "pairs"),
    ("pairs_of_three", lambda s: s.optimizer.apply_gradients([(1, 2, 3)]), TypeError, "pairs"),
    ("pairs_flat", lambda s: s.optimizer.apply_gradients(s.grads), TypeError, "pairs"),
    ("pair_unknown", lambda s: s.optimizer.apply_gradients([(zeros(), zeros())]), ValueError, "not built with"),
    ("pair_none", lambda s: s.optimizer.apply_gradients([(s.grads[W], None)]), ValueError, "not built with"),
    ("pair_swapped", lambda s: s.optimizer.apply_gradients(zip(s.params, s.grads, strict=True)), ValueError, "not b"),
    ("built_already", lambda s: s.optimizer.build(s.params), RuntimeError, "built already"),
    ("evaluate_without_average", evaluate, RuntimeError, "use_ema"),
)


FROZEN = rows(
    "frozen",
    with_one_frozen,
    ("zeroed_read_only", lambda s: s.apply({W: read_only(zeros())}, zero_grads=True), ValueError, "0.*read-only"),
    ("zeroed_itself", lambda s: s.apply({W: s.params[W]}, zero_grads=True), ValueError, "gradient 0"),
    ("zeroed_other", lambda s: s.apply({W: s.params[B][:, None]}, zero_grads=True), ValueError, "gradient 0"),
    (
        "zeroed_slot",
        lambda s: s.apply({W: s.optimizer.slots["velocity"][B]}, zero_grads=True),
        ValueError,
        "gradient 0",
    ),
    ("all_none_but_frozen", lambda s: s.optimizer.apply([s.grads[W], None, None]), ValueError, "None"),
)


def wide_view(optimizer):
    """Float64 numbers in the memory of a float32 slot."""
    return optimizer.slots["momentum"][W].reshape(-1)[:8].view(np.float64)


STRUCTURES = [
    *rows(
        "structure",
        in_a_dict,
        ("missing_key", lambda s: s.optimizer.apply({"b": s.grads["b"], "s": s.grads["s"]}), ValueError, "'layer/w'"),
        ("extra_key", lambda s: s.apply({"c": zeros()}), ValueError, "unexpected.*'c'"),
        ("renamed_key", lambda s: s.apply({"layer": {"kernel": zeros()}}), ValueError, "'layer/w'.*'layer/kernel'"),
        ("flatter", lambda s: s.apply({"layer": zeros()}), ValueError, "'layer/w'.*'layer'"),
        ("key_none", lambda s: s.apply({"layer": None}), ValueError, "'layer/w'"),
        ("all_none", lambda s: s.apply({"layer": {"w": None}, "b": None, "s": None}), ValueError, "all.*None"),
        ("bad_leaf", lambda s: s.apply({"layer": {"w": zeros(dtype=int)}}), TypeError, "gradient layer/w.*int"),
    ),
    *rows(
        "flat_dict",
        in_a_flat_dict,
        ("deeper", lambda s: s.apply({"b": [zeros(4)]}), ValueError, "'b'.*'b/0'"),
        ("shifted", lambda s: s.apply({"w": [], "b": [zeros(3, 4), zeros(4)]}), ValueError, "'w'.*'b/0'"),
        ("bad_leaf", lambda s: s.apply({"b": zeros(4, dtype=int)}), TypeError, "gradient b.*int"),
    ),
    *rows(
        "packed",
        packed,
        ("flat_too_small", lambda s: s.optimizer.apply(zeros(19)), ValueError, "flat gradient.*48.*19"),
        ("flat_too_large", lambda s: s.optimizer.apply(zeros(49)), ValueError, "flat gradient.*48.*49"),
        ("flat_int", lambda s: s.optimizer.apply(zeros(48, dtype=int)), TypeError, "gradient w.*int"),
        ("flat_masked", lambda s: s.optimizer.apply(np.ma.masked_array(zeros(48))), TypeError, "MaskedArray"),
        ("flat_misaligned", lambda s: s.optimizer.apply(misaligned(48)), ValueError, "gradient w.*aligned"),
        ("flat_columns", lambda s: s.optimizer.apply(zeros(48, 1)), ValueError, "3 gradients.*got 1"),
        ("flat_shifted", lambda s: s.optimizer.apply(shifted(s.params.flat)), ValueError, "overlaps"),
        ("other_layout", lambda s: s.optimizer.apply(fastopt.pack([zeros(2), zeros(2)])), ValueError, "3 gradients"),
        ("other_names", lambda s: s.optimizer.apply(fastopt.pack({"a": zeros()}).views), ValueError, "unexpected.*'a'"),
    ),
]

AVERAGES = [
    *rows(
        "averaging",
        averaging,
        ("apply_while_evaluating", apply_while_evaluating, RuntimeError, "evaluation_weights"),
        ("nested", nested_evaluation, RuntimeError, "nest"),
        ("gradient_is_average", lambda s: s.apply({W: s.optimizer.slots["average"][W]}), ValueError, "overlaps"),
        ("finalize_too_few", lambda s: s.optimizer.finalize_variable_values(s.params[:2]), ValueError, "3.*2"),
        ("finalize_others", lambda s: s.optimizer.finalize_variable_values([zeros()] * 3), ValueError, "param"),
    ),
    *rows(
        "accumulating",
        accumulating,
        (
            "gradient_is_accumulator",
            lambda s: s.apply({B: s.optimizer.slots["gradient_accumulator"][B]}),
            ValueError,
            "gradient 1.*overlaps",
        ),
        ("int", lambda s: s.apply({W: zeros(dtype=int)}), TypeError, "gradient 0.*int"),
        ("all_none", lambda s: s.optimizer.apply([None] * 3), ValueError, "None"),
    ),
]

UNBUILT = rows(
    "unbuilt",
    unbuilt,
    ("apply", lambda s: s.optimizer.apply(s.grads), RuntimeError, r"not built.*build\(params\)"),
    ("slots", lambda s: s.optimizer.slots, RuntimeError, "slots.*not built"),
    ("state_dict", lambda s: s.optimizer.state_dict(), RuntimeError, "state_dict.*not built"),
    ("load_state_dict", lambda s: s.optimizer.load_state_dict({}), RuntimeError, "load_state_dict.*not built"),
    ("evaluation_weights", evaluate, RuntimeError, "evaluation_weights.*not built"),
    ("finalize", lambda s: s.optimizer.finalize_variable_values(), RuntimeError, "finalize.*not built"),
    ("iterations_negative", lambda s: setattr(s.optimizer, "iterations", -1), ValueError, "iterations.*-1"),
    ("exclude_text", lambda s: s.optimizer.exclude_from_weight_decay(var_names="b"), TypeError, "var_names.*'b'"),
    ("exclude_pattern", lambda s: s.optimizer.exclude_from_weight_decay(var_names=["["]), ValueError, "var_names"),
    ("exclude_number", lambda s: s.optimizer.exclude_from_weight_decay(var_names=[3]), TypeError, "var_names.*int"),
    ("exclude_array", lambda s: s.optimizer.exclude_from_weight_decay(s.params[B]), TypeError, "var_list.*list"),
)

SETTERS = [
    *rows(
        "set",
        training,
        ("rate_nan", lambda s: setattr(s.optimizer, "learning_rate", NAN), ValueError, "learning_rate.*nan"),
        ("rate_text", lambda s: setattr(s.optimizer, "learning_rate", "fast"), TypeError, "learning_rate.*str"),
        ("rate_none", lambda s: setattr(s.optimizer, "learning_rate", None), TypeError, "learning_rate.*None"),
        ("rate_bool", lambda s: setattr(s.optimizer, "learning_rate", False), TypeError, "learning_rate.*bool"),
        ("iterations_negative", lambda s: setattr(s.optimizer, "iterations", -1), ValueError, "iterations.*-1"),
        ("iterations_fraction", lambda s: setattr(s.optimizer, "iterations", 1.5), TypeError, "iterations.*1.5"),
        ("iterations_bool", lambda s: setattr(s.optimizer, "iterations", True), TypeError, "iterations.*True"),
        ("iterations_array", lambda s: setattr(s.optimizer, "iterations", np.ones(1, int)), TypeError, "iterations"),
        ("iterations_beyond", lambda s: setattr(s.optimizer, "iterations", 2**62), ValueError, "below 2.*62"),
        ("exclude_stranger", lambda s: s.optimizer.exclude_from_weight_decay([zeros()]), ValueError, r"var_list\[0\]"),
    ),
    *rows(
        "set",
        scheduled,
        ("rate_of_schedule", lambda s: setattr(s.optimizer, "learning_rate", 0.1), TypeError, "schedule"),
    ),
]

RATES = [
    *rows(
        "callable_rate",
        with_dial(A, 0.1),
        ("text", step_with_dial_at("0.1"), TypeError, "learning_rate.*str"),
        ("none", step_with_dial_at(None), TypeError, "learning_rate.*None"),
        ("bool", step_with_dial_at(True), TypeError, "learning_rate.*bool"),
        ("nan", step_with_dial_at(NAN), ValueError, "learning_rate.*nan"),
        ("inf", step_with_dial_at(INF), ValueError, "learning_rate.*inf"),
        ("raises", step_with_dial_at(KeyError("rate file")), KeyError, "rate file"),
        ("beyond_float32", step_with_dial_at(1e300), ValueError, "does not fit float32"),
    ),
    *rows(
        "schedule",
        with_dial(A, 0.1, DialSchedule),
        ("nan", step_with_dial_at(NAN), ValueError, "learning_rate.*DialSchedule.*nan"),
        ("text", step_with_dial_at("0.1"), TypeError, "learning_rate.*DialSchedule.*str"),
        ("raises", step_with_dial_at(ZeroDivisionError("no steps")), ZeroDivisionError, "no steps"),
    ),
    *rows(
        "ftrl",
        with_dial(fastopt.Ftrl, 0.1),
        ("rate_zero", step_with_dial_at(0.0), ValueError, "learning rate.*positive.*0"),
    ),
]

COEFFICIENTS = [
    *rows(
        "callable_beta_1",
        with_dial(lambda dial: A(beta_1=dial), 0.9),
        ("raises", step_with_dial_at(KeyError("beta file")), KeyError, "beta file"),
        ("nan", step_with_dial_at(NAN), ValueError, "beta_1.*nan"),
        ("one", step_with_dial_at(1.0), ValueError, "beta_1.*1"),
        ("five", step_with_dial_at(5.0), ValueError, "beta_1.*5"),
        ("text", step_with_dial_at("0.9"), TypeError, "beta_1.*str"),
        ("none", step_with_dial_at(None), TypeError, "beta_1.*None"),
    ),
    *rows(
        "callable_epsilon",
        with_dial(lambda dial: A(epsilon=dial), 1e-7),
        ("negative", step_with_dial_at(-1.0), ValueError, "epsilon.*-1"),
    ),
    *rows(
        "callable_momentum",
        with_dial(lambda dial: fastopt.SGD(momentum=dial), 0.9),
        ("nan", step_with_dial_at(NAN), ValueError, "momentum.*nan"),
    ),
]

NONFINITE = [
    *rows(
        "raise",
        raising(),
        ("nan", lambda s: s.apply({B: bad_element(NAN)}), FloatingPointError, "gradient 1 is not finite"),
        ("inf", lambda s: s.apply({B: bad_element(-INF)}), FloatingPointError, "gradient 1 is not finite"),
        ("float64", lambda s: s.apply({B: bad_element(1e300, "float64")}), FloatingPointError, "gradient 1"),
        ("zeroed", lambda s: s.apply({B: bad_element(NAN)}, zero_grads=True), FloatingPointError, "gradient 1"),
    ),
    *rows(
        "raise_float64",
        raising("float64"),
        ("nan", lambda s: s.apply({B: bad_element(NAN, "float64")}), FloatingPointError, "gradient 1 is not finite"),
        ("inf", lambda s: s.apply({B: bad_element(INF, "float64")}), FloatingPointError, "gradient 1 is not finite"),
    ),
    *rows(
        "raise_and_clip",
        raising(global_clipnorm=1.0),
        ("nan", lambda s: s.apply({B: bad_element(NAN)}), FloatingPointError, "gradient 1"),
    ),
    *rows(
        "raise_and_accumulate",
        raising(gradient_accumulation_steps=3),
        ("nan", lambda s: s.apply({B: bad_element(NAN)}), FloatingPointError, "gradient 1"),
    ),
]

CHANGED_RULES = [
    *rows(
        "changed",
        training,
        ("amsgrad", step_with_attribute("amsgrad", True), RuntimeError, "changed after build"),
    ),
    *rows(
        "changed",
        lambda: Scene(fastopt.SGD()),
        ("momentum", step_with_attribute("momentum", 0.9), RuntimeError, "changed after build"),
    ),
]

STATES = rows(
    "load",
    training,
    ("missing_slot", lambda s: s.load({"0/momentum": ABSENT}), ValueError, "missing.*'0/momentum'"),
    ("missing_counter", lambda s: s.load({"iterations": ABSENT}), ValueError, "missing.*'iterations'"),
    ("unexpected", lambda s: s.load({"0/norm": zeros()}), ValueError, "unexpected.*'0/norm'"),
    ("unexpected_number_as_key", lambda s: s.load({3: 1, "x": 2}), ValueError, "unexpected.*3"),
    ("misshaped", lambda s: s.load({"0/velocity": zeros(4, 3)}), ValueError, r"0/velocity.*\(3, 4\).*\(4, 3\)"),
    ("misshaped_not_strict", lambda s: s.load({"2/velocity": zeros(1)}, strict=False), ValueError, "2/velocity"),
    ("complex", lambda s: s.load({"0/velocity": zeros(dtype=complex)}), TypeError, "0/velocity.*complex"),
    ("text", lambda s: s.load({"0/velocity": "zeros"}), TypeError, "0/velocity"),
    ("object", lambda s: s.load({"0/velocity": None}), TypeError, "0/velocity.*object"),
    ("ragged", lambda s: s.load({"0/velocity": [[1.0], [1.0, 2.0]]}), (TypeError, ValueError), ""),
    ("too_large", lambda s: s.load({"2/velocity": np.array(1e300)}), (ValueError, RuntimeWarning), ""),
    ("counter_fraction", lambda s: s.load({"iterations": 1.5}), ValueError, "iterations.*1.5"),
    ("counter_negative", lambda s: s.load({"iterations": -1}), ValueError, "iterations.*-1"),
    ("counter_nan", lambda s: s.load({"iterations": NAN}), ValueError, "iterations.*nan"),
    ("counter_text", lambda s: s.load({"iterations": "1"}), ValueError, "iterations.*'1'"),
    ("counter_array", lambda s: s.load({"iterations": np.ones(2)}), ValueError, "iterations"),
    ("counter_none", lambda s: s.load({"iterations": None}), ValueError, "iterations.*None"),
    ("rate_inf", lambda s: s.load({"learning_rate": INF}), ValueError, "learning_rate.*inf"),
    ("no_mapping", lambda s: s.optimizer.load_state_dict([1, 2]), TypeError, "mapping.*list"),
    ("of_another", lambda s: s.optimizer.load_state_dict(averaging().optimizer.state_dict()), ValueError, "average"),
)

LOSS_SCALES = [
    *rows(
        "loss_scale",
        loss_scaled,
        ("no_optimizer", make(fastopt.LossScaleOptimizer, "adam"), TypeError, "inner_optimizer.*str"),
        ("class", make(fastopt.LossScaleOptimizer, A), TypeError, "inner_optimizer"),
        ("nested", lambda s: fastopt.LossScaleOptimizer(s.optimizer), ValueError, "one place"),
        ("two_scales", lambda s: fastopt.LossScaleOptimizer(A(loss_scale_factor=2.0)), ValueError, "one place"),
        ("unknown_argument", wrap(learning_rate=0.1), TypeError, "learning_rate"),
        ("scale_zero", wrap(initial_scale=0.0), ValueError, "initial_scale.*0"),
        ("scale_nan", wrap(initial_scale=NAN), ValueError, "initial_scale.*nan"),
        ("scale_text", wrap(initial_scale="8"), TypeError, "initial_scale.*str"),
        ("growth_zero", wrap(dynamic_growth_steps=0), ValueError, "dynamic_growth_steps.*0"),
        ("growth_fraction", wrap(dynamic_growth_steps=1.5), TypeError, "dynamic_growth_steps.*1.5"),
        ("below_minimum", wrap(initial_scale=1.0, minimum_scale=2.0), ValueError, "minimum_scale 2"),
        ("above_maximum", wrap(initial_scale=4.0, maximum_scale=2.0), ValueError, "maximum_scale 2"),
        ("minimum_zero", wrap(minimum_scale=0.0), ValueError, "minimum_scale.*0"),
        ("set_scale_negative", set_to("dynamic_scale", -1), ValueError, "dynamic_scale.*positive.*-1"),
        ("set_scale_zero", set_to("dynamic_scale", 0), ValueError, "dynamic_scale.*positive.*0"),
        ("set_scale_nan", set_to("dynamic_scale", NAN), ValueError, "dynamic_scale.*finite.*nan"),
        ("set_scale_inf", set_to("dynamic_scale", INF), ValueError, "dynamic_scale.*finite.*inf"),
        ("set_scale_text", set_to("dynamic_scale", "8"), TypeError, "dynamic_scale.*str"),
        ("set_scale_bool", set_to("dynamic_scale", True), TypeError, "dynamic_scale.*bool"),
        ("set_counter_negative", set_to("step_counter", -1), ValueError, "step_counter.*-1"),
        ("set_counter_fraction", set_to("step_counter", 1.5), TypeError, "step_counter.*1.5"),
        ("set_counter_beyond", set_to("step_counter", 2**62), ValueError, "step_counter.*2.*62"),
        ("set_growth_zero", set_to("dynamic_growth_steps", 0), ValueError, "dynamic_growth_steps.*0"),
        ("set_growth_none", set_to("dynamic_growth_steps", None), TypeError, "dynamic_growth_steps.*None"),
        ("set_initial_nan", set_to("initial_scale", NAN), ValueError, "initial_scale.*nan"),
        ("set_minimum_zero", set_to("minimum_scale", 0.0), ValueError, "minimum_scale.*0"),
        ("set_maximum_inf", set_to("maximum_scale", INF), ValueError, "maximum_scale.*inf"),
        ("set_bounds_crossed", set_bounds_crossed, ValueError, "minimum_scale 4.*above maximum_scale 2"),
        ("set_iterations", set_to("iterations", -1), ValueError, "iterations.*-1"),
        ("gradient_int", lambda s: s.apply({W: zeros(dtype=int)}), TypeError, "gradient 0.*int"),
        ("gradients_none", lambda s: s.optimizer.apply([None] * 3), ValueError, "None"),
        ("set_rate", lambda s: setattr(s.optimizer, "learning_rate", "fast"), TypeError, "learning_rate.*str"),
        ("state_without_scale", lambda s: s.load({"dynamic_scale": ABSENT}), ValueError, "dynamic_scale"),
        ("state_without_slot", lambda s: s.load({"1/momentum": ABSENT, "dynamic_scale": 2.0}), ValueError, "1/momen"),
        ("state_scale_zero", lambda s: s.load({"dynamic_scale": 0.0}), ValueError, "dynamic_scale.*0"),
        ("state_scale_negative", lambda s: s.load({"dynamic_scale": -2.0}), ValueError, "dynamic_scale.*-2"),
        ("state_scale_nan", lambda s: s.load({"dynamic_scale": NAN}), ValueError, "dynamic_scale.*nan"),
        ("state_scale_array", lambda s: s.load({"dynamic_scale": np.ones(2)}), (TypeError, ValueError), "dynamic_sc"),
        ("state_scale_text", lambda s: s.load({"dynamic_scale": "8"}), (TypeError, ValueError), "dynamic_scale"),
        ("state_counter_fraction", lambda s: s.load({"step_counter": 1.5}), ValueError, "step_counter.*1.5"),
    ),
    *rows(
        "loss_scale_unbuilt",
        lambda: Scene(fastopt.LossScaleOptimizer(A()), steps=0),
        ("apply", lambda s: s.optimizer.apply(s.grads), RuntimeError, "not built"),
        ("slots", lambda s: s.optimizer.slots, RuntimeError, "not built"),
        ("state_dict", lambda s: s.optimizer.state_dict(), RuntimeError, "not built"),
    ),
]

FUNCTIONS = rows(
    "call",
    training,
    ("register-name", register(name="not a name"), ValueError, "'not a name'"),
    ("register-built_in", register(name="ADAM"), ValueError, "ADAM.*built-in"),
    ("register-tuple", register(scalars_type=tuple), TypeError, "NamedTuple"),
    ("register-one_phase_of_two", register(between=lambda sums, n, s: 1.0), ValueError, "between and second"),
    ("register-slot_of_the_step", register(slots={"average": 0.0}), ValueError, "'average'"),
    ("register-slot_path", register(slots={"a/b": 0.0}), ValueError, "'a/b'"),
    ("register-slot_start", register(slots={"velocity": "zero"}), (TypeError, ValueError), "velocity"),
    ("register-slot_count", register(slots={"a": 0.0, "b": 0.0}), TypeError, "NeverRegistered.*rule fails"),
    ("register-slots_returned", register(rule=lambda p, g, v, s: (p, ())), TypeError, "1 slots.*returns 0"),
    ("register-nothing_returned", register(rule=lambda p, g, v, s: None), TypeError, "NeverRegistered.*rule fails"),
    ("register-wrong_field", register(rule=lambda p, g, v, s: (s.rate, v)), TypeError, "rule fails.*rate"),
    ("register-no_function", register(rule="heavy_ball"), TypeError, "NeverRegistered"),
    ("register-bound_method", register(rule=Ball().rule), TypeError, "rule must be a plain function, got method"),
    ("register-object", register(rule=Ball()), TypeError, "rule must be a plain function, got Ball"),
    ("register-partial", register(rule=functools.partial(heavy_ball)), TypeError, "plain function, got partial"),
    ("register-built_in_function", register(rule=max), TypeError, "plain function, got builtin_function"),
    ("register-static", register(rule=staticmethod(heavy_ball)), TypeError, "plain function, got staticmethod"),
    ("register-list_of_slots", register(rule=lambda p, g, v, s: (p, [*v])), TypeError, "slots.*a tuple, got a list"),
    ("register-list", register(rule=lambda p, g, v, s: [p, v]), TypeError, "returns must be a tuple, got a list"),
    ("register-text_slot", register(rule=lambda p, g, v, s: (p, ("a",))), TypeError, "slots.*real.*str: 'a'"),
    ("register-none", register(rule=lambda p, g, v, s: (None, v)), TypeError, "parameter.*real.*NoneType"),
    ("register-complex", register(rule=lambda p, g, v, s: (1j, v)), TypeError, "parameter.*real.*complex"),
    ("register-array", register(rule=lambda p, g, v, s: (zeros(1), v)), TypeError, "parameter.*real.*ndarray"),
    ("register-two_phases", register(**TWO_PHASES | {"between": min}), TypeError, "between must be a plain function"),
    ("register-terms", register(**TWO_PHASES | {"rule": heavy_ball}), TypeError, "terms.*a tuple, got a float"),
    ("register-no_factor", register(**TWO_PHASES | {"between": lambda m, n, s: None}), TypeError, "between.*NoneType"),
    ("register-factor_fails", register(**TWO_PHASES | {"between": lambda m, n, s: m[1]}), TypeError, "between fails"),
    ("register-second", register(**TWO_PHASES | {"second": lambda *a: a}), TypeError, "second.*real.*tuple"),
    ("register-text_scalar", register(defaults={"learning_rate": 0.1, "momentum": "0.9"}), TypeError, "scalars.*'0.9'"),
    ("register-slots_as_list", register(slots=["velocity"]), TypeError, "slots must be a dict, got list"),
    ("register-defaults_as_list", register(defaults=["momentum"]), TypeError, "defaults must be a dict, got list"),
    ("register-slot_number", register(slots={1: 0.0}), TypeError, "name of a slot.*1"),
    ("register-common_argument", register(defaults={"momentum": 0.9, "clipnorm": 1.0}), ValueError, "clipnorm"),
    ("register-method", register(defaults={"momentum": 0.9, "apply": 1.0}), ValueError, "something else called apply"),
    ("register-private", register(defaults={"momentum": 0.9, "_x": 1.0}), ValueError, "cannot be called '_x'"),
    ("register-no_default", register(defaults={"learning_rate": 0.1}), (TypeError, ValueError), "momentum"),
    ("register-wrong_scalars", register(scalars=lambda h, rate, t: (rate, 0.9)), TypeError, "Scalars.*tuple"),
    (
        "pack-mixed",
        lambda s: fastopt.pack([zeros(), zeros(dtype=np.float64)]),
        ValueError,
        "one dtype.*float32.*float64",
    ),
    ("pack-int", lambda s: fastopt.pack({"w": zeros(dtype=int)}), TypeError, "w.*int64"),
    ("pack-half", lambda s: fastopt.pack({"w": zeros(dtype=np.float16)}), TypeError, "w.*float16"),
    ("pack-byte_order", lambda s: fastopt.pack({"w": zeros(dtype=">f4")}), TypeError, "w.*byte order"),
    ("pack-none", lambda s: fastopt.pack([None]), TypeError, "0.*NoneType"),
    ("pack-list", lambda s: fastopt.pack([1.0, 2.0]), TypeError, "0.*float"),
    ("pack-masked", lambda s: fastopt.pack([np.ma.masked_array(zeros())]), TypeError, "0.*MaskedArray"),
    ("pack-path_twice", lambda s: fastopt.pack({"a/b": zeros(), "a": {"b": zeros()}}), ValueError, "'a/b'"),
    ("threads-zero", lambda s: fastopt.set_num_threads(0), ValueError, "at least 1.*0"),
    ("threads-negative", lambda s: fastopt.set_num_threads(-1), ValueError, "at least 1.*-1"),
    ("threads-float", lambda s: fastopt.set_num_threads(2.0), TypeError, "int.*float"),
    ("threads-bool", lambda s: fastopt.set_num_threads(True), TypeError, "int.*bool"),
    ("threads-none", lambda s: fastopt.set_num_threads(None), TypeError, "int.*NoneType"),
    ("get-unknown", lambda s: optimizers.get("adamm"), ValueError, "'adamm'.*Adam.*Lamb"),
    ("get-number", lambda s: optimizers.get(5), (TypeError, ValueError), "int"),
    ("get-class", lambda s: optimizers.get(A), (TypeError, ValueError), "name.*config.*Optimizer"),
    ("get-half_a_config", lambda s: optimizers.get({"class_name": "Adam"}), ValueError, "config"),
    (
        "get-misspelt_argument",
        lambda s: optimizers.get({"class_name": "Adam", "config": {"beta": 1}}),
        TypeError,
        "beta",
    ),
    *[
        (f"config-{id}", lambda s, bad=bad: A.from_config({**A().get_config(), EXCLUDES: bad}), error, EXCLUDES)
        for id, bad, error in (
            ("no_dict", ["0"], ValueError),
            ("unknown_key", {"name": ["0"]}, ValueError),
            ("text", {"names": "0"}, TypeError),
            ("bad_pattern", {"names": ["("]}, ValueError),
        )
    ],
    ("deserialize-unknown", lambda s: optimizers.deserialize({"class_name": "X", "config": {}}), ValueError, "'X'"),
    (
        "deserialize-class_number",
        lambda s: optimizers.deserialize({"class_name": 5, "config": {}}),
        (TypeError, ValueError),
        "5",
    ),
    ("deserialize-none", lambda s: optimizers.deserialize(None), (TypeError, ValueError), "config|None"),
    ("deserialize-name", lambda s: optimizers.deserialize("adam"), (TypeError, ValueError), "class_name"),
    ("serialize-name", lambda s: optimizers.serialize("adam"), (TypeError, AttributeError), ""),
)

GROUPS = {
    "constructors": CONSTRUCTORS,
    "parameters": PARAMETERS,
    "overrides": OVERRIDES,
    "gradients": GRADIENTS,
    "frozen": FROZEN,
    "structures": STRUCTURES,
    "averages": AVERAGES,
    "unbuilt": UNBUILT,
    "setters": SETTERS,
    "rates": RATES,
    "coefficients": COEFFICIENTS,
    "nonfinite": NONFINITE,
    "changed rules": CHANGED_RULES,
    "states": STATES,
    "loss scales": LOSS_SCALES,
    "functions": FUNCTIONS,
}


@pytest.mark.parametrize("group", GROUPS)
def test_refused_without_a_trace(group):
    @folded("row", GROUPS[group], ids=lambda row: row.id)
    def check(row):
        scene, undisturbed = row.scene(), row.scene()
        before = scene.trace()
        with pytest.raises(row.error, match=re.compile(row.message, re.DOTALL)):
            row.call(scene)
        assert scene.trace() == before
        assert not scene.guarded_values_changed()
        scene.step()
        undisturbed.step()
        assert scene.trace() == undisturbed.trace()

    check()


# -- what one row cannot show ------------------------------------------------------------------------------------------


class FailsAtCall:
    """A coefficient that raises at one of its calls, counted from when it is armed."""

    def __init__(self, value):
        self.value, self.left = value, None

    def __call__(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyError("at this call")
        return self.value


@pytest.mark.parametrize(
    "make",
    [lambda c: A(beta_1=c), lambda c: fastopt.Nadam(beta_1=c), lambda c: fastopt.SGD(momentum=c), lambda c: A(c)],
    ids=["Adam", "Nadam", "SGD", "rate"],
)
def test_a_callable_may_fail_at_any_of_its_calls(make):
    coefficient = FailsAtCall(0.5)
    scene = Scene(make(coefficient))
    for calls in range(100):
        before = scene.trace()
        coefficient.left = calls
        try:
            scene.step()
        except KeyError:
            coefficient.left = None
            assert scene.trace() == before, f"failing at call {calls} of a step left a trace"
        else:
            break
    assert calls > 0, "the coefficient is never called"


@pytest.mark.parametrize(("dtype", "value"), [("float64", 1e200), ("float64", -1.7e308), ("float32", 3e38)])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_large_finite_gradients_are_finite(dtype, value, nonfinite):
    """Squares of them overflow."""
    params = [np.ones(300, dtype)]
    optimizer = fastopt.SGD(1e-300 if dtype == "float64" else 1e-38, nonfinite=nonfinite)
    optimizer.build(params)
    optimizer.apply([np.full(300, value, dtype)])
    assert not optimizer.last_step_skipped
    assert optimizer.iterations == 1
    assert np.isfinite(params[0]).all()


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_clipping_makes_no_nan_of_finite_gradients_where_that_must_not_pass(clip):
    """With nonfinite="raise" a NaN in the parameters would go unnoticed: clip, or raise."""
    params = [np.ones(3)]
    optimizer = fastopt.SGD(0.1, nonfinite="raise", **{clip: 1.0})
    optimizer.build(params)
    try:
        optimizer.apply([np.full(3, 1e200)])
    except FloatingPointError:
        assert optimizer.iterations == 0
    assert np.isfinite(params[0]).all()


SWITCHED_ON = """
    import children, numpy as np, fastopt

    def switched_on(name, value):
        optimizer, refused = fastopt.SGD(0.1), None
        params = [np.ones(3, np.float32)]
        optimizer.build(params)
        try:
            setattr(optimizer, name, value)
            for _ in range(2):
                optimizer.apply([np.ones(3, np.float32)])
        except Exception as error:
            refused = type(error).__name__
        return refused, bool((params[0] == 1).all())

    children.report(found=[switched_on("use_ema", True), switched_on("gradient_accumulation_steps", 2)])
"""


def test_an_option_that_needs_state_cannot_be_switched_on_after_build():
    """Its arrays do not exist: in a child, because writing to them would end the process."""
    for refused, unchanged in children.run(SWITCHED_ON)["found"]:
        assert refused in ("RuntimeError", "AttributeError", "ValueError")
        assert unchanged


def test_an_exclusion_that_fails_leaves_no_exclusion_behind(monkeypatch):
    """A copy is planned anew: only it would show one."""

    def without_memory(self, size, dtype):
        raise MemoryError

    scene = training(weight_decay=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Host, "zeros", without_memory)
        with pytest.raises(MemoryError):
            scene.optimizer.exclude_from_weight_decay(var_names=["0"])
    assert scene.optimizer.get_config() == training(weight_decay=0.5).optimizer.get_config()
    twin, params = copy.deepcopy((scene.optimizer, scene.params))
    scene.step()
    twin.apply(scene.grads)
    assert frozen(params) == frozen(scene.params)


def test_overrides_may_be_changed_after_build():
    overrides = {"0": {"weight_decay": 0.5}}
    scene = Scene(A(), overrides=overrides)
    overrides["0"]["weight_decay"] = "no number"
    overrides["("] = None
    twin, params = copy.deepcopy((scene.optimizer, scene.params))
    scene.step()
    twin.apply(scene.grads)
    assert frozen(params) == frozen(scene.params)


def test_a_wrapper_whose_build_is_cut_short_is_not_built(monkeypatch):
    optimizer = fastopt.LossScaleOptimizer(fastopt.SGD(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(Elementwise, "prepare", lambda *args, norms, **options: 1 / (not norms))
        with pytest.raises(ZeroDivisionError):
            optimizer.build([zeros(3)])
    assert not optimizer.built
    optimizer.apply([np.ones(3, F32)], [zeros(3)])


def untyped(param, grad, slots, s):
    return param if grad > s.momentum - 9 else nobody_knows(param), slots  # noqa: F821


def test_a_rule_that_numba_cannot_compile_is_refused_in_a_sentence():
    """Numba's own message has pages."""
    kind = fastopt.register_rule(**GOOD_RULE | {"name": "Untyped", "rule": untyped})
    optimizer = kind()
    with pytest.raises(TypeError, match=r"^Untyped: Numba cannot compile the rule untyped: [^\n]*$") as caught:
        optimizer.build([zeros(3)])
    assert "nobody_knows" in str(caught.value.__cause__)
    assert not optimizer.built


def test_a_rule_may_be_one_that_numba_has_compiled():
    kind = fastopt.register_rule(**GOOD_RULE | {"name": "Compiled", "rule": numba.njit(heavy_ball)})
    param = zeros(3)
    kind(0.5).apply([np.ones(3, F32)], [param])
    assert param.tolist() == [-0.5] * 3


def test_a_refused_first_step_leaves_the_optimizer_unbuilt():
    optimizer = A()
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply([zeros(5)], [zeros(4)])
    assert not optimizer.built


def test_a_matrix_is_an_array():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        param, grad = np.matrix(zeros(2, 2)), np.matrix(np.ones((2, 2), F32))
    array = zeros(2, 2)
    A().apply([grad], [param])
    A().apply([np.asarray(grad)], [array])
    assert np.asarray(param).tobytes() == array.tobytes()


def test_a_warned_step_is_complete():
    scene = training()
    with pytest.warns(UserWarning, match="no gradient for 1, 2"):
        scene.apply({B: None, S: None})
    assert scene.optimizer.iterations == 2
