"""Every optimizer once more in plain NumPy, written from its paper, to judge the fused kernels by.

Nothing here knows fastopt or Keras. Arrays keep the dtype they arrive in (float64 is the point of it): hyper-parameters
stay Python floats, which never widen a float32 array. Every step makes new arrays, so that a history may keep them.
"""

import inspect
import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass
class Rule:
    """What the rules share. A rule sees one parameter at a time; `t` counts real updates from 1.

    Beside each rule stand a rate at which 50 steps move the parameters enough for every option to show, and all own
    hyper-parameters away from their defaults, twice: what the rows of `table` are made of.
    """

    in_keras = True
    names = ()  # of its slots, where all are zeros like the parameter

    def slots(self, param, path):
        return {name: np.zeros_like(param) for name in self.slot_names()}

    def slot_names(self):
        return self.names

    def weight_decay(self, slots, weight_decay):
        return weight_decay


@dataclass
class SGD(Rule):
    """Momentum: Polyak 1964. Nesterov: Sutskever et al., ICML 2013. The rate is inside the velocity."""

    rate = 0.05
    own = {"momentum": 0.9}, {"momentum": 0.6, "nesterov": True}

    momentum: float = 0.0
    nesterov: bool = False

    def slot_names(self):
        return ("momentum",) if self.momentum else ()

    def step(self, param, grad, slots, learning_rate, t):
        if not self.momentum:
            return param - learning_rate * grad
        slots["momentum"] = velocity = self.momentum * slots["momentum"] - learning_rate * grad
        return param + (self.momentum * velocity - learning_rate * grad if self.nesterov else velocity)


@dataclass
class RMSprop(Rule):
    """Hinton, Coursera "Neural networks for machine learning", lecture 6e; centered: Graves, arXiv 1308.0850."""

    rate = 0.01
    own = (
        {"rho": 0.8, "momentum": 0.9, "epsilon": 0.01, "centered": True},
        {"rho": 0.5, "momentum": 0.3, "epsilon": 0.0001, "centered": False},
    )  # fmt: skip

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def slot_names(self):
        return ("velocity", *["momentum"] * (self.momentum > 0), *["average_gradient"] * self.centered)

    def step(self, param, grad, slots, learning_rate, t):
        slots["velocity"] = variance = _average(slots["velocity"], grad * grad, self.rho)
        if self.centered:
            slots["average_gradient"] = mean = _average(slots["average_gradient"], grad, self.rho)
            variance = variance - mean * mean
        increment = learning_rate * grad / np.sqrt(variance + self.epsilon)
        if self.momentum > 0:
            slots["momentum"] = increment = self.momentum * slots["momentum"] + increment
        return param - increment


@dataclass
class Adagrad(Rule):
    """Duchi, Hazan and Singer, JMLR 12, 2011."""

    rate = 0.1
    own = {"initial_accumulator_value": 1.0, "epsilon": 0.01}, {"initial_accumulator_value": 0.0, "epsilon": 0.001}

    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def slots(self, param, path):
        return {"accumulator": np.full_like(param, self.initial_accumulator_value)}

    def step(self, param, grad, slots, learning_rate, t):
        slots["accumulator"] = total = slots["accumulator"] + grad * grad
        return param - learning_rate * grad / np.sqrt(total + self.epsilon)


@dataclass
class Adadelta(Rule):
    """Zeiler, arXiv 1212.5701, algorithm 1."""

    rate = 1.0
    own = {"rho": 0.8, "epsilon": 0.01}, {"rho": 0.5, "epsilon": 0.0001}
    names = ("accumulated_grad", "accumulated_delta_var")

    rho: float = 0.95
    epsilon: float = 1e-7

    def step(self, param, grad, slots, learning_rate, t):
        old_deltas = slots["accumulated_delta_var"]
        slots["accumulated_grad"] = squares = _average(slots["accumulated_grad"], grad * grad, self.rho)
        delta = -np.sqrt(old_deltas + self.epsilon) / np.sqrt(squares + self.epsilon) * grad
        slots["accumulated_delta_var"] = _average(old_deltas, delta * delta, self.rho)
        return param + learning_rate * delta


