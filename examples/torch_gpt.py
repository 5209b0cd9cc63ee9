"""A small GPT on characters, trained by torch.optim and by fastopt.torch: the same curve, another optimizer's share.

    python examples/torch_gpt.py [--steps 100] [--width 64] [--layers 4] [--optimizer AdamW] [--text FILE]

Without a text the model learns to write like the source of Python's `argparse`. Nothing is downloaded.
"""

import argparse
import inspect
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import fastopt.torch

CONTEXT = 32


class Block(nn.Module):
    """Attention, then a small net, each beside a shortcut."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_net = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.project(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.back(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.net(self.before_net(x))


class Gpt(nn.Module):
    """Predicts the next character. The embedding and the last layer are one tensor."""

    def __init__(self, characters, width, layers, heads=4):
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        nn.init.normal_(self.characters.weight, std=0.02)
        self.head.weight = self.characters.weight

    def forward(self, text):
        x = self.characters(text) + self.positions(torch.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def groups_of(model):
    """Two groups: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": matrices}, {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]


def batches(text, steps, size, seed=1):
    """Excerpts, each with itself one character on."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=generator)
        excerpts = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        yield excerpts[:, :-1], excerpts[:, 1:]


def train(module, text, characters, options):
    """Losses, seconds in all, and seconds in the optimizer."""
    torch.manual_seed(0)
    model = Gpt(characters, options.width, options.layers)
    optimizer = getattr(module, options.optimizer)(groups_of(model), lr=options.rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps)
    losses, began, own = [], 0.0, 0.0
    for step, (given, wanted) in enumerate(batches(text, options.steps, options.batch)):
        if step == min(3, options.steps - 1):  # compiling and first allocations are over
            began, own = time.perf_counter(), 0.0
        loss = functional.cross_entropy(model(given).flatten(0, 1), wanted.flatten())
        loss.backward()
        start = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        own += time.perf_counter() - start
        schedule.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - began, own


def main():
    """Train twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--optimizer", default="AdamW", choices=["SGD", "RMSprop", "Adam", "AdamW", "NAdam", "Adamax"])
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    source = options.text.read_text() if options.text else inspect.getsource(argparse)
    letters = sorted(set(source))
    text = torch.tensor([letters.index(letter) for letter in source])
    results = {module.__name__: train(module, text, len(letters), options) for module in (torch.optim, fastopt.torch)}
    before, after = (losses for losses, _, _ in results.values())
    print(f"{'step':>6} {'torch.optim':>12} {'fastopt.torch':>14}")
    for step in sorted({*range(0, options.steps, max(options.steps // 10, 1)), options.steps - 1}):
        print(f"{step + 1:6} {before[step]:12.4f} {after[step]:14.4f}")
    print(f"greatest difference: {max(abs(one - other) for one, other in zip(before, after, strict=True)):.1e}")
    for name, (_, seconds, own) in results.items():
        print(f"{name:14} the optimizer takes {100 * own / seconds:4.1f} % of a step")


if __name__ == "__main__":
    main()
