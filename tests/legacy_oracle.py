"""The optimizers of Keras 1.0.2, 2.2.4 and 2.3.1 in plain NumPy, written from the equations of their sources.

Nothing here knows fastopt. An optimizer is a name, a release and all its hyper-parameters under the names of 2.2.4.
"""

import math

import numpy as np

DEFAULTS = {
    "SGD": {"lr": 0.01, "momentum": 0.0, "decay": 0.0, "nesterov": False},
    "RMSprop": {"lr": 0.001, "rho": 0.9, "decay": 0.0},
    "Adagrad": {"lr": 0.01, "decay": 0.0},
    "Adadelta": {"lr": 1.0, "rho": 0.95, "decay": 0.0},
    "Adam": {"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "decay": 0.0, "amsgrad": False},
    "Adamax": {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "decay": 0.0},
    "Nadam": {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "schedule_decay": 0.004, "decay": 0.0},
}


def epsilon(name, release):
    if release != "1.0.2":
        return 1e-7
    return 1e-8 if name in ("Adam", "Adamax") else 1e-6


class Oracle:
    def __init__(self, name, release, params, clipnorm=0.0, clipvalue=0.0, **given):
        self.h = {**DEFAULTS[name], "epsilon": epsilon(name, release), **given}
        self.inside = release == "1.0.2"
        self.decays = name == "SGD" if self.inside else self.h["decay"] > 0
        self.step = getattr(self, name.lower())
        self.clipnorm, self.clipvalue = clipnorm, clipvalue
        self.params = [np.array(param) for param in params]
        self.slots = [[np.zeros_like(param) for _ in range(3)] for param in params]
        self.iterations, self.schedule = 0, 1.0

    def apply(self, grads):
        """One step; the parameters after it."""
        lr = self.h["lr"]
        if self.decays:
            lr *= 1 / (1 + self.h["decay"] * self.iterations)
        grads = self.clipped(grads)
        moved = [self.step(p, g, s, lr) for p, g, s in zip(self.params, grads, self.slots, strict=True)]
        self.params = [np.asarray(param) for param in moved]
        self.iterations += 1
        self.schedule *= self.warmed(self.iterations) if "schedule_decay" in self.h else 1.0
        return self.params

    def clipped(self, grads):
        if self.clipnorm > 0:
            norm = math.sqrt(sum(np.sum(np.square(grad)) for grad in grads))
            grads = [grad * self.clipnorm / norm if norm >= self.clipnorm else grad for grad in grads]
        if self.clipvalue > 0:
            grads = [np.clip(grad, -self.clipvalue, self.clipvalue) for grad in grads]
        return grads

    def scaled(self, grad, total):
        """The gradient over a root of squares."""
        epsilon = self.h["epsilon"]
        return grad / np.sqrt(total + epsilon) if self.inside else grad / (np.sqrt(total) + epsilon)

    def moments(self, g, slots):
        beta_1, beta_2 = self.h["beta_1"], self.h["beta_2"]
        slots[0] = beta_1 * slots[0] + (1 - beta_1) * g
        slots[1] = beta_2 * slots[1] + (1 - beta_2) * g**2
        return slots[0], slots[1]

    def warmed(self, t):
        return self.h["beta_1"] * (1 - 0.5 * 0.96 ** (t * self.h["schedule_decay"]))

    def sgd(self, p, g, slots, lr):
        momentum = self.h["momentum"]
        slots[0] = v = momentum * slots[0] - lr * g
        return p + momentum * v - lr * g if self.h["nesterov"] else p + v

    def rmsprop(self, p, g, slots, lr):
        slots[0] = self.h["rho"] * slots[0] + (1 - self.h["rho"]) * g**2
        return p - lr * self.scaled(g, slots[0])

    def adagrad(self, p, g, slots, lr):
        slots[0] = slots[0] + g**2
        return p - lr * self.scaled(g, slots[0])

    def adadelta(self, p, g, slots, lr):
        rho, epsilon = self.h["rho"], self.h["epsilon"]
        slots[0] = rho * slots[0] + (1 - rho) * g**2
        update = g * np.sqrt(slots[1] + epsilon) / np.sqrt(slots[0] + epsilon)
        slots[1] = rho * slots[1] + (1 - rho) * update**2
        return p - lr * update

    def adam(self, p, g, slots, lr):
        t = self.iterations + 1
        m, v = self.moments(g, slots)
        if self.h["amsgrad"]:
            slots[2] = v = np.maximum(slots[2], v)
        lr = lr * math.sqrt(1 - self.h["beta_2"] ** t) / (1 - self.h["beta_1"] ** t)
        return p - lr * m / (np.sqrt(v) + self.h["epsilon"])

    def adamax(self, p, g, slots, lr):
        beta_1 = self.h["beta_1"]
        slots[0] = beta_1 * slots[0] + (1 - beta_1) * g
        slots[1] = np.maximum(self.h["beta_2"] * slots[1], np.abs(g))
        return p - lr / (1 - beta_1 ** (self.iterations + 1)) * slots[0] / (slots[1] + self.h["epsilon"])

    def nadam(self, p, g, slots, lr):
        t = self.iterations + 1
        now, ahead = self.warmed(t), self.warmed(t + 1)
        product = self.schedule * now
        m, v = self.moments(g, slots)
        mean = (1 - now) * g / (1 - product) + ahead * m / (1 - product * ahead)
        return p - lr * mean / (np.sqrt(v / (1 - self.h["beta_2"] ** t)) + self.h["epsilon"])
