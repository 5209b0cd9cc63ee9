"""fastopt.torch on parameters of bfloat16 and float16, and with state in storage formats, against torch.optim."""

import copy
import pickle

import pytest
from needs_torch import torch
from torch_reference import Lion

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_formats")
HALVES = [torch.bfloat16, torch.float16]
over_halves = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
STEPS = 22
LARGE = 5000
"""Elements: more than a chunk, and enough for slots of 8 bits."""

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "amsgrad": True}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "eps": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adadelta", {"lr": 1.0, "eps": 1e-3}),
    ("Lion", {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
]
over_cases = pytest.mark.parametrize(("name", "kwargs"), CASES, ids=[f"{name}-{kwargs}" for name, kwargs in CASES])
ELEMENTWISE = [case for k, case in enumerate(CASES) if case[0] not in [name for name, _ in CASES[:k]]]


def parameters(dtype, seed=0):
    """Of all kinds of shapes: 0-d, empty, transposed, with gaps, channels-last, and larger than a chunk."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (0, 3), (7,), (3, 5), (8, 6), (2, 3, 4, 5), (LARGE,)]
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    found[3] = found[3].t()
    found[4] = found[4][:, ::2]
    found[5] = found[5].contiguous(memory_format=torch.channels_last)
    return list(map(leaf, found))


def leaf(tensor):
    return tensor.detach().requires_grad_()


def gradients_of(params, step, dtype=None):
    """Gradients for a step, some of them strided otherwise than their parameters."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = [torch.randn(p.shape, generator=generator).to(dtype or p.dtype) for p in params]
    found[6] = torch.stack([found[6], found[6]], 1)[:, 0]
    return found


def give(params, step, dtype=None):
    for p, grad in zip(params, gradients_of(params, step, dtype), strict=True):
        p.grad = grad.to(p.dtype)


def ours(name, params, kwargs):
    return getattr(fastopt.torch, name)(params, **copy.deepcopy(kwargs))


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int16).int()


def units(one, other):
    """The greatest distance of two tensors of 16 bits, in units in the last place; numbers of either sign in turn."""
    if not one.numel():
        return 0
    found = [torch.where(each < 0, -(each & 0x7FFF), each) for each in (bits(one), bits(other))]
    return (found[0] - found[1]).abs().max().item()


def assert_near(found, wanted):
    """No further apart than a unit in the last place; or than float32 rounds numbers of 1, where two such cancel."""
    near = (found.detach().float() - wanted.detach().float()).abs() < 5e-7
    assert found.dtype == wanted.dtype and units(found[~near], wanted[~near]) <= 1


def in_float32(name, kwargs, params, grads, state):
    """One step of torch's for-loop in float32 from numbers of 16 bits: parameters and state, before rounding."""
    copies = [leaf(p.detach().float().clone()) for p in params]
    if name == "Lion":
        optimizer = Lion(copies, decoupled_weight_decay=False, **{"betas": (0.9, 0.99), "weight_decay": 0.0, **kwargs})
    else:
        optimizer = getattr(torch.optim, name)(copies, foreach=False, **copy.deepcopy(kwargs))
    for p, grad, kept in zip(copies, grads, state, strict=True):
        p.grad = grad.float()
        if kept:
            optimizer.state[p] = {
                key: value.clone() if key in ("step", "mu_product") else value.float() for key, value in kept.items()
            }
    optimizer.step()
    return copies, [optimizer.state[p] for p in copies]


@over_halves
@over_cases
def test_each_step_is_float32_rounded_to_nearest(name, kwargs, dtype):
    params = parameters(dtype)
    optimizer = ours(name, params, kwargs)
    for step in range(STEPS):
        give(params, step)
        state = [{k: v.clone() for k, v in optimizer.state.get(p, {}).items()} for p in params]
        expected, kept = in_float32(name, kwargs, params, [p.grad for p in params], state)
        optimizer.step()
        for p, wanted, slots in zip(params, expected, kept, strict=True):
            assert_near(p, wanted.to(dtype))
            names = [key for key in slots if slots[key] is not None]
            assert optimizer.state.get(p, {}).keys() == set(names) or name == "SGD" or name == "Lion"
            for key in set(names) - {"step", "mu_product"}:
                found = optimizer.state[p][key]
                assert_near(found, slots[key].to(dtype))
                assert not p.numel() or found.stride() == torch.empty_like(p).stride()


