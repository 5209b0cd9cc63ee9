"""The data of `fastopt train`: 1797 scans of handwritten digits, which scikit-learn brings along."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CLASSES = 10


class Split(NamedTuple):
    """Images [samples, pixels] and their labels [samples]."""

    inputs: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


class Digits(NamedTuple):
    """Four fifths to train with and one fifth to test with, the same in every run."""

    train: Split
    test: Split


def load_digits(dtype: np.dtype[Any]) -> Digits:
    """The scans of 8 × 8 pixels, scaled to [0, 1], less the mean training image."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    inputs, test_inputs, labels, test_labels = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=0
    )
    mean = inputs.mean(axis=0)
    return Digits(
        Split((inputs - mean).astype(dtype), labels),
        Split((test_inputs - mean).astype(dtype), test_labels),
    )
