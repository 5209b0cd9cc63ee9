"""Train a network on handwritten digits with numbers kept in several formats: see `format_curves`, which prints it.

The data are those of `fastopt train`, the network is its own with wider layers: all matrices are large enough for slots
of 8 bits. It works out loss and gradients in float32; `fastopt.Adam` steps arrays that its weights are copied from
before each step. torch is not needed.
"""

import ml_dtypes
import numpy as np

import fastopt
from fastopt.cli.data import CLASSES, load_digits
from fastopt.cli.mlp import Perceptron

FORMATS = {
    "float32": (np.float32, {}),
    "bfloat16, at random": (ml_dtypes.bfloat16, {"stochastic_rounding": True, "slot_dtype": "bfloat16"}),
    "bfloat16, split masters": (ml_dtypes.bfloat16, {"master_weights": "split"}),
    "float32, slots in 8 bits": (np.float32, {"slot_dtype": "8bit"}),
    "bfloat16, nearest": (ml_dtypes.bfloat16, {}),
}
"""The last one is what not to do."""

BATCH, HIDDEN = 32, (512, 512)


def trained(kind, seed, epochs=10, hidden=HIDDEN):
    """Loss and accuracy on unseen digits, and loss on those that were trained with, after the last epoch."""
    dtype, options = FORMATS[kind]
    seen, unseen = load_digits(np.dtype(np.float32))
    rng = np.random.default_rng(seed)
    model = Perceptron((seen.inputs.shape[1], *hidden, CLASSES), np.dtype(np.float32), rng)
    weights = model.params.arrays
    kept = [weight.astype(dtype) for weight in weights]
    steps = epochs * (len(seen.labels) // BATCH)
    optimizer = fastopt.Adam(fastopt.schedules.WarmupCosine(1e-3, steps // 20, steps), seed=seed, **options)
    optimizer.build(kept)
    for _ in range(epochs):
        order = rng.permutation(len(seen.labels))
        for batch in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
            model.loss_and_gradients(seen.inputs[batch], seen.labels[batch])
            optimizer.apply(model.grads.arrays)
            for weight, array in zip(weights, kept, strict=True):
                weight[...] = array
    return (*model.evaluate(*unseen), model.evaluate(*seen)[0])