@over_halves
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("kwargs", [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True, "eps": 1e-3}])
def test_torchs_fused_kernel(name, kwargs, dtype):
    """Step by step the same numbers, but for a unit in the last place of very few. torch wants dense gradients."""
    params, theirs = ([leaf(torch.empty_like(p).copy_(p)) for p in parameters(dtype)] for _ in range(2))
    optimizer = ours(name, params, {"lr": 0.01, **kwargs})
    reference = getattr(torch.optim, name)(theirs, lr=0.01, fused=True, **kwargs)
    different = 0
    for step in range(STEPS):
        give(params, step)
        for p, grad in zip(theirs, gradients_of(theirs, step), strict=True):
            p.grad = torch.empty_like(p).copy_(grad)
        optimizer.step()
        reference.step()
        for p, q in zip(params, theirs, strict=True):
            pairs = [(p, q), *((optimizer.state[p][key], reference.state[q][key]) for key in reference.state[q])]
            for found, wanted in pairs:
                if wanted.dtype == dtype:
                    assert_near(found, wanted)
                    different += (bits(found) != bits(wanted)).sum().item()
                wanted.data.copy_(found.data)
    assert different < 1e-3 * STEPS * LARGE


@over_halves
@pytest.mark.parametrize("kwargs", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}])
def test_torchs_fused_sgd(kwargs, dtype):
    """On a few numbers: in torch 2.13 more are not stepped at all (pytorch/pytorch#191763)."""
    p, q = (leaf(torch.linspace(-2, 2, 3).to(dtype)) for _ in range(2))
    optimizer, reference = fastopt.torch.SGD([p], **kwargs), torch.optim.SGD([q], fused=True, **kwargs)
    for step in range(STEPS):
        p.grad, q.grad = (torch.full_like(p, 0.1 * (step + 1)) for _ in range(2))
        optimizer.step()
        reference.step()
        assert_near(p, q)
        q.data.copy_(p.data)
        if "momentum" in kwargs:
            assert units(optimizer.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"]) <= 1
            reference.state[q]["momentum_buffer"].copy_(optimizer.state[p]["momentum_buffer"])


@over_halves
@pytest.mark.parametrize(("name", "kwargs"), [case for case in ELEMENTWISE if case[0] != "Lion"])
def test_state_goes_from_one_to_the_other(name, kwargs, dtype):
    params = [leaf(torch.empty_like(p).copy_(p)) for p in parameters(dtype)]
    theirs = [leaf(p.clone()) for p in params]
    reference = getattr(torch.optim, name)(theirs, foreach=False, **kwargs)
    give(theirs, 0)
    reference.step()
    optimizer = ours(name, params, kwargs)
    optimizer.load_state_dict(reference.state_dict())
    give(params, 1)
    optimizer.step()
    again = getattr(torch.optim, name)(theirs, foreach=False, **kwargs)
    again.load_state_dict(optimizer.state_dict())
    give(theirs, 2)
    again.step()
    for p, q in zip(params, theirs, strict=True):
        assert optimizer.state[p].keys() == reference.state[q].keys()
        for key, value in reference.state[q].items():
            assert value is None or optimizer.state[p][key].dtype == value.dtype


@over_halves
def test_gradients_of_any_float(dtype):
    found = []
    for grad_dtype in (dtype, torch.float32, torch.float64):
        p = leaf(torch.linspace(-1, 1, LARGE).to(dtype))
        p.grad_dtype = None
        optimizer = fastopt.torch.AdamW([p])
        for step in range(3):
            p.grad = torch.randn(LARGE, generator=torch.Generator().manual_seed(step)).to(dtype).to(grad_dtype)
            optimizer.step()
        found.append(p)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_mixed_model_steps_each_kind_as_alone():
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    together = {kind: parameters(kind, seed=3) for kind in kinds}
    params = [together[kinds[k % 4]][j] for j in range(7) for k in range(4)]
    optimizer = fastopt.torch.AdamW(params, lr=0.01)
    alone = {kind: parameters(kind, seed=3) for kind in kinds}
    others = {kind: fastopt.torch.AdamW(alone[kind], lr=0.01) for kind in kinds}
    for step in range(3):
        for kind in kinds:
            give(together[kind], step, torch.float16)
            give(alone[kind], step, torch.float16)
            others[kind].step()
        optimizer.step()
    for kind in kinds:
        for p, q in zip(together[kind], alone[kind], strict=True):
            assert torch.equal(p, q)
            assert torch.equal(optimizer.state[p]["exp_avg"], others[kind].state[q]["exp_avg"])


EXTREME = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 6e4, -6e4, 1e-7, 6e-8, 3e38, -3e38]


