"""Writes the checkpoints in tests/data, one set for each version of their format: once, when the version is new.

    python tests/make_checkpoints.py

What they hold follows from the numbers of steps and gradients below, which test_checkpoint_data.py knows, too.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

import fastopt
from fastopt.checkpoint.description import FORMAT
from fastopt.compat import keras_2_3

FOLDER = Path(__file__).parent / "data" / f"checkpoints-{FORMAT}"

MADE = {
    "adam": lambda: fastopt.Adam(1e-2, use_ema=True, gradient_accumulation_steps=2),
    "nadam": lambda: fastopt.Nadam(fastopt.schedules.CosineDecay(0.1, 10)),
    "formats": lambda: fastopt.AdamW(1e-2, master_weights="split", slot_dtype="8bit", seed=5),
    "scaled": lambda: fastopt.LossScaleOptimizer(fastopt.SGD(0.1, momentum=0.9), 4.0, dynamic_growth_steps=3),
    "keras_2_3": lambda: keras_2_3.Adam(lr=0.01, decay=0.1, amsgrad=True),
}
EXTRA = {"epoch": 3, "shuffled": (2, 0, 1), "rng": np.random.default_rng(7).bit_generator.state, "seen": np.arange(3)}


def params_of(name):
    dtype = ml_dtypes.bfloat16 if name == "formats" else np.float32
    return {"w": np.linspace(-1, 1, 4096 + 64).reshape(65, 64).astype(dtype), "b": np.full(3, 0.5, dtype)}


def gradients(number, params):
    """Of a step: small whole multiples of 1/8, the same on any machine."""
    return {
        name: ((np.arange(array.size) * (number + 3)) % 17 - 8).reshape(array.shape).astype(np.float32) / 8
        for name, array in params.items()
    }


def trained(name, steps=3):
    """An optimizer and its parameters after some steps."""
    params, optimizer = params_of(name), MADE[name]()
    optimizer.build(params, {"^b$": {"weight_decay": None}})
    for number in range(steps):
        optimizer.apply(gradients(number, params))
    return optimizer, params


def main():
    """Write them."""
    FOLDER.mkdir(parents=True)
    for name in MADE:
        optimizer, _ = trained(name)
        optimizer.save(FOLDER / f"{name}.safetensors", params=True, extra=EXTRA)


if __name__ == "__main__":
    main()
