"""Losses and activations, value and gradient: fastopt against NumPy and torch. Figures are ratios of one run.

    python bench/losses.py

Without out= the result is a new array, whose memory the system has to provide: more work than the loss, if it is large.
Sides are first checked to compute the same, then timed in turn, round by round; the median counts. Where torch has
several ways, the fastest is the one compared with.
"""

import numpy as np
import torch
from program import Report, parser_of
from torch.nn import functional

import fastopt
from fastopt import activations, losses
from fastopt.bench.measure import interleaved

THREADS = 2
GOALS = {"NumPy": 3.0, "torch": 1.0}
"""Of softmax with crossentropy into memory that is reused, as the others reuse theirs: how much faster, at least."""

LARGE, SMALL = (65_536, 1_000), (4_096, 1_000)


def softmax_in_numpy(logits, labels, rows=128):
    """Softmax and crossentropy of labels in plain NumPy, for as many rows at a time as stay in a core's cache."""
    out, columns = np.empty_like(logits), np.empty((len(labels), 1), logits.dtype)
    share = out.dtype.type(1 / len(labels))

    def in_blocks():
        total = 0.0
        for start in range(0, len(labels), rows):
            work, column, own = (each[start : start + rows] for each in (out, columns, labels))
            given = logits[start : start + rows]
            np.subtract(given, np.max(given, axis=1, keepdims=True, out=column), out=work)
            np.exp(work, out=work)
            np.sum(work, axis=1, keepdims=True, out=column)
            at_label = np.arange(len(own)), own
            total -= np.log(work[at_label] / column[:, 0]).sum(dtype=np.float64)
            np.multiply(work, share / column, out=work)
            work[at_label] -= share
        return total / len(labels), out

    return in_blocks


class SoftmaxInTorch:
    """Softmax and crossentropy of labels in torch."""

    def __init__(self, logits, labels):
        self.logits, self.labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)
        self.rows, self.work = torch.arange(len(labels)), torch.empty(logits.shape)

    def autograd(self):
        """The usual way."""
        self.logits.grad = None
        value = functional.cross_entropy(self.logits, self.labels)
        value.backward()
        return value.item(), self.logits.grad.numpy()

    @torch.no_grad()
    def by_hand(self):
        """Softmax into a buffer that is kept, the gradient in place of it."""
        torch.softmax(self.logits, 1, out=self.work)
        value = -self.work[self.rows, self.labels].log_().mean().item()
        self.work[self.rows, self.labels] -= 1
        return value, self.work.div_(len(self.labels)).numpy()


def softmax_sides(rng):
    """Label → a way to compute softmax with crossentropy and its gradient."""
    logits = rng.standard_normal(LARGE, dtype=np.float32)
    labels = rng.integers(0, LARGE[1], LARGE[0])
    in_torch, out = SoftmaxInTorch(logits, labels), np.empty_like(logits)
    return {
        "fastopt, out=": lambda: losses.softmax_crossentropy(logits, labels, out=out),
        "fastopt": lambda: losses.softmax_crossentropy(logits, labels),
        "NumPy in blocks": softmax_in_numpy(logits, labels),
        "torch autograd": in_torch.autograd,
        "torch by hand": in_torch.by_hand,
    }


def loss_sides(name, theirs, targets, predictions, **options):
    """A loss with its gradient, ours and torch's."""
    compute, out = losses.value_and_grad(name, **options), np.empty_like(predictions)
    given, leaf = torch.from_numpy(targets), torch.from_numpy(predictions).requires_grad_()

    def autograd():
        leaf.grad = None
        value = theirs(leaf, given)
        value.backward()
        return value.item(), leaf.grad.numpy()

    return {
        "fastopt, out=": lambda: compute(targets, predictions, out=out),
        "fastopt": lambda: compute(targets, predictions),
        "torch": autograd,
    }


def forward_sides(name, theirs, x):
    """An activation, ours and torch's."""
    function, out, given = getattr(activations, name), np.empty_like(x), torch.from_numpy(x)
    return {
        "fastopt, out=": lambda: function(x, out=out),
        "fastopt": lambda: function(x),
        "torch": lambda: theirs(given).numpy(),
    }


def backward_sides(name, theirs, x, dy):
    """An activation's derivative, ours and torch's."""
    function, out = activations.backward(name), np.empty_like(x)
    slopes, leaf = torch.from_numpy(dy), torch.from_numpy(x).requires_grad_()
    result, y = theirs(leaf), getattr(activations, name)(x)
    return {
        "fastopt, out=": lambda: function(dy, x, y, out=out),
        "fastopt": lambda: function(dy, x, y),
        "torch": lambda: torch.autograd.grad(result, leaf, slopes, retain_graph=True)[0].numpy(),
    }


def cases():
    """What is measured → its sides, and the goals for the fastest of each peer."""
    rng = np.random.default_rng(0)
    yield "softmax + crossentropy", LARGE, softmax_sides(rng), GOALS
    targets, x = rng.uniform(size=SMALL).round().astype(np.float32), rng.standard_normal(SMALL, dtype=np.float32)
    yield "mse", SMALL, loss_sides("mse", functional.mse_loss, targets, x), {"torch": None}
    with_logits = functional.binary_cross_entropy_with_logits
    sides = loss_sides("bce", with_logits, targets, x, from_logits=True)
    yield "bce of logits", SMALL, sides, {"torch": None}
    for name, theirs in (("gelu", functional.gelu), ("sigmoid", torch.sigmoid)):
        yield f"{name} forward", SMALL, forward_sides(name, theirs, x), {"torch": None}
        yield f"{name} backward", SMALL, backward_sides(name, theirs, x, targets), {"torch": None}


def check(sides):
    """All sides compute the same value and gradient, or the same array."""
    first, *others = (side() for side in sides.values())
    for other in others:
        for one, two in zip(first, other, strict=True) if isinstance(first, tuple) else [(first, other)]:
            np.testing.assert_allclose(two, one, rtol=2e-5, atol=2e-6 * np.abs(one).max())


def main():
    arguments = parser_of(__doc__, rounds=9).parse_args()
    fastopt.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    report = Report("case", "shape", "fastopt ms", "peer", "peer ms", "ratio", "goal")
    for name, shape, sides, goals in cases():
        check(sides)
        seconds = report.attempt(name, interleaved, sides, arguments.rounds) or {}
        for ours in (label for label in seconds if label.startswith("fastopt")):
            for peer, goal in goals.items():
                best = min((label for label in seconds if label.startswith(peer)), key=seconds.get)
                ratio, label = seconds[best] / seconds[ours], name + ours.removeprefix("fastopt")
                figures = f"{1e3 * seconds[ours]:.2f}", best, f"{1e3 * seconds[best]:.2f}", f"{ratio:.2f}"
                goal = goal if goal and ours.endswith("out=") else ""
                row = {"case": label, "shape": list(shape), "peer": best, "speedup": ratio}
                report.add(row, label, shape, *figures, goal)
    report.finish(arguments.results, "losses")


if __name__ == "__main__":
    main()
