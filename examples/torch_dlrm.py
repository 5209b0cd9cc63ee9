"""A model of clicks with large tables, trained by torch.optim and by fastopt.torch: the same curve, another time.

    python examples/torch_dlrm.py [--optimizer adam] [--rows 200000] [--size 16] [--steps 150]

The model is a small DLRM (Naumov et al. 2019, https://arxiv.org/abs/1906.00091). Its data are made: users see pages
that have tags, and a hidden model says how likely each view is a click. Few users and pages are frequent, most are
rare, so that a batch touches some thousand rows of tables that have far more. The tables' gradients are sparse.

adam: SparseAdam for the tables, and Adam for the rest; adagrad: Adagrad for all.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import fastopt.torch

NUMBERS, TAGS = 8, 4
"""Numeric features of a view, and tags of a page."""


class Batch(NamedTuple):
    """Views of pages by users."""

    numbers: torch.Tensor  # [n, NUMBERS]
    users: torch.Tensor  # [n]
    pages: torch.Tensor  # [n]
    tags: torch.Tensor  # [n, TAGS]
    clicks: torch.Tensor  # [n], 0 or 1
    least_loss: float  # of the hidden model


class World:
    """The hidden model. It makes the same batches in every run."""

    def __init__(self, rows, seed=1):
        self._random, self._rows = np.random.default_rng(seed), rows
        self._users, self._pages, self._tags = self._random.normal(0, [[1.0], [1.0], [0.5]], (3, rows))
        self._weights = self._random.normal(0, 0.4, NUMBERS)

    def batch(self, size):
        """Make the next views."""
        numbers = self._random.normal(size=(size, NUMBERS))
        users, pages = self._zipf(size), self._zipf(size)
        tags = self._zipf((size, TAGS))
        score = numbers @ self._weights + self._users[users] + self._pages[pages] + self._tags[tags].sum(axis=1) - 1
        odds = 1 / (1 + np.exp(-score))
        clicks = self._random.random(size) < odds
        given = (torch.from_numpy(each) for each in (numbers.astype(np.float32), users, pages, tags))
        least = -np.log(np.where(clicks, odds, 1 - odds)).mean()
        return Batch(*given, torch.from_numpy(clicks.astype(np.float32)), least)

    def _zipf(self, shape):
        """Row numbers of which k is as frequent as 1 / k, the frequent ones anywhere in the table."""
        rank = np.exp(self._random.random(shape) * np.log(self._rows)).astype(np.int64)
        return rank * 7919 % self._rows


class Dlrm(nn.Module):
    """Vectors of the user, the page, its tags and the numbers; their products; a net."""

    def __init__(self, rows, size):
        super().__init__()
        self.users, self.pages = (nn.Embedding(rows, size, sparse=True) for _ in range(2))
        self.tags = nn.EmbeddingBag(rows, size, mode="sum", sparse=True)
        for table in (self.users, self.pages, self.tags):
            nn.init.normal_(table.weight, std=0.1)
        self.bottom = nn.Sequential(nn.Linear(NUMBERS, 32), nn.ReLU(), nn.Linear(32, size))
        self.top = nn.Sequential(nn.Linear(4 * size + 6, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, batch):
        parts = [self.users(batch.users), self.pages(batch.pages), self.tags(batch.tags), self.bottom(batch.numbers)]
        vectors = torch.stack(parts, dim=1)
        products = vectors @ vectors.transpose(1, 2)
        one, other = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([vectors.flatten(1), products[:, one, other]], dim=1)).squeeze(1)


class Side:
    """A model, and what trains it."""

    def __init__(self, module, options):
        torch.manual_seed(0)
        self.model = Dlrm(options.rows, options.size)
        tables = [table.weight for table in (self.model.users, self.model.pages, self.model.tags)]
        rest = [*self.model.bottom.parameters(), *self.model.top.parameters()]
        if options.optimizer == "adam":
            self._optimizers = [module.SparseAdam(tables, lr=options.rate), module.Adam(rest, lr=options.rate)]
        else:
            self._optimizers = [module.Adagrad([*tables, *rest], lr=options.rate)]
        self.losses, self.seconds = [], []

    def step(self, batch):
        """Train on a batch; note the loss, and the time that the optimizer takes."""
        loss = functional.binary_cross_entropy_with_logits(self.model(batch), batch.clicks)
        loss.backward()
        start = time.perf_counter()
        for optimizer in self._optimizers:
            optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self.losses.append(loss.item())

    def time_of_step(self):
        """Median in milliseconds, without the first steps, which compile and allocate."""
        return 1e3 * statistics.median(self.seconds[min(3, len(self.seconds) - 1) :])


def show(sides, least):
    """Print both curves, and both times."""
    one, other = (side.losses for side in sides)
    print(f"{'step':>6} {'torch.optim':>12} {'fastopt.torch':>14} {'hidden':>9}")
    width = max(len(one) // 10, 1)
    for end in range(width, len(one) + 1, width):
        means = (statistics.fmean(losses[end - width : end]) for losses in (one, other, least))
        print("{:6} {:12.4f} {:14.4f} {:9.4f}".format(end, *means))
    print(f"greatest difference: {max(abs(a - b) for a, b in zip(one, other, strict=True)):.1e}")
    theirs, ours = (side.time_of_step() for side in sides)
    print(f"optimizer.step(): torch.optim {theirs:.2f} ms, fastopt.torch {ours:.2f} ms, ratio {theirs / ours:.1f}")


def main():
    """Train two models in turns, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="adam", choices=["adam", "adagrad"])
    parser.add_argument("--rows", type=int, default=200_000, help="of each of the three tables (default: 200000)")
    parser.add_argument("--size", type=int, default=16, help="of a vector (default: 16)")
    parser.add_argument("--batch", type=int, default=4096, help="views in a step (default: 4096)")
    parser.add_argument("--steps", type=int, default=150, help="(default: 150)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate (default: 0.01)")
    options = parser.parse_args()
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default; else torch's Adagrad warns that they are
    world, sides = World(options.rows), [Side(module, options) for module in (torch.optim, fastopt.torch)]
    least = []
    for step in range(options.steps):
        batch = world.batch(options.batch)
        least.append(batch.least_loss)
        for side in sides if step % 2 else reversed(sides):
            side.step(batch)
    show(sides, least)


if __name__ == "__main__":
    main()
