"""Every optimizer in the CUDA simulator: the CPU engine's bits. All rows of the table are in test_cuda_simulator.py."""

import numpy as np
import pytest
import table

import fastopt

pytestmark = [pytest.mark.cuda_simulator, pytest.mark.xdist_group("cuda_rules")]
SHAPES = ((5, 3), (33,), ())
OPTIONS = {"global_clipnorm": 0.5, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.9}


def state_after(name, placed):
    """Parameters and state after steps, the arrays made by ``placed``."""
    rng = np.random.default_rng(1)
    drawn = [[np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES] for _ in range(4)]
    optimizer = getattr(fastopt, name)(learning_rate=table.RATES[name], **OPTIONS)
    optimizer.build([placed(array) for array in drawn[0]])
    for gradients in drawn[1:]:
        optimizer.apply([placed(array) for array in gradients])
    return [*drawn[0], *(value for _, value in sorted(optimizer.state_dict().items())), optimizer.last_grad_norm]


@pytest.mark.parametrize("name", table.RATES)
def test_steps(name):
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    on_host, on_gpu = state_after(name, lambda array: array), state_after(name, FakeCUDAArray)
    assert len(on_host) == len(on_gpu) > 4
    for one, other in zip(on_host, on_gpu, strict=True):
        assert np.array_equal(one, other)