@dataclass
class Adam(Rule):
    """Kingma and Ba, arXiv 1412.6980, section 2, last form ("epsilon hat"); AMSGrad: Reddi et al., ICLR 2018."""

    rate = 0.01
    own = (
        {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01, "amsgrad": True},
        {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001, "amsgrad": False},
    )  # fmt: skip

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    def slot_names(self):
        return ("momentum", "velocity", *["velocity_hat"] * self.amsgrad)

    def step(self, param, grad, slots, learning_rate, t):
        momentum, velocity = _adam_moments(self, grad, slots)
        if self.amsgrad:
            slots["velocity_hat"] = velocity = np.maximum(slots["velocity_hat"], velocity)
        alpha = learning_rate * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return param - alpha * momentum / (np.sqrt(velocity) + self.epsilon)


@dataclass
class AdamW(Adam):
    """Loshchilov and Hutter, arXiv 1711.05101. `Oracle` does the decay, as for every rule."""

    rate = 0.01
    own = (
        {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01, "amsgrad": True, "weight_decay": 0.3},
        {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001, "amsgrad": False, "weight_decay": 1.0},
    )  # fmt: skip


@dataclass
class Adamax(Rule):
    """Kingma and Ba, arXiv 1412.6980, algorithm 2, with epsilon added to the norm."""

    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}, {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001}
    names = ("momentum", "norm")

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def step(self, param, grad, slots, learning_rate, t):
        slots["momentum"] = momentum = _average(slots["momentum"], grad, self.beta_1)
        slots["norm"] = norm = np.maximum(self.beta_2 * slots["norm"], np.abs(grad))
        return param - learning_rate / (1 - self.beta_1**t) * momentum / (norm + self.epsilon)


@dataclass
class Nadam(Rule):
    """Dozat, "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop; its momentum schedule with 0.96**t."""

    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}, {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001}
    names = ("momentum", "velocity")

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def scheduled(self, t):
        return self.beta_1 * (1 - 0.5 * 0.96**t)

    def step(self, param, grad, slots, learning_rate, t):
        momentum, velocity = _adam_moments(self, grad, slots)
        product = math.prod(self.scheduled(i) for i in range(1, t + 1))
        ahead = self.scheduled(t + 1)
        corrected = ahead / (1 - product * ahead) * momentum + (1 - self.scheduled(t)) / (1 - product) * grad
        return param - learning_rate * corrected / (np.sqrt(velocity / (1 - self.beta_2**t)) + self.epsilon)


@dataclass
class Lion(Rule):
    """Chen et al., arXiv 2302.06675, algorithm 2."""

    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9}, {"beta_1": 0.5, "beta_2": 0.6}
    names = ("momentum",)

    beta_1: float = 0.9
    beta_2: float = 0.99

    def step(self, param, grad, slots, learning_rate, t):
        direction = np.sign(_average(slots["momentum"], grad, self.beta_1))
        slots["momentum"] = _average(slots["momentum"], grad, self.beta_2)
        return param - learning_rate * direction


