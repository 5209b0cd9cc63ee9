"""Connectionist temporal classification: the probability of a sequence of labels, over all ways to spread it on steps.

Source: Graves et al. 2006, the forward-backward algorithm. All of it is float64, in logarithms.

The states of n labels are blank, label, blank, …, blank: 2 n + 1. At each step a path stays, goes on by one state, or
by two from a label to the next unless they are the same.
"""

import math

import numpy as np

from ..compile._jit import callee
from ..compile.folds import largest_of_row
from ..cpu.rowwise import GRADIENT, table_of
from .loops import arrays_of, row_scale

DTYPE = np.float32  # replaced in each specialisation (see rowwise.py)


def ctc(first, last, handle, options):
    """Sequences ``first`` to ``last``: −log of the probability of their labels, int64 [sequences, most labels].

    A label of 0 ends the labels. Predictions and the gradient are [sequences · steps, classes], logits; class 0 is the
    blank. All else as of the loops in loops.py.
    """
    labels = table_of(handle, 0, np.int64)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    steps, most = prediction.shape[0] // labels.shape[0], 2 * labels.shape[1] + 1
    forward, norms = np.empty((steps, most)), np.empty(steps)
    emitted, backward, classes = np.empty(most), np.empty(most), np.empty(most, np.int64)
    for sequence in range(first, last):
        logits = prediction[sequence * steps : (sequence + 1) * steps]
        states = _states(labels[sequence], classes)
        for step in range(steps):
            norms[step] = _log_of_sum(logits[step])
            _emit(logits[step], norms[step], classes, emitted, states)
            _advance(forward, step, emitted, classes, states)
        likelihood = _log_add(forward[steps - 1, states - 1], forward[steps - 1, states - 2] if states > 1 else -np.inf)
        sums[sequence, 0] = -likelihood
        if options & GRADIENT:
            scale = row_scale(table, weights, sequence, options) if likelihood > -np.inf else DTYPE(np.nan)
            slopes = gradient[sequence * steps : (sequence + 1) * steps]
            for state in range(states):
                backward[state] = 0.0 if state >= states - 2 else -np.inf
            for step in range(steps - 1, -1, -1):
                _emit(logits[step], norms[step], classes, emitted, states)
                _derive(logits[step], norms[step], forward[step], backward, likelihood, classes, states, slopes[step])
                _scale(slopes[step], scale)
                _retreat(backward, emitted, classes, states)


@callee
def _states(labels, classes):
    """Write the class of each state; their number."""
    states = 1
    classes[0] = 0
    for label in labels:
        if label == 0:
            break
        classes[states], classes[states + 1] = label, 0
        states += 2
    return states


@callee
def _log_of_sum(logits):
    peak = np.float64(largest_of_row(logits))
    total = 0.0
    for i in range(logits.size):
        total += math.exp(np.float64(logits[i]) - peak)
    return peak + math.log(total)


@callee
def _emit(logits, norm, classes, emitted, states):
    """The logarithm of the probability of each state's class."""
    for state in range(states):
        emitted[state] = np.float64(logits[classes[state]]) - norm


@callee
def _advance(forward, step, emitted, classes, states):
    """The probability of all paths that are in each state at a step."""
    for state in range(states):
        if step == 0:
            arrived = 0.0 if state <= 1 else -np.inf
        else:
            before = forward[step - 1]
            arrived = before[state]
            if state >= 1:
                arrived = _log_add(arrived, before[state - 1])
            if state >= 2 and _skips(classes, state):
                arrived = _log_add(arrived, before[state - 2])
        forward[step, state] = arrived + emitted[state]


@callee
def _retreat(backward, emitted, classes, states):
    """Go from the probability of what follows each state after a step to that after the one before."""
    for state in range(states):
        left = backward[state] + emitted[state]
        if state + 1 < states:
            left = _log_add(left, backward[state + 1] + emitted[state + 1])
        if state + 2 < states and _skips(classes, state + 2):
            left = _log_add(left, backward[state + 2] + emitted[state + 2])
        backward[state] = left


@callee
def _skips(classes, state):
    """Whether a state can be reached from two before it."""
    return classes[state] != 0 and classes[state] != classes[state - 2]


@callee
def _derive(logits, norm, forward, backward, likelihood, classes, states, slopes):
    """The probability of each class less that of all paths through it at this step. ``slopes`` may be ``logits``."""
    for i in range(slopes.size):
        slopes[i] = math.exp(np.float64(logits[i]) - norm)
    for state in range(states):
        slopes[classes[state]] -= math.exp(forward[state] + backward[state] - likelihood)


@callee
def _scale(slopes, factor):
    for i in range(slopes.size):
        slopes[i] *= factor


@callee
def _log_add(one, other):
    """log(e^one + e^other)"""
    larger, smaller = (other, one) if one < other else (one, other)
    if larger == -np.inf:
        return smaller
    return larger + math.log1p(math.exp(smaller - larger))
