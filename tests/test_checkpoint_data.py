"""Files of every version of checkpoints that there has been load, for ever, and hold what is known of them."""

from pathlib import Path

import make_checkpoints
import numpy as np
import pytest
from rows import rows

import fastopt
from fastopt.checkpoint.description import FORMAT

DATA = Path(__file__).parent / "data"
FILES = {f"{file.parent.name}/{file.stem}": file for file in sorted(DATA.glob("checkpoints-*/*.safetensors"))}


def test_every_version_has_files():
    folders = {f"checkpoints-{version}" for version in range(1, FORMAT + 1)}
    assert {name.split("/")[0] for name in FILES} == folders
    assert {name.split("/")[1] for name in FILES if name.startswith("checkpoints-1/")} == set(make_checkpoints.MADE)


@rows("name", FILES)
def test_files_of_every_version_load_and_hold_what_they_held(name):
    """The same steps, done now, are the reference: they may differ in the last place of another processor's."""
    kind = name.split("/")[1]
    expected, params = make_checkpoints.trained(kind)
    loaded = fastopt.load(FILES[name])
    assert type(loaded.optimizer) is type(expected)
    assert loaded.optimizer.get_config() == expected.get_config()
    assert loaded.optimizer.iterations == expected.iterations
    extra = dict(loaded.extra)
    assert extra.pop("seen").tolist() == [0, 1, 2]
    assert extra == {key: value for key, value in make_checkpoints.EXTRA.items() if key != "seen"}
    for path, array in params.items():
        assert loaded.params[path].dtype == array.dtype
        np.testing.assert_allclose(np.float64(loaded.params[path]), np.float64(array), rtol=1e-6, atol=1e-7)
    state = loaded.optimizer.state_dict()
    for slot, value in expected.state_dict().items():
        if isinstance(value, str):
            assert state[slot] == value
        elif np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(state[slot], value, rtol=1e-6, atol=1e-9)
        else:  # codes, and counts
            assert np.max(np.abs(np.int64(state[slot]) - np.int64(value)), initial=0) <= np.ndim(value)
    gradients = make_checkpoints.gradients(3, params)
    for optimizer in (expected, loaded.optimizer):
        optimizer.apply(gradients)
    for path, array in params.items():
        np.testing.assert_allclose(np.float64(loaded.params[path]), np.float64(array), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not FILES, reason="there are no files")
def test_the_first_file_has_numbers_that_are_known():
    """Not by what fastopt computes today."""
    loaded = fastopt.load(DATA / "checkpoints-1" / "scaled.safetensors")
    assert (loaded.optimizer.iterations, loaded.optimizer.dynamic_scale, loaded.optimizer.step_counter) == (3, 8.0, 0)
    # The gradients of b, times 8; then divided by the scale, which is 4. Momentum 0.9, rate 0.1.
    velocity, b = np.zeros(3), np.full(3, 0.5)
    for gradient in ([-8, -5, -2], [-8, -4, 0], [-8, -3, 2]):
        velocity = 0.9 * velocity - 0.1 * np.array(gradient) / 32
        b += velocity
    np.testing.assert_allclose(loaded.params["b"], b, rtol=1e-6)
