"""fastopt.torch on a real GPU: as on the CPU, bit for bit, and as torch's own."""

import copy
from functools import partial

import pytest
from on_gpu import Busy, assert_same_bits, require, torch

import fastopt.torch

require()

SHAPES = ((33, 7), (5000,), (4, 3, 3, 3), ())
NAMES = [name for name in fastopt.torch.__all__ if name[0].isupper()]
KWARGS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.9, "centered": True}}


def drawn(seed, device, name=""):
    shapes = [shape for shape in SHAPES if name != "Muon" or len(shape) == 2]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def make(name, device, module=fastopt.torch, **options):
    params = [value.requires_grad_() for value in drawn(0, device, name)]
    groups = [group for group in ({"params": params[:1]}, {"params": params[1:], "lr": 0.02}) if group["params"]]
    optimizer = getattr(module, name)(groups, lr=0.05, weight_decay=0.1, **KWARGS.get(name, {}), **options)
    if name == "ScheduleFreeAdamW":
        optimizer.train()
    return params, optimizer


def step(params, optimizer, seed, skip=(), bad=(), take=None):
    name = type(optimizer).__name__
    for k, (p, grad) in enumerate(zip(params, drawn(seed, params[0].device, name), strict=True)):
        p.grad = None if k in skip else grad
        if k in bad:
            p.grad.view(-1)[0] = torch.nan
    (take or optimizer.step)()


def assert_same(one, other):
    for p, q in zip(one[0], other[0], strict=True):
        assert_same_bits([p, *one[1].state[p].values()], [q, *other[1].state[q].values()])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Muon"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "ema": 0.9, "fused_zero_grad": True}], ids=["plain", "all"])
def test_bits_of_the_cpu(name, options):
    pair = [make(name, device, **options) for device in ("cpu", "cuda")]
    for seed in range(1, 6):
        for params, optimizer in pair:
            step(params, optimizer, seed)
    assert_same(*pair)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "Adafactor"])
def test_state_moves_between_torch_and_fastopt(name):
    theirs, ours = make(name, "cuda", torch.optim), make(name, "cuda")
    for seed in range(1, 5):
        step(*theirs, seed)
        step(*ours, seed)
    states = [copy.deepcopy(pair[1].state_dict()) for pair in (theirs, ours)]
    for pair, state in zip((ours, theirs), states, strict=True):
        pair[1].load_state_dict(state)
    for seed in range(5, 9):
        step(*theirs, seed)
        step(*ours, seed)
    for p, q in zip(theirs[0], ours[0], strict=True):
        torch.testing.assert_close(q, p, rtol=2e-5, atol=2e-6)


def test_models_that_move_after_construction():
    params, optimizer = make("AdamW", "cpu")
    others, reference = make("AdamW", "cpu", torch.optim)
    for own, opt in ((params, optimizer), (others, reference)):
        step(own, opt, 1)
        state = opt.state_dict()
        for p in own:
            p.grad = None
            p.data = p.data.cuda()
        opt.load_state_dict(state)
        step(own, opt, 2)
    for p, q in zip(others, params, strict=True):
        assert q.device.type == "cuda"
        torch.testing.assert_close(q, p, rtol=2e-5, atol=2e-6)


def test_skipped_steps():
    pair = [make("AdamW", device, nonfinite="skip") for device in ("cpu", "cuda")]
    for seed, bad in enumerate([(), (1,), (), ()], 1):
        for params, optimizer in pair:
            step(params, optimizer, seed, bad=bad)
            assert optimizer.last_step_skipped == bool(bad)
    assert_same(*pair)


def test_gradients_that_come_and_go():
    pair = [make("Adam", device) for device in ("cpu", "cuda")]
    for seed, skip in enumerate([(0,), (), (1, 2), (0, 1)], 1):
        for params, optimizer in pair:
            step(params, optimizer, seed, skip=skip)
    assert_same(*pair)


def test_grad_scaler():
    found = []
    for module, kwargs in ((torch.optim, {"fused": True}), (fastopt.torch, {}), (fastopt.torch, {"fused": True})):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4).cuda()
        optimizer = module.AdamW(model.parameters(), lr=0.01, **kwargs)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
        for k in range(5):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = model(torch.full((2, 8), 0.1 * k, device="cuda")).square().mean()
            scaler.scale(loss).backward()
            if k == 2:
                model.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        found.append((scaler.get_scale(), [p.detach() for p in model.parameters()]))
    for ours in found[1:]:
        assert found[0][0] == ours[0]
        torch.testing.assert_close(ours[1], found[0][1], rtol=1e-4, atol=1e-6)


def test_fused_backward_on_the_streams_of_autograd():
    params, optimizer = make("AdamW", "cuda", fused_backward=True)
    others, reference = make("AdamW", "cuda")
    for _ in range(3):
        sum((p * p).sum() for p in params).backward()
        assert all(p.grad is None for p in params)
        sum((p * p).sum() for p in others).backward()
        reference.step()
        reference.zero_grad()
    assert_same_bits(params, others)
    assert optimizer.state[params[0]]["step"] == 3


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_nothing_waits_for_the_gpu(nonfinite, scaled):
    params, optimizer = make("AdamW", "cuda", clip_norm=1.0, ema=0.9, nonfinite=nonfinite, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)
    scaler.scale(torch.ones(1, device="cuda"))
    take = partial(scaler.step, optimizer)
    for seed in range(1, 4):
        step(params, optimizer, seed, take=take)
        scaler.update()
    for p, grad in zip(params, drawn(9, "cuda"), strict=True):
        p.grad = grad
    with Busy() as busy:
        take()
        assert busy.still
    assert not optimizer.last_step_skipped
    assert optimizer.state[params[0]]["step"] == 4


def test_parameters_on_two_devices():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, device="cuda", requires_grad=True)
    optimizer = fastopt.torch.SGD([p, q], lr=0.5)
    for each in (p, q):
        each.grad = torch.ones_like(each)
    optimizer.step()
    assert torch.equal(p, q.cpu())
    optimizer = fastopt.torch.SGD([p, q], lr=0.5, clip_norm=1.0)
    with pytest.raises(ValueError, match="an optimizer per device"):
        optimizer.step()