@dataclass
class Ftrl(Rule):
    """McMahan et al., "Ad click prediction", KDD 2013, algorithm 1; shrinkage as in TensorFlow's FTRL V2."""

    rate = 0.1
    own = (
        {
            "learning_rate_power": -0.7, "initial_accumulator_value": 1.0, "l1_regularization_strength": 0.1,
            "l2_regularization_strength": 0.2, "l2_shrinkage_regularization_strength": 0.3, "beta": 0.5,
        },
        {
            "learning_rate_power": -0.3, "initial_accumulator_value": 0.5, "l1_regularization_strength": 0.5,
            "l2_regularization_strength": 1.0, "l2_shrinkage_regularization_strength": 0.05, "beta": 2.0,
        },
    )  # fmt: skip

    learning_rate_power: float = -0.5
    initial_accumulator_value: float = 0.1
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    l2_shrinkage_regularization_strength: float = 0.0
    beta: float = 0.0

    def slots(self, param, path):
        return {"accumulator": np.full_like(param, self.initial_accumulator_value), "linear": np.zeros_like(param)}

    def step(self, param, grad, slots, learning_rate, t):
        l1, l2 = self.l1_regularization_strength, self.l2_regularization_strength + self.beta / (2 * learning_rate)
        old_rate = slots["accumulator"] ** -self.learning_rate_power
        slots["accumulator"] = slots["accumulator"] + grad * grad
        new_rate = slots["accumulator"] ** -self.learning_rate_power
        shrunk = grad + 2 * self.l2_shrinkage_regularization_strength * param
        slots["linear"] = linear = slots["linear"] + shrunk - (new_rate - old_rate) / learning_rate * param
        return (np.clip(linear, -l1, l1) - linear) / (new_rate / learning_rate + 2 * l2)


@dataclass
class ScheduleFreeAdamW(Rule):
    """Defazio et al., arXiv 2405.15682, algorithm 1 with weights 1/t; the parameter is y, slot `momentum` z."""

    rate = 0.02
    own = (
        {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01, "warmup_steps": 10},
        {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001, "warmup_steps": 25},
    )  # fmt: skip

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    warmup_steps: int = 0

    def slots(self, param, path):
        return {"momentum": param.copy(), "velocity": np.zeros_like(param)}

    def step(self, param, grad, slots, learning_rate, t):
        if self.warmup_steps:
            learning_rate = learning_rate * min(t / self.warmup_steps, 1.0)
        slots["velocity"] = velocity = _average(slots["velocity"], grad * grad, self.beta_2)
        mean = (param - (1 - self.beta_1) * slots["momentum"]) / self.beta_1
        denominator = np.sqrt(velocity / (1 - self.beta_2**t)) + self.epsilon
        slots["momentum"] = fast = slots["momentum"] - learning_rate * grad / denominator
        mean = (1 - 1 / t) * mean + fast / t
        return (1 - self.beta_1) * fast + self.beta_1 * mean


@dataclass
class Lamb(Rule):
    """You et al., arXiv 1904.00962, algorithm 2, without its decay term and with phi(x) = x."""

    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}, {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.001}
    names = ("momentum", "velocity")

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def step(self, param, grad, slots, learning_rate, t):
        momentum, velocity = _adam_moments(self, grad, slots)
        update = momentum / (1 - self.beta_1**t) / (np.sqrt(velocity / (1 - self.beta_2**t)) + self.epsilon)
        param_norm, update_norm = _norm(param), _norm(update)
        trust = param_norm / update_norm if param_norm > 0 and update_norm > 0 else 1.0
        return param - trust * learning_rate * update


@dataclass
class Adafactor(Rule):
    """Shazeer and Stern, arXiv 1804.04235, algorithms 4 and 5; the last two axes of a tensor are factored."""

    rate = 0.05
    own = (
        {"beta_2_decay": -0.5, "epsilon_1": 0.001, "epsilon_2": 0.6, "clip_threshold": 0.5},
        {"beta_2_decay": -1.0, "epsilon_1": 0.01, "epsilon_2": 0.2, "clip_threshold": 0.3, "relative_step": False},
    )  # fmt: skip

    beta_2_decay: float = -0.8
    epsilon_1: float = 1e-30
    epsilon_2: float = 1e-3
    clip_threshold: float = 1.0
    relative_step: bool = True  # min(rate, 1/sqrt(t)) holds either way

    def slots(self, param, path):
        if param.ndim < 2:
            return {"velocity": np.zeros_like(param)}
        return {"row": np.zeros_like(param[..., 0]), "column": np.zeros_like(param[..., 0, :])}

    def step(self, param, grad, slots, learning_rate, t):
        if not param.size:
            return param
        variance = self._variance(grad * grad + self.epsilon_1, slots, 1 - t**self.beta_2_decay)
        update = grad / np.sqrt(variance)
        update = update / max(1.0, float(_rms(update)) / self.clip_threshold)
        alpha = max(self.epsilon_2, float(_rms(param))) * min(learning_rate, 1 / math.sqrt(t))
        return param - alpha * update

    def _variance(self, squares, slots, keep):
        if "velocity" in slots:
            slots["velocity"] = _average(slots["velocity"], squares, keep)
            return slots["velocity"]
        slots["row"] = row = _average(slots["row"], squares.mean(axis=-1), keep)
        slots["column"] = column = _average(slots["column"], squares.mean(axis=-2), keep)
        return (row / row.mean(axis=-1, keepdims=True))[..., None] * column[..., None, :]


