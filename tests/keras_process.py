"""Fixtures of the tests that need Keras, on the backend of their process; see `environments`."""

import pytest
from environments import backend_of_this_process


@pytest.fixture(scope="session")
def keras():
    """Keras, on the backend of this process."""
    if backend_of_this_process() == "numpy":
        import keras_reference

        return keras_reference.import_keras()
    import keras

    return keras


@pytest.fixture
def on_backend(backend, keras):
    """That Keras has the backend which the test is for."""
    assert keras.backend.backend() == backend


@pytest.fixture(scope="session")
def fast(keras):
    """``fastopt.keras``."""
    import fastopt.keras

    return fastopt.keras
