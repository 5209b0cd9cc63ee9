"""What fastopt's public API promises, in plain NumPy and float64: parameter by parameter, one thing after the other.

The formulas are those of Keras 3.15's optimizers (`keras.src.optimizers`), the order of operations is its
`BaseOptimizer.apply`; what fastopt does otherwise, or adds, is what its README and docstrings say. It knows no memory,
no kernel and no plan, and uses nothing of fastopt.
"""

import copy
import math
import re

import numpy as np

ABSENT = "absent"
"""In place of the gradient of a parameter for which a step is not meant."""

LEAST_SCALE, GREATEST_SCALE = 2.0**-126, 2.0**126


# -- rules: the parameter after an update; slots are overwritten -------------------------------------------------------


def sgd(param, grad, slots, rate, t, h):
    """Plain, with momentum, with Nesterov's."""
    if not h["momentum"]:
        return param - rate * grad
    slots["momentum"] = h["momentum"] * slots["momentum"] - rate * grad
    if h["nesterov"]:
        return param + h["momentum"] * slots["momentum"] - rate * grad
    return param + slots["momentum"]


def adam(param, grad, slots, rate, t, h):
    """Adam and AMSGrad."""
    beta_1, beta_2 = h["beta_1"], h["beta_2"]
    slots["momentum"] = beta_1 * slots["momentum"] + (1 - beta_1) * grad
    slots["velocity"] = beta_2 * slots["velocity"] + (1 - beta_2) * grad * grad
    velocity = slots["velocity"]
    if h["amsgrad"]:
        velocity = slots["velocity_hat"] = np.maximum(slots["velocity_hat"], velocity)
    alpha = rate * math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return param - alpha * slots["momentum"] / (np.sqrt(velocity) + h["epsilon"])


def lion(param, grad, slots, rate, t, h):
    """Lion."""
    momentum = slots["momentum"]
    slots["momentum"] = h["beta_2"] * momentum + (1 - h["beta_2"]) * grad
    return param - rate * np.sign(h["beta_1"] * momentum + (1 - h["beta_1"]) * grad)


RULES = {"SGD": sgd, "Adam": adam, "Lion": lion}


def slot_names(kind, hyper):
    """The slots of a rule."""
    if kind == "SGD":
        return ["momentum"] if hyper["momentum"] else []
    if kind == "Adam":
        return ["momentum", "velocity", *(["velocity_hat"] if hyper["amsgrad"] else [])]
    return ["momentum"]


# -- the optimizer -----------------------------------------------------------------------------------------------------