@dataclass
class Muon(Rule):
    """Jordan et al., kellerjordan.github.io/posts/muon, 2024; sqrt(max(rows, columns)): Liu et al. arXiv 2502.16982."""

    rate = 0.02
    own = (
        {
            "adam_beta_1": 0.8, "adam_beta_2": 0.9, "adam_weight_decay": 0.3, "epsilon": 0.01, "weight_decay": 0.5,
            "muon_a": 3.0, "muon_b": -3.0, "muon_c": 1.0, "adam_lr_ratio": 0.5, "momentum": 0.8, "ns_steps": 3,
            "nesterov": False, "rms_rate": None,
        },
        {
            "adam_beta_1": 0.5, "adam_beta_2": 0.6, "adam_weight_decay": 1.0, "epsilon": 0.001, "weight_decay": 0.2,
            "muon_a": 2.0, "muon_b": -1.5, "muon_c": 0.5, "adam_lr_ratio": 2.0, "momentum": 0.5, "ns_steps": 2,
            "rms_rate": 0.5,
        },
    )  # fmt: skip

    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.999
    adam_weight_decay: float | None = 0.004
    epsilon: float = 1e-7
    exclude_layers: list | None = None
    exclude_embeddings: bool = True
    muon_a: float = 3.4445
    muon_b: float = -4.7750
    muon_c: float = 2.0315
    adam_lr_ratio: float = 1.0
    momentum: float = 0.95
    ns_steps: int = 5
    nesterov: bool = True
    rms_rate: float | None = 0.2

    def slots(self, param, path):
        names = ("momentum", "velocity") if self._left_to_adam(param, path) else ("momentum",)
        return {name: np.zeros_like(param) for name in names}

    def weight_decay(self, slots, weight_decay):
        return self.adam_weight_decay if "velocity" in slots else weight_decay

    def step(self, param, grad, slots, learning_rate, t):
        if "velocity" in slots:
            adam = Adam(self.adam_beta_1, self.adam_beta_2, self.epsilon)
            return adam.step(param, grad, slots, learning_rate * self.adam_lr_ratio, t)
        slots["momentum"] = momentum = self.momentum * slots["momentum"] + grad
        direction = self._orthogonal(grad + self.momentum * momentum if self.nesterov else momentum)
        scale = 1.0 if self.rms_rate is None else math.sqrt(max(param.shape)) * self.rms_rate
        return param - learning_rate * scale * direction

    def _left_to_adam(self, param, path):
        embedding = self.exclude_embeddings and "embedding" in path.lower()
        return param.ndim != 2 or embedding or any(re.search(pattern, path) for pattern in self.exclude_layers or ())

    def _orthogonal(self, matrix):
        """Newton-Schulz: pushes the singular values towards 1."""
        if matrix.shape[0] > matrix.shape[1]:
            return self._orthogonal(matrix.T).T
        x = matrix / (_norm(matrix) + 1e-7)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = self.muon_a * x + (self.muon_b * gram + self.muon_c * (gram @ gram)) @ x
        return x


