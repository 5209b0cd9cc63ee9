"""fastopt.torch as torch.optim: groups, schedulers, scalers, hooks, moves, odd gradients and parameters."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
from needs_torch import torch
from torch_reference import batches, distance, loss_of, net

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_training")

KWARGS = {"lr": 0.01, "weight_decay": 0.1}


def pair(make_params, **kwargs):
    """torch's AdamW and ours, each with parameters of its own."""
    kwargs = KWARGS | kwargs
    theirs, ours = make_params(), make_params()
    return (torch.optim.AdamW(theirs, **kwargs), fastopt.torch.AdamW(ours, **kwargs))


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def leaves(shapes=((5, 4), (3,), ()), seed=0):
    return [torch.nn.Parameter(value) for value in draw(shapes, seed)]


def step_both(optimizers, seed, skip=()):
    for optimizer in optimizers:
        params = params_of(optimizer)
        for k, (p, grad) in enumerate(zip(params, draw([p.shape for p in params], seed), strict=True)):
            p.grad = None if k in skip else grad.to(p.dtype)
        optimizer.step()


def assert_alike(optimizers, tolerance=2e-6):
    theirs, ours = (list(map(torch.Tensor.detach, params_of(optimizer))) for optimizer in optimizers)
    assert distance(ours, theirs) < tolerance
    for p, q in zip(*map(params_of, optimizers), strict=True):
        own, other = optimizers[1].state.get(q, {}), optimizers[0].state.get(p, {})
        assert list(own) == list(other)
        assert own.get("step") == other.get("step")


# -- parameter groups --------------------------------------------------------------------------------------------------


def groups():
    a, b, c = leaves()
    return [{"params": [a], "lr": 0.1}, {"params": [b], "weight_decay": 0.0, "betas": (0.5, 0.9)}, {"params": [c]}]


def test_groups_are_read_anew_at_every_step():
    optimizers = pair(groups)
    for seed in range(6):
        step_both(optimizers, seed)
        for optimizer in optimizers:
            optimizer.param_groups[seed % 3]["lr"] *= 0.5
            optimizer.param_groups[1]["weight_decay"] = 0.1 * seed
            optimizer.param_groups[2]["maximize"] = seed > 2
    assert_alike(optimizers)


def test_all_groups_are_one_launch():
    optimizer = fastopt.torch.AdamW(groups())
    step_both([optimizer], 0)
    ((own, _),) = optimizer._built.optimizers
    assert len(own._plans) == 1
    assert len(own._plans[0].work.table) == 3


def test_changing_numbers_keeps_the_plan_and_changing_the_rule_keeps_the_state():
    optimizers = pair(leaves)
    step_both(optimizers, 0)
    ((own, _),) = optimizers[1]._built.optimizers
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.5
    step_both(optimizers, 1)
    assert optimizers[1]._built.optimizers[0][0] is own
    optimizers = [kind(leaves(), lr=0.1, momentum=0.9) for kind in (torch.optim.SGD, fastopt.torch.SGD)]
    for seed in range(6):
        for optimizer in optimizers:
            optimizer.param_groups[0]["nesterov"] = seed > 2
        step_both(optimizers, seed)
    assert_alike(optimizers)


def test_add_param_group_in_the_middle():
    optimizers = pair(leaves)
    for seed in range(3):
        step_both(optimizers, seed)
    for optimizer in optimizers:
        optimizer.add_param_group({"params": leaves(((7,),), 9), "lr": 0.2})
    for seed in range(3):
        step_both(optimizers, seed)
    assert_alike(optimizers)
    assert [state["step"].item() for state in optimizers[1].state.values()] == [6, 6, 6, 3]


def test_parameters_exchanged_in_a_group():
    optimizers = pair(leaves)
    step_both(optimizers, 0)
    for optimizer in optimizers:
        optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:2] + leaves(((2,),), 5)
    step_both(optimizers, 1)
    assert_alike(optimizers)


