"""A multilayer perceptron in plain NumPy: ReLU layers, softmax, cross-entropy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import fastopt

Array = np.ndarray[Any, Any]


class Perceptron:
    """Dense layers whose parameters, and gradients, lie in one flat buffer each.

    Parameters
    ----------
    sizes : sequence of int
        Width of every layer, from the inputs to the classes.
    dtype : numpy.dtype
        float32 or float64, of parameters, gradients and inputs.
    rng : numpy.random.Generator
        Draws the kernels, after He et al. 2015, https://arxiv.org/abs/1502.01852; biases start at zero.

    Attributes
    ----------
    params, grads : FlatBuffer
        What an optimizer is built with, and what it is fed: `backward` writes into the views of ``grads``.
    """

    def __init__(self, sizes: Sequence[int], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
        layers = [_layer(*shape, dtype, rng) for shape in itertools.pairwise(sizes)]
        self.params = fastopt.pack({"layers": layers})
        self.grads = self.params.like()
        self._layers = self.params.views["layers"]
        self._gradients = self.grads.views["layers"]

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained: the padding of the flat buffer does not count."""
        return sum(array.size for array in self.params.arrays)

    def forward(self, inputs: Array) -> list[Array]:
        """What every layer gives for inputs [samples, width]: the inputs first, the logits last."""
        values = [inputs]
        for layer in self._layers:
            if len(values) > 1:
                np.maximum(values[-1], 0, out=values[-1])
            values.append(values[-1] @ layer["kernel"] + layer["bias"])
        return values

    def backward(self, values: list[Array], logit_gradient: Array) -> None:
        """Write the gradients of all parameters, given what `forward` returned."""
        delta = logit_gradient
        for number in reversed(range(len(self._layers))):
            np.matmul(values[number].T, delta, out=self._gradients[number]["kernel"])
            np.sum(delta, axis=0, out=self._gradients[number]["bias"])
            if number:
                delta = delta @ self._layers[number]["kernel"].T
                delta *= values[number] > 0

    def loss_and_gradients(self, inputs: Array, labels: Array, scale: float = 1.0) -> float:
        """Mean loss of a batch; ``grads`` then holds the gradients of ``scale`` times that loss."""
        values = self.forward(inputs)
        losses, probabilities = cross_entropy(values[-1], labels)
        probabilities[np.arange(len(labels)), labels] -= 1
        probabilities *= scale / len(labels)
        self.backward(values, probabilities)
        return float(losses.mean())

    def evaluate(self, inputs: Array, labels: Array) -> tuple[float, float]:
        """Mean loss, and the share of inputs whose label gets the highest logit."""
        logits = self.forward(inputs)[-1]
        losses, _ = cross_entropy(logits, labels)
        return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def _layer(inputs: int, outputs: int, dtype: np.dtype[Any], rng: np.random.Generator) -> dict[str, Array]:
    kernel = rng.normal(scale=np.sqrt(2 / inputs), size=(inputs, outputs))
    return {"kernel": kernel.astype(dtype), "bias": np.zeros(outputs, dtype)}


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Per sample, the negative log of the probability that softmax gives its label; and all the probabilities."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    losses = np.log(totals[:, 0]) - shifted[np.arange(len(labels)), labels]
    return losses, exponentials / totals
