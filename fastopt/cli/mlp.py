"""A multilayer perceptron in NumPy, with fastopt's activations and losses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import fastopt
from fastopt import activations

from .objective import Array, Objective

Passes = list[tuple[Array, Array]]
"""Of every layer the values that it multiplies, and the sums that it gives."""


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
    activation : str
        Between layers: what `fastopt.activations.get` knows.
    objective : Objective
        What is to be made small.

    Attributes
    ----------
    params, grads : FlatBuffer
        What an optimizer is built with, and what it is fed: `backward` writes into the views of ``grads``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
        activation: str = "relu",
        objective: Objective | None = None,
    ) -> None:
        layers = [_layer(*shape, dtype, rng) for shape in itertools.pairwise(sizes)]
        self.params = fastopt.pack({"layers": layers})
        self.grads = self.params.like()
        self._layers = self.params.views["layers"]
        self._gradients = self.grads.views["layers"]
        self._activation, self._through_activation = activations.get(activation), activations.backward(activation)
        self._objective = objective or Objective()

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained: the padding of the flat buffer does not count."""
        return sum(array.size for array in self.params.arrays)

    def forward(self, inputs: Array) -> Passes:
        """Return what goes through every layer for inputs [samples, width]; the last sums are the logits."""
        passes: Passes = []
        for layer in self._layers:
            values = self._activation(passes[-1][1]) if passes else inputs
            passes.append((values, values @ layer["kernel"] + layer["bias"]))
        return passes

    def backward(self, passes: Passes, logit_gradient: Array) -> None:
        """Write the gradients of all parameters, given what `forward` returned."""
        delta = logit_gradient
        for number in reversed(range(len(self._layers))):
            values = passes[number][0]
            np.matmul(values.T, delta, out=self._gradients[number]["kernel"])
            np.sum(delta, axis=0, out=self._gradients[number]["bias"])
            if number:
                delta = delta @ self._layers[number]["kernel"].T
                self._through_activation(delta, passes[number - 1][1], values, out=delta)

    def loss_and_gradients(self, inputs: Array, labels: Array, scale: float = 1.0) -> float:
        """Mean loss of a batch; ``grads`` then holds the gradients of ``scale`` times that loss."""
        passes = self.forward(inputs)
        loss, logit_gradient = self._objective(passes[-1][1], labels)
        logit_gradient *= scale
        self.backward(passes, logit_gradient)
        return loss

    def evaluate(self, inputs: Array, labels: Array) -> tuple[float, float]:
        """Mean loss, and the share of inputs whose label gets the highest logit."""
        logits = self.forward(inputs)[-1][1]
        loss, _ = self._objective(logits, labels)
        return loss, float((logits.argmax(axis=1) == labels).mean())


def _layer(inputs: int, outputs: int, dtype: np.dtype[Any], rng: np.random.Generator) -> dict[str, Array]:
    kernel = rng.normal(scale=np.sqrt(2 / inputs), size=(inputs, outputs))
    return {"kernel": kernel.astype(dtype), "bias": np.zeros(outputs, dtype)}