def test_named_parameters_name_themselves_in_errors():
    module = torch.nn.Linear(3, 2)
    optimizer = fastopt.torch.AdamW(module.named_parameters(), nonfinite="raise")
    for p in module.parameters():
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(FloatingPointError, match="weight"):
        optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_parameters_without_gradients_keep_their_own_count():
    optimizers = pair(lambda: leaves(((4,), (3,), (2,), (2, 2))))
    for seed, skip in enumerate([(3,), (), (0,), (0, 1), (), (2, 3), (0, 2), (0, 1, 2, 3), ()]):
        step_both(optimizers, seed, skip)
        assert_alike(optimizers)
    assert len({state["step"].item() for state in optimizers[1].state.values()}) > 1


def test_gradients_in_turns_divide_cohorts_once():
    optimizers = pair(lambda: leaves(((2,),) * 6))
    built = []
    for seed in range(12):
        step_both(optimizers, seed, skip=[k for k in range(6) if k % 3 == seed % 3])
        built.append(optimizers[1]._built.optimizers[0][0])
    assert len(set(map(id, built[4:]))) == 1
    assert_alike(optimizers)


@pytest.mark.parametrize("name", ["SGD", "NAdam", pytest.param("Adafactor", marks=pytest.mark.full)])
def test_missing_gradients_in_other_rules(name):
    kwargs = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    optimizers = [getattr(module, name)(leaves(), lr=0.05, **kwargs) for module in (torch.optim, fastopt.torch)]
    for seed, skip in enumerate([(0,), (1,), (), (0, 2), ()]):
        step_both(optimizers, seed, skip)
    assert_alike(optimizers)


def test_no_gradients_at_all():
    optimizer = fastopt.torch.AdamW(leaves())
    optimizer.step()
    assert not optimizer.state


def odd(values):
    """The same numbers, laid out in memory in other ways."""
    wide = torch.zeros(*values.shape[:-1], 2 * values.shape[-1])
    spread = wide[..., ::2].copy_(values)
    turned = values.transpose(0, 1).contiguous().transpose(0, 1)
    backwards = torch.as_strided(values.clone(), values.shape, values.stride())
    return [spread, turned, backwards, values.double().float(), values[None].expand(2, *values.shape)[1]]


@pytest.mark.parametrize("way", range(5))
def test_gradients_of_any_strides(way):
    optimizers = pair(lambda: leaves(((6, 5), (4, 3, 2, 2))))
    for seed in range(3):
        for optimizer in optimizers:
            params = params_of(optimizer)
            for p, grad in zip(params, draw([p.shape for p in params], seed), strict=True):
                p.grad = odd(grad)[way] if optimizer is optimizers[1] else grad
            optimizer.step()
    assert_alike(optimizers)


def conv():
    return [
        torch.nn.Parameter(value.to(memory_format=torch.channels_last)) for value in draw(((6, 4, 3, 3), (2, 3, 4, 5)))
    ]


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Lamb"])
def test_channels_last_parameters_and_gradients_in_either_order(name):
    """torch's fused CPU kernel pairs the wrong elements here."""
    contiguous = [torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in conv()]
    mixed = conv()
    optimizers = [getattr(fastopt.torch, name)(params, lr=0.05) for params in (contiguous, mixed)]
    for seed in range(3):
        for k, optimizer in enumerate(optimizers):
            params = params_of(optimizer)
            for j, (p, grad) in enumerate(zip(params, draw([p.shape for p in params], seed), strict=True)):
                last = k == 1 and j == 0
                p.grad = grad.to(memory_format=torch.channels_last) if last else grad
            optimizer.step()
    assert distance([p.detach() for p in mixed], [p.detach() for p in contiguous]) < 2e-6
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in mixed)