@over_halves
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"])
def test_extreme_numbers(name, dtype):
    """Infinite and NaN where torch's float32 step is, rounded."""
    numbers = torch.tensor(EXTREME).to(dtype)
    start, grad = numbers.repeat_interleave(len(EXTREME)), numbers.repeat(len(EXTREME))
    p, q = leaf(start.clone()), leaf(start.float())
    optimizer, reference = ours(name, [p], {"lr": 0.01}), getattr(torch.optim, name)([q], lr=0.01, foreach=False)
    for _ in range(2):
        p.grad, q.grad = grad.clone(), grad.float()
        optimizer.step()
        reference.step()
        q.data = q.data.to(dtype).float()
        for value in reference.state[q].values():
            if isinstance(value, torch.Tensor) and value.ndim:
                value.copy_(value.to(dtype).float())
        torch.testing.assert_close(
            p.detach().float(), q.detach(), rtol=torch.finfo(dtype).eps, atol=1e-7, equal_nan=True
        )


@over_halves
def test_clipping_is_that_of_float32(dtype):
    params = parameters(dtype)
    optimizer = fastopt.torch.AdamW(params, lr=0.01, clip_norm=0.5, clip_value=0.02)
    give(params, 0)
    norm = torch.cat([p.grad.double().flatten() for p in params]).norm().item()
    before = [p.grad.clone() for p in params]
    expected = [leaf(p.detach().float()) for p in params]
    for p, q in zip(expected, params, strict=True):
        p.grad = (q.grad.float() * (0.5 / norm)).clamp(-0.02, 0.02)
    torch.optim.AdamW(expected, lr=0.01, foreach=False).step()
    optimizer.step()
    assert optimizer.last_grad_norm == pytest.approx(norm, rel=1e-6)
    for p, q, grad in zip(params, expected, before, strict=True):
        assert units(p, q.to(dtype)) <= 1 and torch.equal(p.grad, grad)


@over_halves
def test_options_beside(dtype):
    """Zeroed gradients, averages in float32, closures, groups, and a step that is skipped."""
    params = parameters(dtype)
    groups = [{"params": params[:3], "lr": 0.1}, {"params": params[3:]}]
    optimizer = fastopt.torch.AdamW(groups, lr=0.01, fused_zero_grad=True, ema=0.9, nonfinite="skip")
    mean = None
    for step in range(4):

        def closure(step=step):
            give(params, step)
            return torch.tensor(float(step))

        assert optimizer.step(closure) == step
        assert not any(p.grad.any() for p in params)
        now = params[6].detach().float()
        mean = now.clone() if mean is None else mean * 0.9 + now * (1 - 0.9)
    average = optimizer.state[params[6]]["ema"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, mean, rtol=1e-5, atol=1e-6)
    before = [p.detach().clone() for p in params]
    with optimizer.evaluation_weights():
        assert torch.equal(params[6], average.to(dtype))
    give(params, 9)
    params[2].grad[1] = torch.inf
    optimizer.step()
    assert optimizer.last_step_skipped
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@over_halves
@pytest.mark.parametrize("scale", [2.0**16, 1000.0])
def test_a_scaler_hands_its_scale_over_to_fused_optimizers(dtype, scale):
    """As to torch's: gradients are left divided; the step has them in float32, so that small ones are not lost."""
    params, theirs = ([leaf(torch.linspace(-1, 1, 50).to(dtype))] for _ in range(2))
    optimizer = fastopt.torch.Adam(params, lr=0.01, fused=True)
    reference = torch.optim.Adam(theirs, lr=0.01, fused=True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100) for _ in range(2)]
    for step in range(6):
        for own, (p,), scaler in zip((optimizer, reference), (params, theirs), scalers, strict=True):
            scaler.scale(torch.zeros(()))
            p.grad = torch.randn(50, generator=torch.Generator().manual_seed(step)).to(dtype)
            if step == 3:
                p.grad[7] = torch.inf
            scaler.step(own)
            scaler.update()
        assert units(params[0], theirs[0]) <= 1
        if step != 3:
            assert units(params[0].grad, theirs[0].grad) <= 1
    assert scalers[0].get_scale() == scalers[1].get_scale() == scale / 2