@dataclass
class RowwiseAdagrad(Rule):
    """Gupta, Bengio and Weston, JMLR 15, 2014: Adagrad with the mean square of each row."""

    in_keras = False
    rate = 0.1
    own = {"initial_accumulator_value": 1.0, "epsilon": 0.01}, {"initial_accumulator_value": 0.1, "epsilon": 0.001}

    initial_accumulator_value: float = 0.0
    epsilon: float = 1e-8

    def slots(self, param, path):
        return {"accumulator": np.full(param.shape[:1], self.initial_accumulator_value, param.dtype)}

    def step(self, param, grad, slots, learning_rate, t):
        inner = tuple(range(1, grad.ndim))
        slots["accumulator"] = total = slots["accumulator"] + (grad * grad).mean(axis=inner)
        return param - learning_rate * grad / (np.sqrt(total) + self.epsilon).reshape(total.shape + (1,) * len(inner))


@dataclass
class AdaBelief(Rule):
    """Zhuang et al., arXiv 2010.07468, algorithm 2."""

    in_keras = False
    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}, {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 1e-3}
    names = ("momentum", "belief")

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-16

    def step(self, param, grad, slots, learning_rate, t):
        slots["momentum"] = mean = _average(slots["momentum"], grad, self.beta_1)
        slots["belief"] = belief = _average(slots["belief"], (grad - mean) ** 2, self.beta_2) + self.epsilon
        denominator = np.sqrt(belief / (1 - self.beta_2**t)) + self.epsilon
        return param - learning_rate * mean / (1 - self.beta_1**t) / denominator


@dataclass
class RAdam(Rule):
    """Liu et al., arXiv 1908.03265, algorithm 2, with an epsilon, and rectified from rho > 5 on."""

    in_keras = False
    rate = 0.01
    own = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}, {"beta_1": 0.5, "beta_2": 0.8, "epsilon": 1e-3}
    names = ("momentum", "velocity")

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def step(self, param, grad, slots, learning_rate, t):
        momentum, velocity = _adam_moments(self, grad, slots)
        mean, most = momentum / (1 - self.beta_1**t), 2 / (1 - self.beta_2) - 1
        length = most - 2 * t * self.beta_2**t / (1 - self.beta_2**t)
        if length <= 5:
            return param - learning_rate * mean
        rectifier = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length) * (1 - self.beta_2**t)
        return param - learning_rate * math.sqrt(rectifier) * mean / (np.sqrt(velocity) + self.epsilon)


@dataclass
class Adan(Rule):
    """Xie et al., arXiv 2208.06677, algorithm 1, with the bias corrections of the authors' code."""

    in_keras = False
    rate = 0.01
    own = (
        {"beta_1": 0.9, "beta_2": 0.8, "beta_3": 0.95, "epsilon": 1e-2},
        {"beta_1": 0.5, "beta_2": 0.6, "beta_3": 0.7, "epsilon": 1e-3},
    )
    names = ("momentum", "difference", "velocity", "previous_gradient")

    beta_1: float = 0.98
    beta_2: float = 0.92
    beta_3: float = 0.99
    epsilon: float = 1e-8

    def step(self, param, grad, slots, learning_rate, t):
        change = grad - slots["previous_gradient"] if t > 1 else np.zeros_like(grad)
        slots["previous_gradient"] = grad
        slots["momentum"] = mean = _average(slots["momentum"], grad, self.beta_1)
        slots["difference"] = drift = _average(slots["difference"], change, self.beta_2)
        slots["velocity"] = squares = _average(slots["velocity"], (grad + self.beta_2 * change) ** 2, self.beta_3)
        update = mean / (1 - self.beta_1**t) + self.beta_2 * drift / (1 - self.beta_2**t)
        return param - learning_rate * update / (np.sqrt(squares / (1 - self.beta_3**t)) + self.epsilon)


RULES = {name: kind for name, kind in globals().items() if isinstance(kind, type) and hasattr(kind, "rate")}
LEARNING_RATES = {"SGD": 0.01, "ScheduleFreeAdamW": 0.0025, "RowwiseAdagrad": 0.01}  # every other default is 0.001
WEIGHT_DECAYS = {"AdamW": 0.004, "Muon": 0.004}  # every other default is None


def _average(old, new, keep):
    return keep * old + (1 - keep) * new