def test_torch_fused_pairs_wrong_elements_still():
    """If this fails, torch has mended its kernel, and the documents that mention it are to be changed."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(draw([(2, 3, 4, 5)])[0].to(memory_format=torch.channels_last))
        p.grad = draw([(2, 3, 4, 5)], 1)[0].to(memory_format=layout)
        torch.optim.SGD([p], lr=0.1, fused=True).step()
        results.append(p.detach())
    assert not torch.equal(*results)


def test_parameters_with_gaps_and_transposed():
    def make():
        wide, turned = draw(((4, 6), (5, 3)))
        return [torch.nn.Parameter(wide)[:, ::2].detach().requires_grad_(), turned.t().requires_grad_()]

    optimizers = pair(make)
    for seed in range(3):
        step_both(optimizers, seed)
    theirs, ours = ([p.detach() for p in params_of(optimizer)] for optimizer in optimizers)
    assert distance(ours, theirs) < 2e-6


def test_zero_size_parameters():
    optimizers = pair(lambda: leaves(((0,), (3,), (2, 0))))
    for seed in range(2):
        step_both(optimizers, seed)
    assert_alike(optimizers)


def test_gradients_that_overlap_their_parameter_are_refused():
    base = torch.randn(8)
    p = base[:4].detach().requires_grad_()
    optimizer = fastopt.torch.SGD([p])
    p.grad = base[2:6]
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(3, dtype=torch.complex64), "complex64.*float32, float64, bfloat16 and float16"),
        (lambda: torch.zeros(3, 3).to_sparse(), "dense parameters"),
    ],
)
def test_refused_parameters(make, message):
    with pytest.raises(TypeError, match=message):
        fastopt.torch.AdamW([torch.nn.Parameter(torch.zeros(1)), make().requires_grad_()])


def test_overlapping_parameters_are_refused():
    base = torch.randn(6)
    params = [base[:4].detach().requires_grad_(), base[2:].detach().requires_grad_()]
    optimizer = fastopt.torch.SGD(params)
    with pytest.raises(ValueError, match="share memory"):
        step_both([optimizer], 0)


@pytest.mark.parametrize(
    ("make", "torch_refuses"),
    [
        (lambda: torch.zeros(1).expand(4), True),
        (lambda: torch.zeros(3, 1).expand(3, 4), True),
        (lambda: torch.zeros(6).as_strided((4, 3), (1, 1)), False),
        (lambda: torch.zeros(10).unfold(0, 4, 2), False),
    ],
)
def test_parameters_that_overlap_themselves_are_refused(make, torch_refuses):
    """torch refuses stride 0 in its own words; with other strides its steps race."""
    for kind in (torch.optim.SGD, fastopt.torch.SGD):
        params = [*leaves(((2,),)), torch.nn.Parameter(make())]
        for p in params:
            p.grad = torch.ones(p.shape)
        before = [p.detach().clone() for p in params]
        if kind is torch.optim.SGD and torch_refuses:
            with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
                kind(params[1:], foreach=False).step()
    optimizer = fastopt.torch.SGD(params, momentum=0.9)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 overlaps itself .*clone"):
        optimizer.step()
    assert all(map(torch.equal, params, before)) and not optimizer.state


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(4).as_strided((1, 4), (0, 1)),
        lambda: torch.ones(4).as_strided((4, 1), (1, 0)),
        lambda: torch.ones(1).as_strided((0, 4), (0, 0)),
        lambda: torch.ones(11).as_strided((3, 3), (2, 3)),
        lambda: torch.ones(10).unfold(0, 2, 4),
    ],
)
def test_parameters_with_odd_strides_that_do_not_overlap(make):
    found = []
    for kind in (torch.optim.AdamW, fastopt.torch.AdamW):
        p = torch.nn.Parameter(make())
        optimizer = kind([p], lr=0.1)
        for t in range(3):
            p.grad = torch.linspace(-1, 1 + t, p.numel()).view(p.shape)
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(found[1], found[0])


def test_state_that_overlaps_itself_is_copied():
    """torch refuses to write to it; what is loaded expanded goes on as if it had been whole."""
    optimizers = [module.Adam(leaves(((2, 3),)), lr=0.1) for module in (torch.optim, fastopt.torch)]
    step_both(optimizers, 0)
    for optimizer in optimizers:
        (state,) = optimizer.state.values()
        moment = torch.tensor([[1.0], [2.0]]).expand(2, 3)
        state["exp_avg"] = moment.clone() if optimizer is optimizers[0] else moment
    step_both(optimizers, 1)
    step_both(optimizers, 2)
    assert_alike(optimizers)


def test_differentiable_is_refused():
    with pytest.raises(ValueError, match="differentiable"):
        fastopt.torch.AdamW(leaves(), differentiable=True)


@pytest.mark.parametrize("kwargs", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_torchs_ways_to_compute_are_accepted(kwargs):
    ours, plain = fastopt.torch.AdamW(leaves(), **kwargs), fastopt.torch.AdamW(leaves())
    for seed in range(2):
        step_both([ours, plain], seed)
    assert all(map(torch.equal, params_of(ours), params_of(plain)))


# -- models ------------------------------------------------------------------------------------------------------------


def train(model, optimizer, count=4, seed=1):
    for batch in batches(count, seed):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def models(**kwargs):
    found = [net(), net()]
    return found, [
        kind.AdamW(m.parameters(), **KWARGS, **kwargs)
        for kind, m in zip((torch.optim, fastopt.torch), found, strict=True)
    ]


def test_dtype_changes_after_construction():
    both, optimizers = models()
    for model, optimizer in zip(both, optimizers, strict=True):
        train(model, optimizer)
        state = copy.deepcopy(optimizer.state_dict())
        model.double()
        optimizer.load_state_dict(state)
        train(model, optimizer)
    assert_alike(optimizers)
    assert next(iter(optimizers[1].state.values()))["exp_avg"].dtype == torch.float64


def test_data_exchanged_under_a_parameter():
    both, optimizers = models()
    for model, optimizer in zip(both, optimizers, strict=True):
        train(model, optimizer)
        for p in model.parameters():
            p.data = p.data.clone()
        train(model, optimizer)
    assert_alike(optimizers)


def test_state_exchanged_or_written_to():
    both, optimizers = models()
    for model, optimizer in zip(both, optimizers, strict=True):
        train(model, optimizer)
        for state in optimizer.state.values():
            state["exp_avg"] = torch.zeros_like(state["exp_avg"])
            state["exp_avg_sq"].mul_(0.5)
            state["step"].fill_(2)
        train(model, optimizer)
        optimizer.state.clear()
        train(model, optimizer)
    assert_alike(optimizers, 4e-6)  # some processors round torch's gradients to 2.05e-6 here


def test_frozen_and_thawed_parameters():
    both, optimizers = models()
    for model, optimizer in zip(both, optimizers, strict=True):
        model.conv.requires_grad_(False)
        train(model, optimizer)
        model.conv.requires_grad_(True)
        train(model, optimizer)
    assert_alike(optimizers)


def test_shared_parameters():
    found = []
    for module in (torch.optim, fastopt.torch):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        model[2].weight = model[0].weight
        optimizer = module.AdamW(model.parameters(), **KWARGS)
        for x in draw([(8, 4)] * 4):
            optimizer.zero_grad()
            (model(x) ** 2).mean().backward()
            optimizer.step()
        found.append(optimizer)
    assert_alike(found)


def test_autograd_notices_the_update():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure_hooks_and_zero_grad():
    (p,) = leaves(((3,),))
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        called.append("closure")
        return loss

    expected = (p.detach() ** 2).sum()
    assert torch.equal(optimizer.step(closure), expected)
    assert called == ["before", "closure", "after"]
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    optimizer.zero_grad()
    assert p.grad is None


def test_copies_and_pickles_go_on_alike():
    model = net()
    optimizer = fastopt.torch.AdamW(model.parameters(), clip_norm=0.1, ema=0.9, **KWARGS)
    train(model, optimizer)
    others = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    again = net()
    again.load_state_dict(loaded["model"])
    fresh = fastopt.torch.AdamW(again.parameters(), clip_norm=0.1, ema=0.9, **KWARGS)
    fresh.load_state_dict(loaded["optimizer"])
    for other in [(model, optimizer), *others, (again, fresh)]:
        train(*other, seed=2)
    for other, _ in [*others, (again, fresh)]:
        assert all(map(torch.equal, model.parameters(), other.parameters()))


SCHEDULERS = {
    "LambdaLR": lambda o, s: s.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o, s: s.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o, s: s.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o, s: s.MultiStepLR(o, [2, 4], 0.5),
    "ConstantLR": lambda o, s: s.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o, s: s.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o, s: s.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o, s: s.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o, s: s.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o, s: s.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o, s: s.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "CyclicLR": lambda o, s: s.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=True),
    "OneCycleLR": lambda o, s: s.OneCycleLR(o, 0.1, 8),
    "SequentialLR": lambda o, s: s.SequentialLR(o, [s.ConstantLR(o, 0.1, 2), s.ExponentialLR(o, 0.9)], [2]),
    "ChainedScheduler": lambda o, s: s.ChainedScheduler([s.ConstantLR(o, 0.1, 2), s.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o, s: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_tried():
    known = {name for name in torch.optim.lr_scheduler.__all__ if name != "LRScheduler"}
    assert known == SCHEDULERS.keys() - {"SWALR"}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_schedulers(name, tensor):
    rate = (lambda: torch.tensor(0.05)) if tensor else (lambda: 0.05)
    optimizers = [module.AdamW(leaves(), lr=rate()) for module in (torch.optim, fastopt.torch)]
    rates = []
    for optimizer in optimizers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own about its schedulers
            scheduler = SCHEDULERS[name](optimizer, torch.optim.lr_scheduler)
            rates.append([])
            for seed in range(6):
                step_both([optimizer], seed)
                scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
                rates[-1].append(float(optimizer.param_groups[0]["lr"]))
    assert rates[0] == rates[1]
    assert_alike(optimizers)


def test_tensor_betas():
    betas = torch.tensor([[[0.9]]]), torch.tensor([[0.99]])
    ours = fastopt.torch.Adam(leaves(), lr=torch.tensor(0.01), betas=betas, capturable=True)
    plain = fastopt.torch.Adam(leaves(), lr=0.01, betas=(betas[0].item(), betas[1].item()))
    for seed in range(2):
        step_both([ours, plain], seed)
    assert (
        distance(list(map(torch.Tensor.detach, params_of(ours))), list(map(torch.Tensor.detach, params_of(plain))))
        < 1e-7
    )


def test_grad_scaler():
    both, _ = models()
    optimizers = [
        torch.optim.AdamW(both[0].parameters(), fused=True, **KWARGS),
        fastopt.torch.AdamW(both[1].parameters(), **KWARGS),
    ]
    for model, optimizer in zip(both, optimizers, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for k, batch in enumerate(batches(8)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, batch)
            scaler.scale(loss).backward()
            if k == 3:
                model.head.weight.grad[0, 0] = torch.inf
            if k == 5:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**12
    assert_alike(optimizers, 1e-4)
    assert not hasattr(optimizers[1], "found_inf")


def test_swa_utils():
    both, optimizers = models()
    averaged = []
    for model, optimizer in zip(both, optimizers, strict=True):
        average = torch.optim.swa_utils.AveragedModel(model)
        for _ in range(3):
            train(model, optimizer)
            average.update_parameters(model)
        averaged.append([p.detach() for p in average.parameters()])
    assert distance(*averaged[::-1]) < 1e-5


def test_threads_of_torch_and_numpy_memory():
    """Parameters that are views of NumPy's memory."""
    memory = np.ones((3, 4), np.float32)
    p = torch.nn.Parameter(torch.from_numpy(memory))
    optimizer = fastopt.torch.SGD([p], lr=0.5)
    p.grad = torch.ones(3, 4)
    optimizer.step()
    assert np.array_equal(memory, np.full((3, 4), 0.5, np.float32))


@pytest.mark.filterwarnings("ignore")  # what the compiler warns of
def test_a_compiled_training_step():
    """torch.compile leaves the step alone."""
    both, (_, ours) = models()

    @torch.compile(backend="eager")
    def whole(batch):
        loss_of(both[0], batch).backward()
        other.step()

    other = fastopt.torch.AdamW(both[0].parameters(), **KWARGS)
    for batch in batches(3):
        other.zero_grad()
        whole(batch)
    train(both[1], ours, 3)
    assert_alike([other, ours])


def test_state_follows_another_dtype():
    both, optimizers = models()
    for model, optimizer in zip(both, optimizers, strict=True):
        train(model, optimizer)
    both[1].double()
    train(both[1], optimizers[1])
    train(both[0], optimizers[0])
    theirs, ours = ([p.detach().double() for p in params_of(optimizer)] for optimizer in optimizers)
    assert distance(ours, theirs) < 1e-4
