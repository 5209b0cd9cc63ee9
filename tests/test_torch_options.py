"""The keywords of fastopt.torch: clipping, averages, gradients that are not finite, zeroing, flat, fused backward."""

import copy
import functools
import gc
import pickle
import warnings

import pytest
from needs_torch import torch
from torch.utils.checkpoint import checkpoint
from torch_reference import batches, distance, loss_of, net

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_options")

KWARGS = {"lr": 0.01, "weight_decay": 0.1}


def train(model, optimizer, count=4, before_step=lambda model: None, after_step=lambda model: None):
    for batch in batches(count):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        before_step(model)
        optimizer.step()
        after_step(model)


def assert_alike(one, other, tolerance=2e-6):
    assert distance(*([p.detach() for p in model.parameters()] for model in (one, other))) < tolerance


def adamw(model, **options):
    return fastopt.torch.AdamW(model.parameters(), **KWARGS, **options)


def test_clipping():
    ours, theirs = net(), net()
    norms = []
    optimizer = adamw(ours, clip_norm=0.1, clip_value=0.02)
    train(ours, optimizer, after_step=lambda model: norms.append(optimizer.last_grad_norm))

    def clip(model):
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.02)

    train(theirs, torch.optim.AdamW(theirs.parameters(), **KWARGS), before_step=clip)
    assert_alike(ours, theirs, 1e-5)
    assert norms[:4] == pytest.approx(norms[4:], rel=1e-5)


def test_clipping_can_be_switched_while_training():
    ours, theirs = net(), net()
    optimizer = adamw(ours)
    assert optimizer.last_grad_norm is None
    train(ours, optimizer)
    optimizer.clip_norm = 0.1
    train(ours, optimizer)
    optimizer.clip_norm = None
    train(ours, optimizer)
    reference = torch.optim.AdamW(theirs.parameters(), **KWARGS)
    train(theirs, reference)
    train(theirs, reference, before_step=lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    train(theirs, reference)
    assert_alike(ours, theirs, 1e-5)


def test_moving_average():
    ours, theirs = net(), net()
    optimizer = adamw(ours, ema=0.8)
    average = torch.optim.swa_utils.AveragedModel(theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    train(ours, optimizer)
    train(theirs, torch.optim.AdamW(theirs.parameters(), **KWARGS), after_step=average.update_parameters)
    training = [p.detach().clone() for p in ours.parameters()]
    with optimizer.evaluation_weights():
        assert_alike(ours, average.module, 1e-5)
        with pytest.raises(RuntimeError, match="leave the context"):
            optimizer.step()
    assert all(map(torch.equal, ours.parameters(), training))
    assert "ema" in optimizer.state_dict()["state"][0]


def test_average_is_kept_by_state_dict_and_switched_on_late():
    model, late = net(), net()
    optimizer = adamw(model, ema=0.8)
    with pytest.raises(RuntimeError, match="before the first step"), optimizer.evaluation_weights():
        pass
    train(model, optimizer)
    other_model = copy.deepcopy(model)
    other = adamw(other_model, ema=0.8)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with optimizer.evaluation_weights(), other.evaluation_weights():
        assert_alike(model, other_model, 1e-12)
    optimizer = adamw(late)
    with pytest.raises(RuntimeError, match=r"ema=0\.99"), optimizer.evaluation_weights():
        pass
    train(late, optimizer)
    optimizer.ema = 0.5
    train(late, optimizer, 1)
    before = copy.deepcopy(late)
    train(late, optimizer, 1)
    expected = copy.deepcopy(late)
    with torch.no_grad():
        for p, q in zip(expected.parameters(), before.parameters(), strict=True):
            p.lerp_(q, 0.5)
    with optimizer.evaluation_weights():
        assert_alike(late, expected)


def spoil(model):
    model.head.weight.grad[1, 1] = torch.nan


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "Muon"])
def test_skipped_steps_change_nothing(name):
    model = net()
    params = [p for p in model.parameters() if name != "Muon" or p.ndim == 2]
    optimizer = getattr(fastopt.torch, name)(params, lr=0.01, nonfinite="skip", ema=0.9)
    train(model, optimizer)
    assert not optimizer.last_step_skipped
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    train(model, optimizer, 1, before_step=spoil)
    assert optimizer.last_step_skipped
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    train(model, optimizer)
    assert not optimizer.last_step_skipped