def _adam_moments(rule, grad, slots):
    slots["momentum"] = _average(slots["momentum"], grad, rule.beta_1)
    slots["velocity"] = _average(slots["velocity"], grad * grad, rule.beta_2)
    return slots["momentum"], slots["velocity"]


def _norm(array):
    return math.sqrt(np.sum(array * array))


def _rms(array):
    return np.sqrt(np.mean(array * array))


def exponential_decay(step, initial_learning_rate, decay_steps, decay_rate, staircase=False):
    periods = step // decay_steps if staircase else step / decay_steps
    return initial_learning_rate * decay_rate**periods


def inverse_time_decay(step, initial_learning_rate, decay_steps, decay_rate, staircase=False):
    periods = step // decay_steps if staircase else step / decay_steps
    return initial_learning_rate / (1 + decay_rate * periods)


def piecewise_constant_decay(step, boundaries, values):
    return values[sum(step > boundary for boundary in boundaries)]


def polynomial_decay(step, initial_learning_rate, decay_steps, end_learning_rate=1e-4, power=1.0, cycle=False):
    horizon = decay_steps * max(1, math.ceil(step / decay_steps)) if cycle else decay_steps
    remaining = 1 - min(step, horizon) / horizon
    return (initial_learning_rate - end_learning_rate) * remaining**power + end_learning_rate


def cosine_decay(step, initial_learning_rate, decay_steps, alpha=0.0, warmup_target=None, warmup_steps=0):
    """Loshchilov and Hutter, arXiv 1608.03983, after an optional linear warm-up."""
    peak = initial_learning_rate if warmup_target is None else warmup_target
    warmup_steps = 0 if warmup_target is None else warmup_steps
    if step < warmup_steps:
        return initial_learning_rate + (peak - initial_learning_rate) * step / warmup_steps
    progress = min(step - warmup_steps, decay_steps) / decay_steps
    return peak * ((1 - alpha) * 0.5 * (1 + math.cos(math.pi * progress)) + alpha)


def cosine_decay_restarts(step, initial_learning_rate, first_decay_steps, t_mul=2.0, m_mul=1.0, alpha=0.0):
    """Loshchilov and Hutter, arXiv 1608.03983 (SGDR)."""
    start, length, height = 0.0, float(first_decay_steps), 1.0
    while step >= start + length:
        start, length, height = start + length, length * t_mul, height * m_mul
    cosine = 0.5 * height * (1 + math.cos(math.pi * (step - start) / length))
    return initial_learning_rate * ((1 - alpha) * cosine + alpha)


SCHEDULES = {
    "ExponentialDecay": exponential_decay,
    "InverseTimeDecay": inverse_time_decay,
    "PiecewiseConstantDecay": piecewise_constant_decay,
    "PolynomialDecay": polynomial_decay,
    "CosineDecay": cosine_decay,
    "CosineDecayRestarts": cosine_decay_restarts,
}


@dataclass
class Common:
    """The hyper-parameters that every optimizer accepts."""

    learning_rate: object
    weight_decay: float | None
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float | None = None
    gradient_accumulation_steps: int | None = None


