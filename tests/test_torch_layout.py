"""Reading tensors' addresses from the tensors themselves: the same as asking each, or nothing at all."""

import pytest
import torch

import fastopt.torch
from fastopt.torch import layout as layouts

SHAPES = ((), (7,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2))


def stepped(shapes=SHAPES, dtype=torch.float32, **options):
    """An optimizer after a step, its parameters, and what reads its gradients."""
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = fastopt.torch.SGD(params, lr=0.1, **options)
    renew(params)
    optimizer.step()
    ((engine, _),) = optimizer._built.engines
    return params, optimizer, engine._gradients


def renew(params):
    for p in params:
        p.grad = torch.randn_like(p)


def reads(params, gradients):
    return gradients._quick.read(params, [p.grad for p in params])


def test_the_layout_is_known():
    """If this fails, a new torch keeps things elsewhere: steps are right still, and slower."""
    assert layouts.layout() is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_addresses_are_those_that_torch_tells(dtype):
    params, _, gradients = stepped(dtype=dtype)
    for _ in range(3):
        renew(params)
        memory = torch.zeros(1000, dtype=dtype)
        params[2].grad = memory[37:49].view(3, 4)
        assert reads(params, gradients)
        assert gradients.table[0].tolist() == [p.grad.data_ptr() for p in params]


def other_dtype(params):
    params[1].grad_dtype = None
    params[1].grad = torch.zeros(7, dtype=torch.float64)


STRANGE = {
    "none": lambda params: setattr(params[1], "grad", None),
    "dtype": other_dtype,
    "strides": lambda params: setattr(params[2], "grad", torch.zeros(4, 3).t()),
    "sparse": lambda params: setattr(params[2], "grad", torch.zeros(3, 4).to_sparse()),
    "negated": lambda params: setattr(params[2], "grad", torch._neg_view(torch.zeros(3, 4))),
    "subclass": lambda params: setattr(params[2], "grad", torch.nn.Parameter(torch.zeros(3, 4))),
    "itself": lambda params: setattr(params[2], "grad", params[2].detach()),
    "moved": lambda params: setattr(params[2], "data", params[2].data.clone()),
    "shape": lambda params: setattr(params[2].grad, "data", torch.zeros(12, 1)),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_strange_is_not_read(case):
    params, _, gradients = stepped()
    renew(params)
    assert reads(params, gradients)
    STRANGE[case](params)
    assert not reads(params, gradients)


def test_more_axes_than_fit_into_a_tensor():
    params, _, gradients = stepped(((1, 2, 1, 2, 1, 2), (3,)))
    renew(params)
    assert not reads(params, gradients)


@pytest.mark.parametrize("missing", ["words", "interpreter"])
def test_without_it_steps_are_the_same(missing, monkeypatch):
    torch.manual_seed(0)
    expected = [p.detach() for p in stepped(clip_norm=1.0)[0]]
    if missing == "words":
        monkeypatch.setattr(layouts._Probe, "_find_dtype", lambda probe: None)
    else:
        monkeypatch.setattr(layouts.reader, "compiled", lambda: None)
    layouts.layout.cache_clear()
    try:
        torch.manual_seed(0)
        params, _, gradients = stepped(clip_norm=1.0)
        assert gradients._quick is None
        assert all(map(torch.equal, params, expected))
    finally:
        layouts.layout.cache_clear()


def test_swapped_tensors():
    params, optimizer, _ = stepped()
    torch.utils.swap_tensors(params[2], torch.nn.Parameter(torch.ones(3, 4)))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(params[2], torch.full((3, 4), 0.9))