def test_raising_names_the_parameter_and_changes_nothing():
    model = net()
    optimizer = adamw(model, nonfinite="raise")
    train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(FloatingPointError, match="parameter 4 of group 0"):
        train(model, optimizer, 1, before_step=spoil)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_zeroing_gradients_in_the_same_pass():
    ours, theirs = net(), net()
    optimizer = adamw(ours, fused_zero_grad=True)

    def check(model):
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())

    train(ours, optimizer, after_step=check)
    grads = [p.grad for p in ours.parameters()]
    optimizer.zero_grad()
    assert all(p.grad is grad for p, grad in zip(ours.parameters(), grads, strict=True))
    train(theirs, torch.optim.AdamW(theirs.parameters(), **KWARGS))
    assert_alike(ours, theirs)
    loss_of(ours, batches(1)[0]).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_zeroing_gradients_that_share_memory():
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = fastopt.torch.SGD([p, q], lr=0.5, fused_zero_grad=True)
    p.grad = torch.ones(4)
    q.grad = p.grad.view(4)
    optimizer.step()
    assert torch.equal(p, q) and torch.equal(p, torch.full((4,), 0.5))
    assert not p.grad.any()


def test_zeroing_strided_and_skipped_gradients():
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = fastopt.torch.SGD([p], lr=0.5, fused_zero_grad=True, nonfinite="skip")
    p.grad = torch.ones(3, 4).t()
    optimizer.step()
    assert torch.equal(p, torch.full((4, 3), 0.5)) and not p.grad.any()
    p.grad = torch.full((4, 3), torch.inf)
    optimizer.step()
    assert optimizer.last_step_skipped and torch.equal(p.grad, torch.zeros(4, 3))


def test_flat_parameters():
    ours, theirs = net(), net()
    ours.extra = theirs.extra = None
    ours.hidden.weight.data = ours.hidden.weight.data.t().contiguous().t()
    optimizer, reference = adamw(ours, flat=True), torch.optim.AdamW(theirs.parameters(), **KWARGS)
    for model, own in ((ours, optimizer), (theirs, reference)):
        train(model, own)
    (buffer,) = optimizer.flat_parameters
    first, end = buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes
    assert all(first <= p.data_ptr() <= end - p.nbytes for p in ours.parameters())
    assert ours.hidden.weight.stride() == (1, 8)
    assert_alike(ours, theirs)
    # Loading keeps the buffer; moving gives up the memory, and the next step packs anew.
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    for model, own in ((ours, optimizer), (theirs, reference)):
        train(model, own)
    assert optimizer.flat_parameters[0] is buffer
    for model, own in ((ours, optimizer), (theirs, reference)):
        state = own.state_dict()
        model.double()
        own.load_state_dict(state)
        train(model, own)
    (buffer,) = optimizer.flat_parameters
    assert buffer.dtype == torch.float64
    assert_alike(ours, theirs, 1e-5)  # the gradients before were float32's, which torch rounds by where memory lies
    again = pickle.loads(pickle.dumps((ours, optimizer)))
    for model, own in ((ours, optimizer), again):
        train(model, own)
    assert_alike(ours, again[0], 1e-12)


def test_flat_with_tied_weights_and_two_groups():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = fastopt.torch.SGD(
        [{"params": [model[0].weight]}, {"params": [model[0].bias, model[1].bias], "lr": 1.0}], lr=0.1, flat=True
    )
    before = [p.detach().clone() for p in (model[1].weight, model[1].bias)]
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert model[1].weight is model[0].weight
    assert torch.allclose(model[1].weight, before[0] - 0.1 * model[1].weight.grad)
    assert torch.allclose(model[1].bias, before[1] - model[1].bias.grad)