def test_a_scale_that_is_handed_over_comes_before_clipping():
    """In a mixed model, whose float32 gradients are scaled, too."""
    params = [leaf(torch.ones(40, dtype=dtype)) for dtype in (torch.float16, torch.float32)]
    optimizer = fastopt.torch.SGD(params, lr=1.0, fused=True, clip_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for p in params:
        p.grad = torch.full_like(p, 1024 * 3.0)
    scaler.step(optimizer)
    assert optimizer.last_grad_norm == pytest.approx(3 * 80**0.5)
    for p in params:
        assert torch.equal(p.grad, torch.full_like(p, 3.0))
        torch.testing.assert_close(p.detach().float(), torch.full((40,), 1 - 80**-0.5), rtol=1e-3, atol=0)


def test_a_scaler_unscales_bfloat16_itself_for_others():
    p = leaf(torch.ones(3, dtype=torch.bfloat16))
    optimizer = fastopt.torch.SGD([p], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    scaler.scale((p * 3).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(p.grad, torch.full_like(p, 3)) and torch.equal(p, torch.full_like(p, -0.5))


# -- what is kept beside parameters, and how slots are kept -----------------------------------------------------------

FORMATS = {
    "master": {"master_weights": "float32"},
    "split": {"master_weights": "split"},
    "kahan": {"compensation": "kahan"},
    "random": {"stochastic_rounding": True, "seed": 7},
    "float32 slots": {"slot_dtype": "float32"},
    "bfloat16 slots": {"slot_dtype": "bfloat16"},
    "float16 slots": {"slot_dtype": "float16", "master_weights": "float32"},
    "8bit slots": {"slot_dtype": "8bit", "stochastic_rounding": True},
    "8bit and split": {"slot_dtype": "8bit", "master_weights": "split", "ema": 0.9},
}
over_formats = pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
BESIDE = {"master": torch.float32, "remainder": torch.int16, "compensation": torch.bfloat16}


def runs():
    """Each format and each class in turn; all together take minutes to compile."""
    for k, (name, kwargs) in enumerate(ELEMENTWISE):
        for j, (called, formats) in enumerate(FORMATS.items()):
            marks = () if j == k % len(FORMATS) or name == "AdamW" else pytest.mark.full
            yield pytest.param(name, kwargs, formats, marks=marks, id=f"{name}-{called}")


@pytest.mark.parametrize(("name", "kwargs", "formats"), list(runs()))
def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(name, kwargs, formats):
    """By state_dict, torch.save, deepcopy and pickle."""
    params = parameters(torch.bfloat16)
    optimizer = ours(name, params, {**kwargs, **formats})
    for step in range(3):
        give(params, step)
        optimizer.step()
    resumed = [leaf(torch.empty_like(p).copy_(p)) for p in params]
    loaded = ours(name, resumed, {**kwargs, **formats})
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    loaded.load_state_dict(saved)
    for p, q in zip(params, resumed, strict=True):
        for key, value in optimizer.state[p].items():
            found = loaded.state[q][key]
            assert value is None or (found.dtype == value.dtype and torch.equal(found, value))
    copied, pickled = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    runs = [(optimizer, params), (loaded, resumed)]
    runs += [(each, [p for group in each.param_groups for p in group["params"]]) for each in (copied, pickled)]
    for step in range(3, 6):
        for own, stepped in runs:
            give(stepped, step)
            own.step()
    for own, stepped in runs[1:]:
        for p, q in zip(params, stepped, strict=True):
            assert torch.equal(p, q)
            for key, value in optimizer.state[p].items():
                assert value is None or torch.equal(own.state[q][key], value), key


@over_formats
def test_names_and_dtypes_in_state(formats):
    params = parameters(torch.bfloat16)
    optimizer = fastopt.torch.AdamW(params, **formats)
    give(params, 0)
    optimizer.step()
    kind = formats.get("slot_dtype")
    for p in params:
        state, is_large = optimizer.state[p], p.numel() >= 4096
        wanted = torch.float32 if kind == "8bit" else getattr(torch, kind or "bfloat16")
        is_scaled = kind == "8bit" and is_large
        assert state["exp_avg"].dtype == (torch.int8 if is_scaled else wanted)
        assert state["exp_avg_sq"].dtype == (torch.uint8 if is_scaled else wanted)
        assert ("exp_avg_scale" in state) == ("exp_avg_sq_scale" in state) == is_scaled
        beside = {"split": "remainder", "float32": "master"}.get(formats.get("master_weights"))
        beside = beside or ("compensation" if "compensation" in formats else None)
        assert {key for key in BESIDE if key in state} == ({beside} if beside else set())
        assert beside is None or state[beside].dtype == BESIDE[beside]


@over_halves
@pytest.mark.parametrize("way", ["master", "split", "kahan"])
def test_small_steps_are_not_lost(way, dtype):
    """Steps of a tenth of a unit in the last place: parameters follow those of float32."""
    if way == "split" and dtype == torch.float16:
        with pytest.raises(ValueError, match='"split" takes bfloat16 apart'):
            fastopt.torch.SGD([leaf(torch.ones(3, dtype=dtype))], **FORMATS[way])
        return
    size, unit = 300, torch.finfo(dtype).eps
    start = torch.linspace(1.05, 1.9, size).to(dtype)
    p, plain, exact = leaf(start.clone()), leaf(start.clone()), leaf(start.float())
    optimizers = [
        fastopt.torch.SGD([p], lr=unit / 10, **FORMATS[way]),
        fastopt.torch.SGD([plain], lr=unit / 10),
        torch.optim.SGD([exact], lr=unit / 10),
    ]
    for _ in range(40):
        for q in (p, plain, exact):
            q.grad = torch.ones_like(q)
        for optimizer in optimizers:
            optimizer.step()
    assert units(p, exact.to(dtype)) <= 1
    assert torch.equal(plain, start)


def test_masters_are_those_of_a_float32_run():
    p = leaf(torch.linspace(-1, 1, LARGE).bfloat16())
    q = leaf(p.detach().float())
    optimizer = fastopt.torch.AdamW([p], lr=1e-3, master_weights="float32", slot_dtype="float32")
    other = fastopt.torch.AdamW([q], lr=1e-3)
    for step in range(10):
        q.grad = torch.randn(LARGE, generator=torch.Generator().manual_seed(step)).bfloat16().float()
        p.grad = q.grad.bfloat16()
        optimizer.step()
        other.step()
    assert torch.equal(optimizer.state[p]["master"], q.detach()) and torch.equal(p, q.bfloat16())
    with torch.no_grad():
        p.mul_(2)  # what a user writes holds
    p.grad.zero_()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(optimizer.state[p]["master"], p.float())


def test_rounding_at_random_is_right_on_average_and_follows_the_seed():
    def run(seed, count=1):
        p = leaf(torch.ones(20_000, dtype=torch.bfloat16))
        optimizer = fastopt.torch.SGD([p], lr=2.0**-11, stochastic_rounding=True, seed=seed)
        for _ in range(count):
            p.grad = -torch.ones_like(p)
            optimizer.step()
        assert optimizer.param_groups[0]["rounding_step"] == count
        return p.detach()

    found = run(1, 8)
    assert found.double().mean().item() == pytest.approx(1 + 8 * 2.0**-11, abs=2e-4)
    assert torch.equal(found, run(1, 8)) and not torch.equal(found, run(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "8bit"])
def test_slots_of_few_bytes_train_about_as_well(kind, dtype):
    target = torch.randn(LARGE, generator=torch.Generator().manual_seed(1)).to(dtype)
    losses = []
    for slot_dtype in (None, kind):
        p = leaf(torch.zeros(LARGE, dtype=dtype))
        optimizer = fastopt.torch.AdamW([p], lr=0.05, weight_decay=0.0, slot_dtype=slot_dtype)
        for _ in range(60):
            p.grad = p.detach() - target
            optimizer.step()
        losses.append((p.detach() - target).double().square().mean().item())
    assert losses[1] < 1.5 * losses[0] + 1e-3


def test_defaults_of_torch_do_not_reach_state():
    p = leaf(torch.linspace(-1, 1, LARGE))
    optimizer = fastopt.torch.AdamW([p], slot_dtype="8bit")
    p.grad = torch.ones_like(p)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    scale = optimizer.state[p]["exp_avg_scale"]
    assert scale.dtype == torch.float32 and scale.device.type == "cpu"


def test_formats_change_with_the_options_and_keep_their_numbers():
    p = leaf(torch.linspace(-1, 1, LARGE))
    optimizer = fastopt.torch.AdamW([p], slot_dtype="8bit")
    known = torch.linspace(-1, 1, LARGE).square() + 0.1
    for kind, dtype in [("8bit", torch.int8), (None, torch.float32), ("float16", torch.float16), ("8bit", torch.int8)]:
        optimizer.slot_dtype = kind
        p.grad = known.clone()
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype == dtype
    steps = int(optimizer.state[p]["step"])
    optimizer.slot_dtype = None
    p.grad = known.clone()
    optimizer.step()
    expected = known * (1 - 0.9 ** (steps + 1))
    assert ((optimizer.state[p]["exp_avg"] - expected).abs() / expected).max() < 0.05


MIXED = {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slots_of_different_formats(dtype):
    """What a dict does not name is kept as without one; numbers are those of runs with the format alone."""
    runs = {}
    for key, kind in {
        "mixed": MIXED, "first": {"exp_avg": "bfloat16"}, "none": None, "all 8": "8bit"
    }.items():  # fmt: skip
        p = leaf(torch.linspace(-1, 1, LARGE).to(dtype))
        optimizer = fastopt.torch.AdamW([p], slot_dtype=kind, seed=3)
        for step in range(3):
            p.grad = torch.randn(LARGE, generator=torch.Generator().manual_seed(step)).to(dtype)
            optimizer.step()
        runs[key] = optimizer.state[p]
    dtypes = {key: (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) for key, state in runs.items()}
    assert dtypes["mixed"] == (torch.bfloat16, torch.uint8) and dtypes["first"] == (torch.bfloat16, dtype)
    assert [key for key in runs["mixed"] if key.endswith("_scale")] == ["exp_avg_sq_scale"]
    assert torch.equal(runs["first"]["exp_avg_sq"], runs["none"]["exp_avg_sq"])
    for key in ("exp_avg_sq", "exp_avg_sq_scale"):
        assert torch.equal(runs["mixed"][key], runs["all 8"][key])
    exact = runs["none"]["exp_avg"].float()
    torch.testing.assert_close(runs["mixed"]["exp_avg"].float(), exact, rtol=0.03, atol=0.01)


def test_a_dict_of_formats_is_kept_saved_and_read_only():
    chosen = dict(MIXED)
    p = leaf(torch.linspace(-1, 1, LARGE))
    optimizer = fastopt.torch.AdamW([p], slot_dtype=chosen)
    chosen["exp_avg"] = "8bit"
    assert optimizer.slot_dtype == MIXED
    with pytest.raises(TypeError, match="item assignment"):
        optimizer.slot_dtype["exp_avg"] = "8bit"
    p.grad = torch.ones_like(p)
    optimizer.step()
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for each in (optimizer, *copies):
        (q,) = each.param_groups[0]["params"]
        q.grad = torch.full_like(q, 0.5)
        each.step()
        assert each.slot_dtype == MIXED and torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["exp_avg"], each.state[q]["exp_avg"])
    optimizer.slot_dtype = {"exp_avg_sq": "bfloat16"}
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float32
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.bfloat16


def test_slots_may_be_named_that_are_not_there_yet():
    p = leaf(torch.linspace(-1, 1, LARGE))
    optimizer = fastopt.torch.AdamW([p], slot_dtype={"max_exp_avg_sq": "8bit"})
    for amsgrad in (False, True):
        optimizer.param_groups[0]["amsgrad"] = amsgrad
        p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state[p]
        assert ("max_exp_avg_sq_scale" in state) == amsgrad and "exp_avg_sq_scale" not in state
    assert state["max_exp_avg_sq"].dtype == torch.uint8
    optimizer.slot_dtype = {"square_avg": "8bit"}
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(
        ValueError, match="there is no slot 'square_avg': the slots are exp_avg, exp_avg_sq, max_exp_avg_sq"
    ):
        optimizer.step()
    assert all(torch.equal(state[key], value) for key, value in before["state"][0].items())


def test_formats_of_ones_own_are_not_for_tensors():
    fastopt.register_format(
        "torch8",
        lambda stored, scale: stored[0] * scale,
        lambda number, scale, noise: (number,),
        ["float32"],
        scaled=True,
    )
    for kind in ("torch8", {"exp_avg": "torch8"}):
        with pytest.raises(ValueError, match="slot_dtype='torch8' is registered for NumPy arrays"):
            fastopt.torch.AdamW([leaf(torch.ones(3))], slot_dtype=kind)


def test_what_belongs_to_another_format_leaves_state():
    p, resumed = (leaf(torch.linspace(-1, 1, LARGE).bfloat16()) for _ in range(2))
    optimizer = fastopt.torch.AdamW([p], amsgrad=True, slot_dtype="8bit", master_weights="float32")
    names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]

    def beside(state):
        return state.keys() - {"step", *names}

    def step(own, tensor):
        tensor.grad = torch.ones_like(tensor)
        own.step()
        return beside(own.state[tensor])

    assert step(optimizer, p) == {"master", *(f"{name}_scale" for name in names)}
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["amsgrad"] = False  # its slot stays in state, in 8 bits: so do the scales
    optimizer.slot_dtype = {"exp_avg_sq": "8bit"}
    assert step(optimizer, p) == {"master", "exp_avg_sq_scale", "max_exp_avg_sq_scale"}
    optimizer.master_weights, optimizer.slot_dtype = "split", None
    assert step(optimizer, p) == {"remainder", "max_exp_avg_sq_scale"}
    other = fastopt.torch.AdamW([resumed], amsgrad=True)
    other.load_state_dict(saved)
    other.state[resumed]["my_scale"] = other.state[resumed]["my"] = torch.ones(3)
    assert step(other, resumed) == {"my", "my_scale"}
    torch.optim.AdamW([resumed], amsgrad=True).load_state_dict(other.state_dict())


def test_a_step_that_is_refused_lets_go_of_nothing():
    p = leaf(torch.linspace(-1, 1, LARGE))
    optimizer = fastopt.torch.AdamW([p], slot_dtype="8bit", nonfinite="raise")
    p.grad = torch.ones_like(p)
    optimizer.step()
    before, state = dict(optimizer.state[p]), optimizer.state[p]
    optimizer.slot_dtype = None
    p.grad[3] = torch.inf
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert state.keys() == before.keys() and all(state[key] is value for key, value in before.items())


def test_a_checkpoint_of_8_bits_loads_into_other_formats():
    p, q, r = (leaf(torch.linspace(-1, 1, LARGE).bfloat16()) for _ in range(3))
    optimizer = fastopt.torch.AdamW([p], slot_dtype="8bit")
    p.grad = torch.linspace(1, 2, LARGE).bfloat16()
    optimizer.step()
    other = fastopt.torch.AdamW([q])
    other.load_state_dict(optimizer.state_dict())
    q.grad = p.grad.clone()
    other.step()
    found = other.state[q]["exp_avg"]
    assert found.dtype == torch.bfloat16
    assert ((found.float() / (0.19 * p.grad.float())) - 1).abs().max() < 0.05
    saved = optimizer.state_dict()
    del saved["state"][0]["exp_avg_scale"]
    last = fastopt.torch.AdamW([r], slot_dtype="8bit")
    last.load_state_dict(saved)
    r.grad, before = p.grad.clone(), r.detach().clone()
    with pytest.raises(ValueError, match="'exp_avg' of parameter 0 of group 0 is in 8 bits, and its 'exp_avg_scale'"):
        last.step()
    assert torch.equal(r, before)


def test_8_bits_follow_a_parameter_that_lies_otherwise():
    p = leaf(torch.randn(64, 80, generator=torch.Generator().manual_seed(0)))
    grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 80)
    optimizer = fastopt.torch.AdamW([p], slot_dtype="8bit")
    p.grad = grad.clone()
    optimizer.step()
    p.data = p.data.t().contiguous().t()
    optimizer.slot_dtype = "8bit"
    p.grad = grad.clone()
    optimizer.step()
    optimizer.slot_dtype = "float32"
    p.grad = grad.clone()
    optimizer.step()
    found, expected = optimizer.state[p]["exp_avg"], 0.271 * grad
    share = expected.abs() / expected.abs().max()
    bound = 0.04 * share**0.75 + 4e-7  # two half codes, of a fourth root in [0, 127]
    assert ((found - expected).abs() / expected.abs().max() <= bound).all()


def test_a_parameter_of_16_bits_may_have_gaps_between_its_elements():
    start = torch.linspace(-1, 1, 12, dtype=torch.bfloat16).reshape(3, 4)
    p, q = leaf(torch.zeros(3, 8, dtype=torch.bfloat16)[:, ::2]), leaf(start.clone())
    p.data.copy_(start)
    for each in (p, q):
        optimizer = fastopt.torch.AdamW([each], lr=0.1)
        for _ in range(3):
            each.grad = torch.ones_like(each)
            optimizer.step()
    assert not p.is_contiguous()
    assert torch.equal(p, q)
    assert not torch.equal(q, start)


def test_a_model_may_change_its_dtype_while_training():
    p = leaf(torch.linspace(-1, 1, 10))
    optimizer = fastopt.torch.AdamW([p])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        p.data = p.data.to(dtype)
        p.grad = None
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype == dtype
    assert optimizer.state[p]["step"] == 4
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full_like(p, 1 - 0.9**4), rtol=0.01, atol=0)


