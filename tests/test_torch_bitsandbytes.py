"""State of bitsandbytes' optimizers goes on in fastopt.torch: against bitsandbytes, and against what it once recorded.

`python tests/test_torch_bitsandbytes.py` records anew; it needs bitsandbytes, and torch on a CPU is enough.
"""

import copy
import json
from pathlib import Path

import pytest
from needs_torch import torch
from rows import rows

import fastopt.torch
from fastopt.torch import from_bitsandbytes

RECORDED = Path(__file__).with_name("golden") / "bitsandbytes.json"
SHAPES = [(20, 15), (5,)]
"""The first is kept in 8 bits, by two blocks; the second in float32."""

CLASSES = {
    "Adam": ("Adam8bit", {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW": ("AdamW8bit", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    "Lion": ("Lion8bit", {"lr": 0.003, "betas": (0.9, 0.95), "weight_decay": 0.1}),
    "SGD": ("SGD8bit", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
    "RMSprop": ("RMSprop8bit", {"lr": 0.003, "alpha": 0.95, "weight_decay": 0.01}),
    "Adagrad": ("Adagrad8bit", {"lr": 0.03, "weight_decay": 0.01}),
}
"""torch's name → bitsandbytes' name, and arguments that are not as by default."""

FORMATS = {"float32": None, "bfloat16": "bfloat16", "8bit": "8bit"}


def parameters(shapes=SHAPES):
    """The same at any time, on any machine."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [
        torch.linspace(-1, 1, size).reshape(shape).requires_grad_() for size, shape in zip(sizes, shapes, strict=True)
    ]


def give(params, step):
    """Gradients of a bowl, whose slopes differ by a hundredfold, and which wobbles from step to step."""
    for p in params:
        place = torch.arange(p.numel()).reshape(p.shape)
        p.grad = (p.detach() - torch.cos(place.float() + step)) * 10.0 ** (-2 * (place % 16) / 15)


def goes_on(optimizer, params, steps):
    for step in steps:
        give(params, step)
        optimizer.step()


def distance(ours, theirs, before):
    """How far two runs ended from each other, as a share of how far they came."""
    pairs = [(p.detach() - q).norm() for p, q in zip(ours, theirs, strict=True)]
    return max((pair / (q - r).norm()).item() for pair, q, r in zip(pairs, theirs, before, strict=True))


def tensors(value):
    """What `as_json` was made of."""
    if isinstance(value, dict) and "dtype" in value:
        return torch.tensor(value["values"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if isinstance(value, dict):
        return {int(key) if key.isdecimal() else key: tensors(each) for key, each in value.items()}
    return [tensors(each) for each in value] if isinstance(value, list) else value


def as_json(value):
    if isinstance(value, torch.Tensor):
        flat = value.detach().flatten()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "values": flat.tolist()}
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def recorded():
    return tensors(json.loads(RECORDED.read_text(encoding="utf-8")))


# -- against what bitsandbytes recorded --------------------------------------------------------------------------------


def test_recorded_state_has_the_numbers_that_bitsandbytes_decodes(recorded):
    before = copy.deepcopy(recorded["state"])
    found = from_bitsandbytes(recorded["state"])
    assert as_json(recorded["state"]) == as_json(before)
    for number, wanted in enumerate(recorded["decoded"]):
        state = found["state"][number]
        assert list(state) == ["step", "exp_avg", "exp_avg_sq"] and state["step"] == 4
        for name, slot in (("state1", "exp_avg"), ("state2", "exp_avg_sq")):
            assert state[slot].dtype == torch.float32 and torch.equal(state[slot], wanted[name])
    group = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "decoupled_weight_decay": True}
    assert found["param_groups"] == [{**group, "params": [0, 1]}]


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_training_goes_on_from_recorded_state(recorded, kind):
    """bitsandbytes rounds at each step, too; without the state the distance is as large as the way."""
    ours, alone = ([leaf(p) for p in recorded["params"]] for _ in range(2))
    optimizer = fastopt.torch.AdamW(ours, slot_dtype=kind)
    optimizer.load_state_dict(from_bitsandbytes(recorded["state"]))
    goes_on(optimizer, ours, range(4, 12))
    fresh = fastopt.torch.AdamW(alone, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    goes_on(fresh, alone, range(4, 12))
    assert distance(ours, recorded["later"], recorded["params"]) < 0.05
    assert distance(alone, recorded["later"], recorded["params"]) > 0.1
    assert optimizer.state[ours[0]]["exp_avg"].dtype == (torch.float32 if kind != "bfloat16" else torch.bfloat16)


def test_recorded_state_is_torchs_too(recorded):
    ours, theirs = ([leaf(p) for p in recorded["params"]] for _ in range(2))
    for kind, other in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
        optimizer, reference = getattr(fastopt.torch, kind)(ours), other(theirs)
        for each, params in ((optimizer, ours), (reference, theirs)):
            each.load_state_dict(from_bitsandbytes(recorded["state"], kind))
            goes_on(each, params, range(4, 9))
        assert distance(ours, theirs, recorded["params"]) < 1e-5
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def test_layouts_of_other_versions(recorded):
    """Tensors that are not wrapped, and blocks of 2048."""
    flat = copy.deepcopy(recorded["state"])
    for state in flat["state"].values():
        state.update(state.pop("__bnb_optimizer_quant_state__"))
    assert as_json(from_bitsandbytes(flat)) == as_json(from_bitsandbytes(recorded["state"]))
    codes = torch.arange(5000) % 256
    own = {"state1": codes.to(torch.uint8), "qmap1": torch.linspace(-1, 1, 256), "absmax1": torch.tensor([1.0, 2, 4])}
    flat["state"] = {0: {"step": 7, **own}}
    found = from_bitsandbytes(flat, "Lion")["state"][0]
    assert list(found) == ["exp_avg"]
    assert torch.equal(found["exp_avg"], own["qmap1"][codes] * torch.tensor([1.0] * 2048 + [2] * 2048 + [4] * 904))


def broken(harm):
    def broken(state):
        harm(state["state"][0]["__bnb_optimizer_quant_state__"])
        return state

    return broken


@rows("change, kind, message", [
    (lambda state: state, "adamw", "kind must be one of 'Adam', 'AdamW', 'Lion'"),
    (lambda state: list(state), "AdamW", "expected what state_dict.. of a bitsandbytes optimizer returns.* got list"),
    (lambda state: state["state"], "AdamW", "a dict with 'state' and 'param_groups', got dict"),
    (lambda state: state, "Lion", "state of parameter 0 has .*that of bitsandbytes' Lion has 'step', 'state1': name"),
    (lambda state: {**state, "state": {0: {"step": 1, "exp_avg": 0}}}, "AdamW", "has 'step', 'exp_avg', and that of"),
    (lambda state: {**state, "state": {0: {}}}, "AdamW", "state of parameter 0 has nothing"),
    (lambda state: {**state, "param_groups": [{"params": []}]}, "AdamW", "group 0 lacks 'lr'"),
    (lambda state: {**state, "param_groups": [{**state["param_groups"][0], "betas": (0.9, 0.9, 0.9)}]}, "AdamW",
     "group 0 has betas=.0.9, 0.9, 0.9., as of AdEMAMix"),
    (broken(lambda own: own.pop("absmax2")), "AdamW", "parameter 0: state2 is of 8 bits.*an absmax2 beside it"),
    (broken(lambda own: own.update(absmax1=own["absmax1"][:0])), "AdamW", "absmax1 beside it, a number for each 256"),
    (broken(lambda own: own.pop("qmap1")), "AdamW", "state1 is of 8 bits, and expected is a qmap1 of 256 numbers"),
    (broken(lambda own: own.update(qmap2=own["qmap2"][:16])), "AdamW", "a qmap2 of 256 numbers"),
    (broken(lambda own: own.update(state1=own["state1"].short())), "AdamW", "state1 must be a tensor of uint8, or of"),
    (broken(lambda own: own.update(state1=own["state1"].t())), "AdamW", "state1 has gaps or another order"),
    (broken(lambda own: own.update(max1=torch.ones(1))), "AdamW", "one scale for all .block_wise=False."),
    (broken(lambda own: own.update(state1=torch.zeros(2, 20, 15))), "AdamW", "different shapes, as of AdEMAMix"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(recorded, change, kind, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_bitsandbytes(change(copy.deepcopy(recorded["state"])), kind)


# -- against bitsandbytes itself ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes", reason="is not installed: pip install bitsandbytes")


def theirs(bnb, name, params, **more):
    called, arguments = CLASSES[name]
    return getattr(bnb.optim, called)(params, **arguments, **more)


def decoded(bnb, state):
    """What bitsandbytes takes the state of a parameter for."""
    found = {}
    for k in (1, 2):
        kept = state.get(f"state{k}")
        if kept is not None and kept.dtype == torch.uint8:
            scales, entries = state[f"absmax{k}"], state[f"qmap{k}"]
            kept = bnb.functional.dequantize_blockwise(kept, absmax=scales, code=entries, blocksize=256)
        if kept is not None:
            found[f"state{k}"] = kept
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_are_those_that_bitsandbytes_decodes(bnb, name):
    params = parameters([(70, 90), (4096,), (3, 4)])
    reference = theirs(bnb, name, params)
    goes_on(reference, params, range(5))
    saved = reference.state_dict()
    found = from_bitsandbytes(saved, name)["state"]
    for number, p in enumerate(params):
        wanted = decoded(bnb, reference.state[p])
        slots = [value for key, value in found[number].items() if key != "step"]
        assert len(slots) == len(wanted)
        assert all(torch.equal(mine, own) for mine, own in zip(slots, wanted.values(), strict=True))
        assert all(mine.data_ptr() != own.data_ptr() for mine, own in zip(slots, wanted.values(), strict=True))


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", CLASSES)
def test_training_goes_on_as_with_bitsandbytes(bnb, name, kind):
    """Ten more steps end near each other, in bitsandbytes' 8 bits and in any format; the class made has defaults."""
    params = parameters([(70, 90), (3, 4)])
    reference = theirs(bnb, name, params)
    goes_on(reference, params, range(10))
    ours, before = [leaf(p) for p in params], [p.detach().clone() for p in params]
    optimizer = getattr(fastopt.torch, name)(ours, lr=0.5, slot_dtype=kind)
    optimizer.load_state_dict(from_bitsandbytes(reference.state_dict(), name))
    goes_on(optimizer, ours, range(10, 20))
    goes_on(reference, params, range(10, 20))
    assert distance(ours, [p.detach() for p in params], before) < 0.1


def test_states_of_32_bits(bnb):
    params = parameters()
    reference = bnb.optim.AdamW32bit(params, lr=0.01)
    goes_on(reference, params, range(3))
    found = from_bitsandbytes(reference.state_dict())["state"]
    assert all(torch.equal(found[k]["exp_avg"], reference.state[p]["state1"]) for k, p in enumerate(params))


def test_losses_of_a_model_stay_near(bnb):
    """A network whose training changes from bitsandbytes' 8 bits to ours halfway."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
    inputs = torch.randn(256, 64)
    targets = torch.sin(3 * inputs) @ torch.randn(64, 64) / 8

    def trained(optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    reference = bnb.optim.AdamW8bit(model.parameters(), lr=3e-3)
    first = trained(reference, 60)
    weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(reference.state_dict())
    wanted = trained(reference, 60)
    model.load_state_dict(weights)
    optimizer = fastopt.torch.AdamW(model.parameters(), slot_dtype="8bit")
    optimizer.load_state_dict(from_bitsandbytes(saved))
    found = trained(optimizer, 60)
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.int8
    assert wanted[-1] < 0.7 * first[-1]
    assert max(abs(mine / own - 1) for mine, own in zip(found, wanted, strict=True)) < 0.03


def record():
    """Write `RECORDED` anew."""
    import bitsandbytes

    params = parameters()
    optimizer = theirs(bitsandbytes, "AdamW", params, min_8bit_size=64)
    goes_on(optimizer, params, range(4))
    found = {
        "versions": {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__},
        "state": optimizer.state_dict(),
        "decoded": [decoded(bitsandbytes, optimizer.state[p]) for p in params],
        "params": params,
    }
    text = as_json(copy.deepcopy(found))
    goes_on(optimizer, params, range(4, 12))
    RECORDED.write_text(json.dumps({**text, "later": as_json(params)}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
