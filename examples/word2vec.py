"""Word vectors of Python's own documentation: skip-gram with negative sampling, written in NumPy, trained by fastopt.

    python examples/word2vec.py [--epochs 12] [--size 64] [--picture words.png]

The text is what ships with Python: the docstrings of the standard library, and the pages of help(). Nothing is
downloaded. Each of two tables has a vector for every word; a batch touches some thousand of them, many times over, so
their gradients are `fastopt.RowGradient`s. The method: Mikolov et al. 2013, https://arxiv.org/abs/1310.4546.
"""

import argparse
import ast
import collections
import pydoc_data.topics
import re
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastopt

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages"}
WORDS = ["red", "month", "three", "directory", "socket", "left", "thread", "encode", "integer", "true"]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Text(NamedTuple):
    """Words by number, the most frequent first."""

    words: list[str]
    counts: np.ndarray  # how often each occurs
    ids: np.ndarray  # the words of all texts, one after the other
    origin: np.ndarray  # the number of the text that each of them is in


def docstrings():
    """Yield all docstrings of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            yield from filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, DOCUMENTED)))


def read(source, least):
    """Return the text; words that occur less than ``least`` times are left out."""
    pages = [page for _, page in sorted(pydoc_data.topics.topics.items())] if source != "docstrings" else []
    texts = [re.findall("[a-z]+", text.lower()) for text in [*pages, *(docstrings() if source != "help" else ())]]
    occurs = collections.Counter(word for text in texts for word in text)
    words = sorted((word for word in occurs if occurs[word] >= least), key=lambda word: (-occurs[word], word))
    number = {word: k for k, word in enumerate(words)}
    places = np.array([(number[word], k) for k, text in enumerate(texts) for word in text if word in number])
    return Text(words, np.array([occurs[word] for word in words]), *places.T)


def pairs(text, options, random):
    """Return words and their neighbours, [n, 2], shuffled; of frequent words some, of near neighbours more."""
    chosen = random.random(len(text.ids)) < np.sqrt(options.sample * len(text.ids) / text.counts)[text.ids]
    ids, origin = text.ids[chosen], text.origin[chosen]
    found = []
    for distance in range(1, options.window + 1):
        wanted = random.random(len(ids) - distance) < 1 - (distance - 1) / options.window
        wanted &= origin[distance:] == origin[:-distance]
        both = np.stack([ids[distance:][wanted], ids[:-distance][wanted]], axis=1)
        found += [both, both[:, ::-1]]
    return random.permutation(np.concatenate(found))


def loss_and_gradients(vectors, outputs, centers, others):
    """Return the loss, and its gradients by the rows of both tables.

    For each center w with the vector v, ``others`` has its neighbour, whose output vector is u₀, and words that chance
    brought, u₁ … uₖ. The loss is Σ −log σ(v·u₀) − Σᵢ log σ(−v·uᵢ), the gradient by v·uᵢ is σ(v·uᵢ), less 1 if i = 0.
    """
    v, u = vectors[centers], outputs[others]  # [n, size], [n, 1 + k, size]
    products = np.matmul(u, v[:, :, None])[:, :, 0]
    loss = np.logaddexp(0, products).sum() - products[:, 0].sum()
    slopes = 0.5 * np.tanh(0.5 * products) + 0.5  # σ, for products of any size
    slopes[:, 0] -= 1
    by_v, by_u = np.matmul(slopes[:, None, :], u)[:, 0], slopes[:, :, None] * v[:, None, :]
    by_u = by_u.reshape(-1, by_u.shape[-1])
    return loss, [fastopt.RowGradient(centers, by_v), fastopt.RowGradient(others.ravel(), by_u)]


def train(text, options):
    """Return a vector for each word, of length 1."""
    random = np.random.default_rng(0)
    vectors = random.normal(0, 0.1, (len(text.words), options.size)).astype(np.float32)
    outputs = np.zeros_like(vectors)
    optimizer = fastopt.RowwiseAdagrad(options.rate)
    optimizer.build([vectors, outputs])
    odds = np.cumsum(text.counts**0.75)
    for epoch in range(1, options.epochs + 1):
        total, found = 0.0, pairs(text, options, random)
        for batch in np.array_split(found, -(-len(found) // options.batch)):
            chance = np.searchsorted(odds, random.random((len(batch), options.negatives)) * odds[-1], side="right")
            others = np.concatenate([batch[:, 1:], chance], axis=1)
            loss, gradients = loss_and_gradients(vectors, outputs, batch[:, 0], others)
            optimizer.apply(gradients)
            total += loss
        print(f"epoch {epoch:2}  loss {total / len(found):.4f}", flush=True)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(text, vectors, word, count):
    """Return the words whose vectors have the smallest angles with that of ``word``."""
    order = np.argsort(-vectors @ vectors[text.words.index(word)], kind="stable")
    return [text.words[k] for k in order if text.words[k] != word][:count]


def flatten(vectors):
    """Return points in the plane in which the vectors differ most: two principal components."""
    centered = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    return centered @ axes[:2].T


def draw(path, text, vectors, groups):
    """Write a picture of groups of words, a colour for each."""
    from matplotlib.figure import Figure  # comes with the extra "demo"

    names = [(word, k) for k, group in enumerate(groups) for word in group]
    points = flatten(vectors[[text.words.index(word) for word, _ in names]])
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots()
    for (word, k), point in zip(names, points, strict=True):
        axes.plot(*point, ".", color=f"C{k}")
        axes.annotate(word, point, xytext=(3, 3), textcoords="offset points", fontsize=8, color=f"C{k}")
    axes.set_axis_off()
    figure.savefig(path, dpi=120)


def parse():
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    for name, default, text in [
        ("epochs", 12, "how often the text is gone through"),
        ("size", 64, "elements of a vector"),
        ("rate", 0.05, "learning rate"),
        ("batch", 4096, "pairs of words to a step"),
        ("window", 5, "distance of the farthest neighbour"),
        ("negatives", 5, "words by chance to each pair"),
        ("sample", 1e-3, "of words more frequent than that some occurrences are left out"),
        ("least", 8, "occurrences of the rarest word"),
    ]:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--text", default="both", choices=["help", "docstrings", "both"], help="(default: both)")
    parser.add_argument("--words", nargs="+", default=WORDS, help=f"whose neighbours are shown (default: {WORDS})")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draws these words and their neighbours")
    return parser.parse_args()


def main():
    """Read, train, show."""
    options = parse()
    text = read(options.text, options.least)
    print(f"{len(text.ids)} words, {len(text.words)} different ones")
    if unknown := [word for word in options.words if word not in text.words]:
        raise SystemExit(f"not in the text: {', '.join(unknown)}")
    vectors = train(text, options)
    groups = [[word, *nearest(text, vectors, word, 7)] for word in options.words]
    print("\n".join(f"{word:>10}: {' '.join(others)}" for word, *others in groups))
    if options.picture:
        draw(options.picture, text, vectors, groups)


if __name__ == "__main__":
    main()
