"""Parameters and state in storage formats, each as on the CPU."""

import numpy as np
import pytest
from on_gpu import require, torch

import fastopt

require()

import fastopt.torch  # noqa: E402

SHAPES = ((33, 7), (5000,), (4351,), ())
FORMATS = {
    "nearest": {"global_clipnorm": 1.0},
    "at random": {"stochastic_rounding": True, "slot_dtype": "bfloat16"},
    "split, 8 bits": {"master_weights": "split", "slot_dtype": "8bit"},
    "Kahan, averages": {"compensation": "kahan", "use_ema": True, "slot_dtype": {"average": "bfloat16"}},
}


def drawn(seed, kind):
    """Tensors on the CPU."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(np.array(rng.normal(size=shape), np.float32)).to(kind) for shape in SHAPES]


def bits(tensors):
    """The bit patterns of tensors of 16 bits, of the same memory if they are on the CPU."""
    return [tensor.detach().cpu().view(torch.int16).numpy().view(np.uint16) for tensor in tensors]


def assert_same(one, other):
    for k, (actual, expected) in enumerate(zip(one, other, strict=True)):
        assert np.array_equal(actual, expected), f"{k}: {np.count_nonzero(actual != expected)} of {actual.size}"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_arrays(name, kind):
    if (name, kind) == ("split, 8 bits", torch.float16):
        pytest.skip("it takes bfloat16 apart")
    cpu, gpu = (fastopt.AdamW(0.01, seed=3, **FORMATS[name]) for _ in range(2))
    arrays, params = bits(drawn(0, kind)), [tensor.cuda() for tensor in drawn(0, kind)]
    cpu.build(arrays, {"": {"dtype": str(kind).removeprefix("torch.")}})
    gpu.build(params)
    for step in range(1, 5):
        cpu.apply(bits(drawn(step, kind)))
        gpu.apply([tensor.cuda() for tensor in drawn(step, kind)])
    assert_same(bits(params), arrays)
    states = [optimizer.state_dict() for optimizer in (gpu, cpu)]
    names = [name for name, value in states[1].items() if isinstance(value, np.ndarray)]
    assert_same(*([state[name] for name in names] for state in states))
    assert gpu.last_grad_norm == cpu.last_grad_norm


@pytest.mark.parametrize("name", ["at random", "split, 8 bits"])
def test_tensors(name):
    both = [[tensor.to(place).requires_grad_() for tensor in drawn(0, torch.bfloat16)] for place in ("cpu", "cuda")]
    optimizers = [fastopt.torch.AdamW(params, lr=0.01, seed=3, **FORMATS[name]) for params in both]
    for step in range(1, 5):
        for params, optimizer in zip(both, optimizers, strict=True):
            for p, grad in zip(params, drawn(step, torch.bfloat16), strict=True):
                p.grad = grad.to(p.device)
            optimizer.step()
    assert_same(*map(bits, both))
    for p, q in zip(*both, strict=True):
        one, other = optimizers[0].state[p], optimizers[1].state[q]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key].cpu()) for key in one)