def test_fused_backward():
    ours, theirs = net(), net()
    optimizer = adamw(ours, fused_backward=True, clip_value=0.05, ema=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    reference = torch.optim.AdamW(theirs.parameters(), **KWARGS)
    other = torch.optim.lr_scheduler.StepLR(reference, 2)

    def check(model):
        assert all(p.grad is None for p in model.parameters())
        scheduler.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(ours, optimizer, before_step=lambda model: None, after_step=check)
    train(
        theirs,
        reference,
        before_step=lambda model: torch.nn.utils.clip_grad_value_(model.parameters(), 0.05),
        after_step=lambda model: other.step(),
    )
    assert_alike(ours, theirs)
    state = optimizer.state_dict()
    assert state["state"][0]["step"].item() == 4
    again = net()
    again.load_state_dict(ours.state_dict())
    fresh = adamw(again, fused_backward=True, clip_value=0.05, ema=0.9)
    fresh.load_state_dict(copy.deepcopy(state))
    for model, own in ((ours, optimizer), (again, fresh)):
        train(model, own)
    assert_alike(ours, again, 1e-12)
    with optimizer.evaluation_weights():
        assert distance([p.detach() for p in ours.parameters()], [p.detach() for p in again.parameters()]) > 1e-3


class Segments(torch.nn.Module):
    """Two layers; the first runs twice, in a recomputed segment each time, the second once."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.shared, self.own = (torch.nn.Linear(3, 3) for _ in range(3))
        self.reentrant, self.shares_all = reentrant, False

    def forward(self, x):
        x = self.head(x)
        for layer in (self.shared, self.own, self.shared, *[self.own] * self.shares_all):
            run = functools.partial(lambda layer, x: layer(x).tanh(), layer)
            x = run(x) if self.reentrant is None else checkpoint(run, x, use_reentrant=self.reentrant)
        return x.square().sum()


@pytest.mark.parametrize("reentrant", [False, True])
def test_fused_backward_steps_a_weight_that_segments_share_once(reentrant):
    """As without recomputing and without fused_backward; what is not shared is freed early from the second step on."""
    found, left = [], []
    for kind, way, options in ((torch.optim.SGD, None, {}), (fastopt.torch.SGD, reentrant, {"fused_backward": True})):
        model = Segments(way)
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, **options)
        for step in range(3):
            model(torch.randn(2, 3, generator=torch.Generator().manual_seed(step))).backward()
            left.append([name for name, p in model.named_parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach() for p in model.parameters()])
    assert max(float((p - q).abs().max()) for p, q in zip(*found, strict=True)) < 1e-6
    waits = ["shared.weight", "shared.bias"] if reentrant else []
    assert left[3] == [*waits, *["own.weight", "own.bias"][: len(waits)]]
    assert left[4] == left[5] == waits


def test_fused_backward_refuses_parts_of_gradients():
    model, x = Segments(True), torch.ones(1, 3)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    model(x).backward()
    optimizer.step()
    model.shares_all = True
    with pytest.raises(RuntimeError, match=r"with a part of its gradient, .* use use_reentrant=False"):
        model(x).backward()
    model = Segments(True)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    model(x).backward()
    with pytest.raises(RuntimeError, match=r"for step\(\): call it after each backward, or use use_reentrant=False"):
        model(x).backward()


def test_fused_backward_frees_gradients_as_it_goes():
    """While a gradient arrives, no other is alive."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    model(torch.ones(2, 4)).sum().backward()
    assert max(alive) == 1
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()


def test_optimizers_that_are_gone_do_not_step():
    model = torch.nn.Linear(2, 2)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    del optimizer
    gc.collect()
    model(torch.ones(1, 2)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clip_value": -1.0}, "clip_value must be in"),
        ({"ema": 1.0}, "ema must be in"),
        ({"nonfinite": "ignore"}, "nonfinite must be"),
        ({"fused_backward": True, "clip_norm": 1.0}, "clip_norm and nonfinite need all"),
        ({"fused_backward": True, "nonfinite": "skip"}, "clip_norm and nonfinite need all"),
        ({"fused_backward": True, "fused_zero_grad": True}, "frees gradients"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        adamw(net(), **options)


def test_refused_types_of_options():
    with pytest.raises(TypeError, match="flat must be a bool"):
        adamw(net(), flat=1)
    with pytest.raises(TypeError, match="clipnorm"):
        adamw(net(), clipnorm=1.0)
