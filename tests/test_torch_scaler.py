"""fastopt.torch under `torch.amp.GradScaler`: parameters, and what is left in gradients, are torch.optim's."""

import copy

import pytest
from needs_torch import torch

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_scaler")
SCALE = 128.0
DATA = [torch.randn(8, 8, generator=torch.Generator().manual_seed(k)) for k in range(5)]


def models(count=1):
    torch.manual_seed(0)
    return [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)) for _ in range(count)]


def loss_of(model, batch):
    return (model(batch) - 1).square().mean()


def plain(scaler, optimizers, models, k):
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, DATA[k])).backward()
    if k == 2:
        models[0][1].weight.grad[0, 0] = torch.inf
    for optimizer in optimizers:
        scaler.step(optimizer)


def unscaled_first(scaler, optimizers, models, k):
    (model,), (optimizer,) = models, optimizers
    optimizer.zero_grad()
    scaler.scale(loss_of(model, DATA[k])).backward()
    if k == 2:
        model[1].weight.grad[0, 0] = torch.inf
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)


def clipped_while_scaled(scaler, optimizers, models, k):
    (model,), (optimizer,) = models, optimizers
    optimizer.zero_grad()
    scaler.scale(loss_of(model, DATA[k])).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1 * scaler.get_scale())
    scaler.step(optimizer)


def accumulated(scaler, optimizers, models, k):
    (model,), (optimizer,) = models, optimizers
    scaler.scale(loss_of(model, DATA[k]) / 2).backward()
    if k % 2:
        scaler.step(optimizer)
        optimizer.zero_grad()


def penalised(scaler, optimizers, models, k):
    (model,), (optimizer,) = models, optimizers
    optimizer.zero_grad()
    loss = loss_of(model, DATA[k])
    grads = torch.autograd.grad(scaler.scale(loss), list(model.parameters()), create_graph=True)
    norm = sum((grad / scaler.get_scale()).square().sum() for grad in grads).sqrt()
    scaler.scale(loss + 0.1 * norm).backward()
    scaler.step(optimizer)


WAYS = {
    "plain": (plain, 1),
    "unscaled first": (unscaled_first, 1),
    "clipped while scaled": (clipped_while_scaled, 1),
    "accumulated": (accumulated, 1),
    "penalised": (penalised, 1),
    "two optimizers": (plain, 2),
}
KINDS = [("SGD", {}), ("SGD", {"fused": True}), ("AdamW", {}), ("AdamW", {"fused": True}), ("RMSprop", {})]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "kwargs"), KINDS)
def test_a_scaled_run(name, kwargs, way):
    """The same program with torch.optim's class, as unfused: fused ones leave gradients scaled that hold infinities."""
    iterate, count = WAYS[way]
    found = []
    for module, options in ((torch.optim, {}), (fastopt.torch, kwargs)):
        trained = models(count)
        optimizers = [getattr(module, name)(model.parameters(), lr=0.05, **options) for model in trained]
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
        told = []
        for k in range(len(DATA)):
            iterate(scaler, optimizers, trained, k)
            told += [p.grad.clone() for model in trained for p in model.parameters() if p.grad is not None]
            if scaler._per_optimizer_states[id(optimizers[0])]["found_inf_per_device"]:
                scaler.update()
            told.append(torch.tensor(scaler.get_scale()))
        found.append([*told, *(p.detach() for model in trained for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_is_left_is_unscaled():
    """In torch, fused or not, p * 3 leaves 3."""
    for name, kwargs in KINDS:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = getattr(fastopt.torch, name)([p], **kwargs)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        scaler.scale((p * 3).sum()).backward()
        scaler.step(optimizer)
        assert torch.equal(p.grad, torch.full((3,), 3.0))


def test_zeroing_wins():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = fastopt.torch.SGD([p], lr=0.1, fused_zero_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale((p * 3).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(p.grad, torch.zeros(3))
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.7))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_scale_that_is_there_before(name):
    """The scaler multiplies it by its own; held against torch's fused classes, strided and expanded gradients too."""
    found = []
    for module in (torch.optim, fastopt.torch):
        p = torch.nn.Parameter(torch.ones(5))
        p.grad = torch.full((5,), 15.0)
        optimizer = getattr(module, name)([p], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=5.0)
        scaler.scale(torch.ones(5))
        optimizer.grad_scale = torch.tensor([3.0])
        scaler.step(optimizer)
        assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
        found.append((p.grad, p.detach()))
    torch.testing.assert_close(found[1], found[0])


def test_scales_set_by_hand_on_gradients_of_any_strides():
    params = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    params[0].grad = torch.arange(6.0).view(3, 2).T
    params[1].grad = torch.arange(12.0).view(2, 6)[:, ::2]
    optimizer = fastopt.torch.RMSprop(params)
    expected = [p.grad / 4 if p.grad is not None else None for p in params]
    optimizer.grad_scale = 4.0
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params[:2], expected[:2], strict=True))


@pytest.mark.parametrize("zero", [False, True])
def test_expanded_gradients(zero):
    """torch reads them, zeroes them in place, and refuses to unscale them: nothing has changed then."""
    found = []
    for module, options in ((torch.optim, {}), (fastopt.torch, {"fused_zero_grad": zero})):
        p = torch.nn.Parameter(torch.linspace(0, 1, 6).view(2, 3))
        optimizer = module.SGD([p], lr=0.1, **options)
        p.grad = torch.tensor([[1.0], [2.0]]).expand(2, 3)
        optimizer.step()
        if zero:
            optimizer.zero_grad(set_to_none=False)
        found.append((p.detach().clone(), p.grad.clone()))
        if zero:
            continue
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        scaler.scale(torch.ones(1))
        with pytest.raises(RuntimeError, match="more than one element"):
            scaler.step(optimizer)
        optimizer.grad_scale = 4.0
        if module is fastopt.torch:
            with pytest.raises(RuntimeError, match="more than one element"):
                optimizer.step()
        assert torch.equal(p.detach(), found[-1][0])
    torch.testing.assert_close(found[1], found[0])


def test_optimizers_that_unscale_themselves():
    """A subclass may ask torch's scaler for the scale, as its documentation of ``_step_supports_amp_scaling`` says."""

    class Own(fastopt.torch.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self._step_supports_amp_scaling = True

        def step(self, closure=None):
            assert float(self.grad_scale) == SCALE and float(self.found_inf) == 0
            return super().step(closure)

    p = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale((p * 3).sum()).backward()
    scaler.step(Own([p]))
    assert torch.equal(p.grad, torch.full((3,), 3.0))
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.7))


def test_nobody_is_handed_the_scale_by_default():
    """Lightning and its Fabric do not clip for optimizers that say so."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizers = [getattr(fastopt.torch, name)([p], **kwargs) for name, kwargs in KINDS]
    copies = [copy.deepcopy(optimizer) for optimizer in optimizers]
    assert not any(optimizer._step_supports_amp_scaling for optimizer in optimizers + copies)
