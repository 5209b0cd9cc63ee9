"""The NumPy formulas of the old releases give what they computed."""

import pytest
from documents import legacy
from documents.runs import assert_same_steps


@pytest.mark.parametrize("era", legacy.ERAS)
def test_the_formulas_give_the_recordings(era):
    for case in legacy.recorded(era):
        kwargs = {key: value for key, value in case.kwargs.items() if key != "amsgrad" or era != "keras_1_0"}
        assert_same_steps(legacy.trajectory(era, case.optimizer, kwargs), case.steps, rtol=1e-14, atol=1e-15)
