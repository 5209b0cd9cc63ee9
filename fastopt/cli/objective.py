"""What a classifier is trained for: any of fastopt's losses, of its logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import activations, losses

Array = np.ndarray[Any, Any]

DEFAULT = "sparse_categorical_crossentropy"


class Objective:
    """A mean loss over samples, with its gradient by the logits.

    Cross-entropy takes logits and labels in one kernel; every other loss compares probabilities, softmax of the logits,
    with the labels written as one-hot rows.

    Parameters
    ----------
    name : str
        What `fastopt.losses.get` knows.

    Raises
    ------
    ValueError
        If there is no such loss.
    """

    def __init__(self, name: str = DEFAULT) -> None:
        loss = losses.get(name)
        function = getattr(loss, "function", loss)  # a class's name gives an instance
        self._of_logits = function in (losses.categorical_crossentropy, losses.sparse_categorical_crossentropy)
        self._of_probabilities = losses.value_and_grad(name)
        self._through_softmax = activations.backward("softmax")

    def __call__(self, logits: Array, labels: Array) -> tuple[float, Array]:
        """The loss of logits [samples, classes] given labels [samples], and its gradient by the logits."""
        if self._of_logits:
            return losses.softmax_crossentropy(logits, labels)
        probabilities = activations.softmax(logits)
        targets = np.zeros_like(logits)
        targets[np.arange(len(labels)), labels] = 1
        value, gradient = self._of_probabilities(targets, probabilities)
        return value, self._through_softmax(gradient, logits, probabilities, out=gradient)
