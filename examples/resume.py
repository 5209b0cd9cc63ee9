"""Trains a network on scanned digits, and goes on where it was, whatever ended it: the same bits as if nothing had.

    python examples/resume.py run.safetensors --epochs 20

Kill it at any moment and start it again: it goes on from the last checkpoint, which holds the parameters, the state of
the optimizer, and what the loop has of its own: where it is in the epoch, the generator that shuffles, the losses.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import fastopt

BATCH = 64


def new_run(seed):
    """Return parameters, and what the loop has of its own, at the start."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden/kernel": rng.normal(scale=0.1, size=(64, 48)).astype(np.float32),
        "hidden/bias": np.zeros(48, np.float32),
        "out/kernel": rng.normal(scale=0.1, size=(48, 10)).astype(np.float32),
        "out/bias": np.zeros(10, np.float32),
    }
    return params, {"epoch": 0, "batch": 0, "order": None, "rng": rng.bit_generator.state, "losses": []}


def loss_and_gradients(params, x, labels):
    """Return the mean crossentropy, and its gradients by the parameters' names."""
    hidden = np.maximum(x @ params["hidden/kernel"] + params["hidden/bias"], 0)
    loss, slope = fastopt.losses.softmax_crossentropy(hidden @ params["out/kernel"] + params["out/bias"], labels)
    back = slope @ params["out/kernel"].T * (hidden > 0)
    return loss, {
        "hidden/kernel": x.T @ back,
        "hidden/bias": back.sum(0),
        "out/kernel": hidden.T @ slope,
        "out/bias": slope.sum(0),
    }


def train(path, epochs, every, seed=0):
    """Train, from a checkpoint if there is one; a line per epoch, and at the end a digest of all bits."""
    if Path(path).exists():
        optimizer, params, own = fastopt.load(path)
        print(f"going on at epoch {own['epoch']}, batch {own['batch']}", flush=True)
    else:
        params, own = new_run(seed)
        optimizer = fastopt.AdamW(fastopt.schedules.CosineDecay(3e-3, 29 * epochs), use_ema=True, global_clipnorm=1.0)
        optimizer.build(params)
    x, labels = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng()
    rng.bit_generator.state = own["rng"]
    while own["epoch"] < epochs:
        if own["batch"] == 0:
            own["order"] = rng.permutation(len(x))
        for start in range(own["batch"] * BATCH, len(x), BATCH):
            chosen = own["order"][start : start + BATCH]
            loss, gradients = loss_and_gradients(params, x[chosen], labels[chosen])
            optimizer.apply(gradients)
            own["losses"].append(float(loss))
            own["batch"] += 1
            own["rng"] = rng.bit_generator.state
            if own["batch"] % every == 0:
                optimizer.save(path, params=True, extra=own, keep=2)
        own["epoch"], own["batch"] = own["epoch"] + 1, 0
        optimizer.save(path, params=True, extra=own, keep=2)
        print(f"epoch {own['epoch']}: loss {np.mean(own['losses'][-29:]):.4f}", flush=True)
    bits = hashlib.sha256(b"".join(params[name].tobytes() for name in sorted(params)))
    for name, value in sorted(optimizer.state_dict().items()):
        bits.update(name.encode() + np.asarray(value).tobytes())
    print("bits", bits.hexdigest(), "of", len(own["losses"]), "steps", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="of the checkpoint")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=10, metavar="N", help="save after so many batches")
    options = parser.parse_args()
    train(options.path, options.epochs, options.every)
