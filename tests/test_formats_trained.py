"""Storage formats in training: a network on digits ends where float32 takes it. See bench/format_digits.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
SEEDS, EPOCHS, HIDDEN = range(3), 3, (96, 64)
"""So that two of three matrices are kept in 8 bits."""


@pytest.fixture(scope="module")
def ends():
    """Loss and accuracy on unseen digits, and loss on those seen, by format; an array [seeds, 3] each."""
    pytest.importorskip("sklearn", reason="brings the digits")
    threads = pytest.importorskip("threadpoolctl", reason="comes with scikit-learn")
    trained = runpy.run_path(str(BENCH / "format_digits.py"))
    with threads.threadpool_limits(1):  # matrices as small as these are no faster with more
        return {kind: np.array([trained["trained"](kind, seed, EPOCHS, HIDDEN) for seed in SEEDS])
                for kind in trained["FORMATS"]}  # fmt: skip


@pytest.mark.parametrize("kind", ["bfloat16, at random", "bfloat16, split masters", "float32, slots in 8 bits"])
def test_formats_differ_by_less_than_seeds_do(ends, kind):
    """In the mean, and of one seed by a tenth of that; accuracies by one in a hundred."""
    exact, found = ends["float32"], ends[kind]
    assert (exact[:, 1] > 0.6).all()
    spread = np.ptp(exact, axis=0)
    for column in (0, 2):
        assert exact[:, column].min() < found[:, column].mean() < exact[:, column].max()
        assert (abs(found - exact)[:, column] < 0.1 * spread[column]).all()
    assert (abs(found - exact)[:, 1] <= 0.01).all()


def test_the_nearest_bfloat16_does_not_keep_up(ends):
    """Or nothing were shown: what is known to lose small steps must lie outside."""
    exact, found = ends["float32"], ends["bfloat16, nearest"]
    assert found[:, 0].mean() > exact[:, 0].max() and found[:, 2].mean() > exact[:, 2].max()