# -- what is refused --------------------------------------------------------------------------------------------------

WHOLE = ["Lamb", "Adafactor", "Muon", "RowwiseAdagrad", "ScheduleFreeAdamW", "SparseAdam"]


@pytest.mark.parametrize("name", WHOLE)
def test_rules_that_are_not_elementwise_refuse(name):
    kind = getattr(fastopt.torch, name)
    with pytest.raises(TypeError, match=rf"parameter 0 of group 0 is torch.bfloat16, and {name} keeps.*autocast"):
        kind([leaf(torch.ones(3, 3, dtype=torch.bfloat16))])
    for option in ({"slot_dtype": "8bit"}, {"master_weights": "float32"}, {"stochastic_rounding": True}):
        (called,) = option
        with pytest.raises(TypeError, match=rf"{called}=.*{name} keeps.*leave {called} out"):
            kind([leaf(torch.ones(3, 3))], **option)


@pytest.mark.parametrize("option", ["flat", "fused_backward"])
def test_other_options_refuse(option):
    with pytest.raises(ValueError, match=rf"is torch.float16, and {option}=True"):
        fastopt.torch.AdamW([leaf(torch.ones(3, dtype=torch.float16))], **{option: True})
    with pytest.raises(ValueError, match=rf"slot_dtype='bfloat16', and {option}=True"):
        fastopt.torch.AdamW([leaf(torch.ones(3))], slot_dtype="bfloat16", **{option: True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slot_dtype": "int8"}, "slot_dtype must be one of 'float32', 'bfloat16', 'float16', '8bit'.* got 'int8'"),
        ({"slot_dtype": ["8bit"]}, "slot_dtype must be one of"),
        ({"slot_dtype": {"exp_avg": "int8"}}, "slot_dtype of 'exp_avg' must be one of 'float32', .* got 'int8'"),
        ({"slot_dtype": {"exp_avg": torch.bfloat16}}, "slot_dtype of 'exp_avg' must be one of"),
        (
            {"slot_dtype": {"velocity": "8bit", 3: None}},
            "there is no slot 3, 'velocity': the slots are exp_avg, exp_avg",
        ),
        ({"master_weights": "float64"}, "master_weights must be"),
        ({"compensation": True}, "compensation must be"),
        ({"stochastic_rounding": 1}, "stochastic_rounding must be a bool"),
        ({"seed": -1}, "seed must be an int"),
        ({"seed": 0.5}, "seed must be an int"),
        ({"master_weights": "split", "stochastic_rounding": True}, "master_weights and stochastic_rounding are both"),
        ({"compensation": "kahan", "master_weights": "float32"}, "master_weights and compensation are both"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastopt.torch.AdamW([leaf(torch.ones(3))], **options)


def _sparse(p):
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 4, dtype=p.dtype), p.shape, check_invariants=True)


def _shape(p):
    p.data = p.data[:2]


def _negated(p):
    p.grad = torch._neg_view(p.grad)


def _kind(p):
    p.grad_dtype = None
    p.grad = torch.ones(p.shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (_sparse, TypeError, "is sparse, and what is kept in a storage format takes dense ones"),
        (_shape, ValueError, "has the shape"),
        (_negated, TypeError, "negated lazily: expected float32, float64, bfloat16 or float16"),
        (_kind, TypeError, "is torch.int32: expected float32, float64, bfloat16 or float16"),
    ],
)
@pytest.mark.parametrize("formats", [{}, *FORMATS.values()], ids=["plain", *FORMATS])
def test_hostile_input_leaves_all_as_it_was(harm, error, message, formats):
    good, p = (leaf(torch.linspace(-1, 1, 12).bfloat16().reshape(3, 4)) for _ in range(2))
    optimizer = fastopt.torch.AdamW([good, p], sparse="lazy", **{**formats, "ema": None})
    for each in (good, p):
        each.grad = torch.ones_like(each)
    optimizer.step()
    harm(p)
    before = [each.detach().clone() for each in (good, p)]
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(torch.equal(now, then) for now, then in zip((good, p), before, strict=True))
    found = optimizer.state_dict()
    assert found["param_groups"] == saved["param_groups"]
    for number, state in saved["state"].items():
        assert all(torch.equal(found["state"][number][key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("formats", "name", "harm"),
    [
        ({}, "exp_avg", lambda value: value[:2]),
        ({"master_weights": "float32"}, "master", lambda value: value.flatten()),
        ({"master_weights": "split"}, "remainder", lambda value: value[:, :2]),
        ({"compensation": "kahan"}, "compensation", lambda value: value.t()),
        ({"slot_dtype": "8bit"}, "exp_avg", lambda value: value[:, :40]),
        ({"slot_dtype": "8bit"}, "exp_avg_sq_scale", lambda value: value[:3]),
    ],
)
def test_state_that_does_not_fit_is_refused(formats, name, harm):
    p = leaf(torch.linspace(-1, 1, 60 * 90).bfloat16().reshape(60, 90))
    optimizer = fastopt.torch.AdamW([p], **formats)
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    state[name] = harm(state[name])
    before, kept = p.detach().clone(), {key: value.clone() for key, value in state.items()}
    with pytest.raises(ValueError, match=rf"{name.removesuffix('_scale')}.*parameter 0 of group 0"):
        optimizer.step()
    assert torch.equal(p, before) and all(torch.equal(state[key], value) for key, value in kept.items())
