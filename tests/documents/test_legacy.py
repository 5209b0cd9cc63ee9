"""The NumPy version of the old releases computes what they computed."""

import numpy as np
import pytest
from documents import legacy


@pytest.mark.parametrize("era", legacy.ERAS)
def test_reproduces_the_recordings(era):
    for case in legacy.recorded(era):
        kwargs = {key: value for key, value in case.kwargs.items() if key != "amsgrad" or era != "keras_1_0"}
        steps = legacy.trajectory(era, case.optimizer, kwargs, legacy.params(), legacy.gradients())
        for ours, theirs in zip(steps, case.steps, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15, err_msg=str(case[:2]))
