"""The examples about embeddings run, small, and learn."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_word_vectors(monkeypatch, capsys, tmp_path):
    arguments = ["--text=help", "--epochs=4", "--size=32", "--batch=512", "--words", "left", "string", "class"]
    run(monkeypatch, "word2vec.py", *arguments, f"--picture={tmp_path / 'words.png'}")
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert losses == sorted(losses, reverse=True) and len(losses) == 4
    assert losses[-1] < 2.5 < 6 * np.log(2)  # what knows nothing starts with
    for word, neighbour in [("left", "right"), ("string", "prefix"), ("class", "derived")]:
        assert neighbour in re.search(rf"{word}: (.*)", printed)[1].split()
    assert (tmp_path / "words.png").read_bytes()[1:4] == b"PNG"


def test_a_word_that_is_not_in_the_text(monkeypatch):
    with pytest.raises(SystemExit, match="not in the text: xyzzy"):
        run(monkeypatch, "word2vec.py", "--text=help", "--words", "left", "xyzzy")


def test_the_gradient_of_word_vectors_against_differences():
    loss_and_gradients = runpy.run_path(str(EXAMPLES / "word2vec.py"))["loss_and_gradients"]
    random = np.random.default_rng(0)
    tables = [random.normal(size=(5, 3)) for _ in range(2)]
    centers, others = random.integers(0, 5, 7), random.integers(0, 5, (7, 4))  # rows are named more than once
    loss, gradients = loss_and_gradients(*tables, centers, others)
    products = np.einsum("ij,ikj->ik", tables[0][centers], tables[1][others]) * [-1, 1, 1, 1]
    np.testing.assert_allclose(loss, np.log(1 + np.exp(products)).sum(), rtol=1e-13)
    for table, gradient in zip(tables, gradients, strict=True):
        found = np.empty_like(table)
        for place in np.ndindex(table.shape):
            kept = table[place]
            table[place] = kept + 1e-5
            above, _ = loss_and_gradients(*tables, centers, others)
            table[place] = kept - 1e-5
            below, _ = loss_and_gradients(*tables, centers, others)
            table[place], found[place] = kept, (above - below) / 2e-5
        np.testing.assert_allclose(gradient.to_dense(table.shape), found, rtol=1e-7, atol=1e-8)


def test_the_plane_of_the_picture():
    """The first two principal components, by the eigenvectors of the covariance; their signs are anybody's."""
    flatten = runpy.run_path(str(EXAMPLES / "word2vec.py"))["flatten"]
    vectors = np.random.default_rng(1).normal(size=(20, 6)) * [1, 2, 3, 4, 5, 6] + 7
    _, axes = np.linalg.eigh(np.cov(vectors.T))
    expected = (vectors - vectors.mean(axis=0)) @ axes[:, :-3:-1]
    np.testing.assert_allclose(np.abs(flatten(vectors)), np.abs(expected), atol=1e-9)


@pytest.mark.parametrize(("optimizer", "most"), [("adam", 1e-6), ("adagrad", 1e-3)])
def test_clicks(optimizer, most, monkeypatch, capsys):
    """Adagrad's first step goes by the signs alone, also of gradients that are zero but for the order of their sums."""
    pytest.importorskip("torch")
    arguments = ["--rows=2000", "--size=4", "--batch=128", "--steps=40", f"--optimizer={optimizer}"]
    run(monkeypatch, "torch_dlrm.py", *arguments)
    printed = capsys.readouterr().out
    table = np.array([line.split() for line in printed.splitlines()[1:11]], float)
    first, *_, last = table[:, 1:]
    assert first[0] > 0.65 and last[0] < 0.57, "the curve falls"
    assert np.all(table[:, 3] < table[:, 1]), "nobody is better than what made the clicks"
    assert float(re.search(r"greatest difference: (\S+)", printed)[1]) < most
    assert float(re.search(r"fastopt.torch (\S+) ms", printed)[1]) > 0
