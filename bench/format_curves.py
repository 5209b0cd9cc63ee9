"""Train a small transformer, and a network on digits, with numbers kept in several formats, three seeds each.

    python bench/format_curves.py [--steps 2000] [--epochs 10] [--seeds 3] [--picture docs/performance/formats.png]

The text is the documentation that ships with Python. torch works out loss and gradients, in float32; fastopt.AdamW
steps NumPy arrays, which the model's weights are copied from before each step. Losses are means over the last tenth of
the steps, on text that no step has seen; the picture has their curves. The digits are in `format_digits`: losses after
the last epoch, on digits that no step has seen. ``--steps 0`` and ``--epochs 0`` leave one of them out. What is to be
seen is whether formats differ by more than seeds do.
"""

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics

import format_digits
import numpy as np
import torch
from format_digits import FORMATS

import fastopt

CONTEXT, BATCH, WIDTH, LAYERS = 64, 16, 64, 2


class Model(torch.nn.Module):
    """A causal transformer over characters."""

    def __init__(self, characters):
        super().__init__()
        self.embedding = torch.nn.Embedding(characters, WIDTH)
        self.position = torch.nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, characters)

    def forward(self, text):
        """Logits of the character after each."""
        mask = torch.nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        return self.head(self.layers(self.embedding(text) + self.position, mask=mask, is_causal=True))


def text():
    """Numbers of characters, the last tenth apart, and how many characters there are."""
    letters = "".join(topics[name] for name in sorted(topics))
    known = {letter: number for number, letter in enumerate(sorted(set(letters)))}
    numbers = torch.tensor([known[letter] for letter in letters])
    return numbers[: -len(numbers) // 10], numbers[-len(numbers) // 10 :], len(known)


def batch_of(numbers, rng):
    """Texts, and what follows each character of them."""
    starts = rng.integers(0, len(numbers) - CONTEXT - 1, BATCH)
    rows = torch.stack([numbers[start : start + CONTEXT + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def loss_of(model, texts, following):
    return torch.nn.functional.cross_entropy(model(texts).flatten(0, 1), following.flatten())


def curve(kind, seed, steps):
    """Losses on unseen text, one in every 20 steps."""
    dtype, options = FORMATS[kind]
    seen, unseen, characters = text()
    torch.manual_seed(seed)
    model, rng = Model(characters), np.random.default_rng(seed)
    weights = list(model.parameters())
    kept = [weight.detach().numpy().astype(dtype) for weight in weights]
    rate = fastopt.schedules.WarmupCosine(3e-3, steps // 20, steps)
    optimizer = fastopt.AdamW(rate, weight_decay=0.01, global_clipnorm=1.0, seed=seed, **options)
    optimizer.build(kept)
    losses = []
    for step in range(steps):
        for weight, array in zip(weights, kept, strict=True):
            weight.data.copy_(torch.from_numpy(array.astype(np.float32)))
            weight.grad = None
        loss_of(model, *batch_of(seen, rng)).backward()
        optimizer.apply([weight.grad.numpy() for weight in weights])
        if step % 20 == 19:
            with torch.no_grad():
                losses.append(float(loss_of(model, *batch_of(unseen, np.random.default_rng(step)))))
    return losses


def draw(curves, path):
    """One line per format, its seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for kind, runs in curves.items():
        smooth = np.array([np.convolve(run, np.ones(5) / 5, "valid") for run in runs])
        steps = 20 * (np.arange(smooth.shape[1]) + 3)
        (line,) = axes.plot(steps, smooth.mean(axis=0), label=kind, linewidth=1.2)
        axes.fill_between(
            steps, smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0
        )
    axes.set(
        xlabel="step",
        ylabel="loss on unseen text",
        ylim=(None, max(run[min(2, len(run) - 1)] for run in curves["float32"])),
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def curves_of_text(seeds, steps):
    """Losses of every seed, by format; prints their last tenths."""
    curves = {}
    print(f"{'text':26} {'mean':>7} {'spread':>7}  each seed")
    for kind in FORMATS:
        curves[kind] = [curve(kind, seed, steps) for seed in range(seeds)]
        show(kind, [np.mean(run[-math.ceil(len(run) / 10) :]) for run in curves[kind]])
    return curves


def show_digits(seeds, epochs):
    print(f"{'digits':26} {'mean':>7} {'spread':>7}  each seed; accuracy, loss of those seen")
    for kind in FORMATS:
        losses, accuracies, seen = zip(
            *(format_digits.trained(kind, seed, epochs) for seed in range(seeds)), strict=True
        )
        show(kind, losses, f"; {np.mean(accuracies):.4f}, {np.mean(seen):.4f} ± {np.ptp(seen) / 2:.4f}")


def show(kind, losses, more=""):
    each = " ".join(f"{loss:.4f}" for loss in losses)
    print(f"{kind:26} {np.mean(losses):7.4f} {np.ptp(losses):7.4f}  {each}{more}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.epochs:
        show_digits(options.seeds, options.epochs)
    if options.steps:
        curves = curves_of_text(options.seeds, options.steps)
        if options.picture:
            draw(curves, options.picture)


if __name__ == "__main__":
    main()