class Model:
    """An optimizer of fastopt, `LossScaleOptimizer` around it included.

    Hyper-parameters that all optimizers share are attributes; those of the rule are in ``hyper``. ``rate`` is a number,
    or a function of this model.
    """

    def __init__(self, kind, hyper, rate, options, scale=None, growth_steps=None):
        self.kind, self.hyper, self.rate = kind, dict(hyper), rate
        self.weight_decay = self.clipnorm = self.clipvalue = self.global_clipnorm = None
        self.use_ema, self.ema_momentum, self.ema_overwrite_frequency = False, 0.99, None
        self.loss_scale_factor = self.gradient_accumulation_steps = None
        self.nonfinite = "propagate"
        vars(self).update(options)
        self.scale, self.growth_steps, self.growth = scale, growth_steps, 0
        self.iterations = self.micro_steps = 0
        self.skipped, self.norm = False, None

    def build(self, paths, params, overrides):
        """Copy the parameters, make the slots."""
        self.paths, self.params = list(paths), [np.array(param, np.float64) for param in params]
        self.settings = [{} for _ in paths]
        for pattern, settings in overrides.items():
            for path, own in zip(paths, self.settings, strict=True):
                if re.search(pattern, path):
                    own.update(settings)
        self.trained = [own.get("trainable", True) for own in self.settings]
        self.excluded = set()
        self.slots = {name: self._zeros() for name in slot_names(self.kind, self.hyper)}
        if self.use_ema:
            self.slots["average"] = [param.copy() for param in self.params]
        if self.gradient_accumulation_steps:
            self.slots["gradient_accumulator"] = self._zeros()

    def _zeros(self):
        return [np.zeros_like(param) for param in self.params]

    @property
    def learning_rate(self):
        """That of the next step."""
        return self.rate(self) if callable(self.rate) else self.rate

    def evaluation_weights(self):
        """The averages of those that are trained."""
        averages = self.slots["average"]
        return [
            average if trained else param
            for average, trained, param in zip(averages, self.trained, self.params, strict=True)
        ]

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self):
        """A copy of what `state_dict` holds: a learning rate, if it is a number."""
        rate = None if callable(self.rate) else self.rate
        return copy.deepcopy((self.slots, self.iterations, self.micro_steps, self.scale, self.growth, rate))

    def load(self, state):
        """Go on from a `state`; hyper-parameters stay, and so does a rate that is no number."""
        slots, self.iterations, self.micro_steps, scale, self.growth, rate = copy.deepcopy(state)
        self.slots.update(slots)
        self.scale = scale
        if rate is not None and not callable(self.rate):
            self.rate = rate

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self, grads):
        """Do what ``apply`` does with a gradient, None or `ABSENT` per parameter; the name of the error, or None."""
        with np.errstate(all="ignore"):
            if self.scale is None:
                return self._apply(grads, 1.0 / (self.loss_scale_factor or 1.0), self.nonfinite)
            refused = self._apply(grads, 1.0 / self.scale, "skip")
            if refused is None:
                self._rescale()
            return refused

    def _rescale(self):
        if self.skipped:
            self.growth, self.scale = 0, max(self.scale * 0.5, LEAST_SCALE)
        elif self.growth == self.growth_steps - 1:
            self.growth, self.scale = 0, min(self.scale * 2.0, GREATEST_SCALE)
        else:
            self.growth += 1

    def _apply(self, given, unscale, nonfinite):
        offered = [k for k, grad in enumerate(given) if self.trained[k] and not isinstance(grad, str)]
        present = [k for k in offered if given[k] is not None]
        if offered and not present:
            return "ValueError"
        if not any(self.trained):
            return None
        steps = self.gradient_accumulation_steps or 1
        updates = (self.micro_steps + 1) % steps == 0
        grads = {k: np.asarray(given[k], np.float64) * unscale for k in present}
        if steps > 1:
            accumulated = self.slots["gradient_accumulator"]
            grads = {k: grad + accumulated[k] if updates else grad for k, grad in grads.items()}
            grads = {k: grad / steps if updates else grad for k, grad in grads.items()}
        self.skipped, self.norm = False, None
        if nonfinite != "propagate" and not all(np.isfinite(grad).all() for grad in grads.values()):
            if nonfinite == "raise":
                return "FloatingPointError"
            self.skipped = True
            return None
        rate = self.learning_rate
        self.micro_steps += 1
        if updates:
            self._update(self._clipped(grads, needs_norm=nonfinite != "propagate"), rate)
        else:
            for k, grad in grads.items():
                accumulated[k] = accumulated[k] + grad
        return None

    def _clipped(self, grads, needs_norm):
        norms = {k: math.sqrt((grad * grad).sum()) for k, grad in grads.items()}
        if self.clipnorm or self.global_clipnorm or needs_norm:
            self.norm = math.sqrt(sum(norm * norm for norm in norms.values()))
        if self.clipnorm:
            return {k: grad * (self.clipnorm / np.maximum(norms[k], self.clipnorm)) for k, grad in grads.items()}
        if self.global_clipnorm:
            factor = np.minimum(self.global_clipnorm / self.norm, 1.0) if self.norm else 1.0
            factor = factor if math.isfinite(self.norm) else math.nan
            return {k: grad * factor for k, grad in grads.items()}
        if self.clipvalue:
            return {k: np.clip(grad, -self.clipvalue, self.clipvalue) for k, grad in grads.items()}
        return grads

    def _update(self, grads, learning_rate):
        t = self.iterations + 1
        for k, grad in grads.items():
            rate = learning_rate * self.settings[k].get("learning_rate_multiplier", 1.0)
            slots = {name: arrays[k] for name, arrays in self.slots.items()}
            param = self.params[k] - self.params[k] * (rate * self._decay(k))
            param = RULES[self.kind](param, grad, slots, rate, t, self.hyper)
            self.params[k] = self._averaged(param, slots, t)
            for name, array in slots.items():
                self.slots[name][k] = array
        if self.gradient_accumulation_steps:
            self.slots["gradient_accumulator"] = self._zeros()
        self.iterations = t

    def _decay(self, k):
        """Of one parameter: none if it is excluded, else its own, else that of all."""
        if k in self.excluded:
            return 0.0
        return self.settings[k].get("weight_decay", self.weight_decay) or 0.0

    def _averaged(self, param, slots, t):
        if not self.use_ema:
            return param
        keep = self.ema_momentum if t > 1 else 0.0
        slots["average"] = keep * slots["average"] + (1 - keep) * param
        overwrites = self.ema_overwrite_frequency and t % self.ema_overwrite_frequency == 0
        return slots["average"].copy() if overwrites else param


# -- learning rates ----------------------------------------------------------------------------------------------------


def a_rate():
    """Always the same."""
    return 0.05


RATES = {
    "a number": (lambda fastopt: 0.1, 0.1),
    "zero": (lambda fastopt: 0.0, 0.0),
    "a schedule": (
        lambda fastopt: fastopt.schedules.InverseTimeDecay(0.1, 2, 0.5),
        lambda model: 0.1 / (1 + 0.5 * model.micro_steps / 2),
    ),
    "a function": (lambda fastopt: a_rate, lambda model: a_rate()),
}
"""What makes the argument ``learning_rate`` of an optimizer, and the same for a `Model`."""