class Oracle:
    """One optimizer and its parameters. `learning_rate` may be a number, a callable or (schedule name, arguments).

    `undecayed` holds indices of parameters without weight decay, `multipliers` maps indices to factors of the rate.
    The moving average moves, and overwrites, on real updates only; in Keras also on accumulation micro-steps.
    """

    def __init__(self, name, kwargs, params, paths=None, undecayed=(), multipliers=None):
        common = {key: value for key, value in kwargs.items() if key in inspect.signature(Common).parameters}
        own = {key: value for key, value in kwargs.items() if key not in common}
        defaults = {"learning_rate": LEARNING_RATES.get(name, 0.001), "weight_decay": WEIGHT_DECAYS.get(name)}
        self.rule, self.common = RULES[name](**own), Common(**(defaults | common))
        self.params = [np.array(param) for param in params]
        self.paths = paths or [str(index) for index in range(len(params))]
        self.undecayed, self.multipliers = undecayed, multipliers or {}
        self.calls = self.iterations = 0
        self._slots = [self.rule.slots(param, path) for param, path in zip(self.params, self.paths, strict=True)]
        self._sums = [np.zeros_like(param) for param in self.params]
        self._averages = [np.zeros_like(param) for param in self.params]

    @property
    def slots(self):
        """{slot name: [array or None per parameter]}, the moving average and the accumulated gradients included."""
        names = dict.fromkeys(name for slots in self._slots for name in slots)
        found = {name: [slots.get(name) for slots in self._slots] for name in names}
        if self.common.use_ema:
            found["average"] = self._averages
        if self.common.gradient_accumulation_steps:
            found["gradient_accumulator"] = self._sums
        return found

    def apply(self, grads):
        """Takes one gradient per parameter; returns the parameters after it."""
        learning_rate = self._learning_rate()
        grads = [np.asarray(grad, param.dtype) for grad, param in zip(grads, self.params, strict=True)]
        if self.common.loss_scale_factor:
            grads = [grad / self.common.loss_scale_factor for grad in grads]
        self.calls += 1
        grads = self._accumulated(grads)
        if grads is not None:
            self._update(self._clipped(grads), learning_rate)
        return self.params

    def _learning_rate(self):
        learning_rate = self.common.learning_rate
        if isinstance(learning_rate, tuple):
            schedule, arguments = learning_rate
            return SCHEDULES[schedule](self.calls, **arguments)
        return learning_rate() if callable(learning_rate) else learning_rate

    def _accumulated(self, grads):
        """The mean gradient of a window at its end, None before."""
        steps = self.common.gradient_accumulation_steps
        if not steps:
            return grads
        self._sums = [total + grad for total, grad in zip(self._sums, grads, strict=True)]
        if self.calls % steps:
            return None
        means = [total / steps for total in self._sums]
        self._sums = [np.zeros_like(total) for total in self._sums]
        return means

    def _clipped(self, grads):
        clip = self.common
        if clip.clipnorm:
            return [grad * (clip.clipnorm / max(_norm(grad), clip.clipnorm)) for grad in grads]
        if clip.global_clipnorm:
            norm = math.sqrt(sum(np.sum(grad * grad) for grad in grads))
            return [grad * (clip.global_clipnorm / max(norm, clip.global_clipnorm)) for grad in grads]
        if clip.clipvalue:
            return [np.clip(grad, -clip.clipvalue, clip.clipvalue) for grad in grads]
        return grads

    def _update(self, grads, learning_rate):
        self.params = [self._updated(index, grad, learning_rate) for index, grad in enumerate(grads)]
        if self.common.use_ema:
            self._move_averages()
        self.iterations += 1

    def _updated(self, index, grad, learning_rate):
        param, slots = self.params[index], self._slots[index]
        learning_rate = learning_rate * self.multipliers.get(index, 1.0)
        decay = self.rule.weight_decay(slots, self.common.weight_decay)
        if decay is not None and index not in self.undecayed:
            param = param - param * (decay * learning_rate)
        updated = self.rule.step(param, grad, slots, learning_rate, self.iterations + 1)
        # Arithmetic turns 0-d arrays into NumPy scalars.
        slots.update({name: np.asarray(slot) for name, slot in slots.items()})
        return np.asarray(updated)

    def _move_averages(self):
        keep = self.common.ema_momentum if self.iterations else 0.0
        pairs = zip(self._averages, self.params, strict=True)
        self._averages = [np.asarray(_average(average, param, keep)) for average, param in pairs]
        frequency = self.common.ema_overwrite_frequency
        if frequency and (self.iterations + 1) % frequency == 0:
            self.params = list(self._averages)


def run(name, kwargs, params, grads_per_step, **options):
    """The parameters after each step, a list per step; `options` are those of `Oracle`."""
    oracle = Oracle(name, kwargs, params, **options)
    return [oracle.apply(grads) for grads in grads_per_step]
