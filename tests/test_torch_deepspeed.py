"""fastopt.torch.DeepSpeedCPUAdam: against formulas and torch.optim, and against DeepSpeed's own where that is."""

import copy
import functools
import inspect
import os
import pickle
import re
import sysconfig
import warnings
from pathlib import Path

import children
import pytest
from needs_torch import torch
from torch_reference import STEPS, assert_as_near_as_torch, distance, recorded_gradients, run

import fastopt.torch
from fastopt.bench.peers.deepspeed import DeepSpeed
from fastopt.torch import DeepSpeedCPUAdam

pytestmark = pytest.mark.xdist_group("torch_deepspeed")

SIGNATURE = {
    "model_params": inspect.Parameter.empty, "lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8,
    "weight_decay": 0, "amsgrad": False, "adamw_mode": True, "fp32_optimizer_states": True,
}  # fmt: skip
"""DeepSpeed's, 0.19."""

HALVES = [torch.bfloat16, torch.float16]
SIZE = 5000


def leaf(numbers):
    return numbers.detach().clone().requires_grad_()


def numbers(step, size=SIZE, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(step)).to(dtype)


def stepped(optimizer, params, steps):
    """Take these steps, each with gradients of its own."""
    for step in steps:
        for k, p in enumerate(params):
            p.grad = numbers(100 * step + k, p.numel(), p.dtype).reshape(p.shape)
        optimizer.step()
    return optimizer


# -- the class ---------------------------------------------------------------------------------------------------------


def defaults_of(kind, count):
    return {name: p.default for name, p in list(inspect.signature(kind).parameters.items())[:count]}


def test_the_signature_is_deepspeeds():
    assert list(defaults_of(DeepSpeedCPUAdam, len(SIGNATURE)).items()) == list(SIGNATURE.items())
    assert (
        list(inspect.signature(DeepSpeedCPUAdam).parameters)[len(SIGNATURE) :]
        == list(inspect.signature(fastopt.torch.RowwiseAdagrad).parameters)[-13:]
    )


def test_groups_are_deepspeeds():
    p = leaf(numbers(0))
    optimizer = DeepSpeedCPUAdam([{"params": [p], "lr": 0.5}], 0.1, weight_decay=0.01)
    expected = {key: SIGNATURE[key] for key in ("betas", "eps", "bias_correction", "amsgrad")}
    assert optimizer.defaults == {"lr": 0.1, "weight_decay": 0.01, **expected}
    assert optimizer.param_groups == [{"params": [p], "lr": 0.5, "weight_decay": 0.01, **expected}]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert (optimizer.adam_w_mode, optimizer.fp32_optimizer_states) == (True, True)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("full", [True, False], ids=["float32 states", "own states"])
def test_state(dtype, full):
    p = leaf(numbers(0, dtype=dtype))
    optimizer = DeepSpeedCPUAdam([p], fp32_optimizer_states=full)
    assert optimizer.state_dict()["state"] == {}
    stepped(optimizer, [p], range(3))
    (state,) = optimizer.state_dict()["state"].values()
    assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
    assert (state["step"], type(state["step"])) == (3, int)
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32 if full else dtype}
    assert {state[name].shape for name in ("exp_avg", "exp_avg_sq")} == {p.shape}


@pytest.mark.parametrize("through", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_and_checkpoints_go_on_as_the_original(through):
    kwargs = {"adamw_mode": False, "weight_decay": 0.5, "fp32_optimizer_states": False}
    first = stepped(
        optimizer := DeepSpeedCPUAdam([leaf(numbers(0))], **kwargs), optimizer.param_groups[0]["params"], range(3)
    )
    copied = through(first)
    loaded = DeepSpeedCPUAdam([leaf(first.param_groups[0]["params"][0])], **kwargs)
    loaded.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert (copied.adam_w_mode, copied.fp32_optimizer_states) == (False, False)
    ends = [
        stepped(each, each.param_groups[0]["params"], range(3, 6)).param_groups[0]["params"][0]
        for each in (first, copied, loaded)
    ]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_options_of_fastopt():
    p = leaf(numbers(0, dtype=torch.bfloat16))
    optimizer = DeepSpeedCPUAdam([p], clip_norm=1.0, master_weights="split", slot_dtype="8bit")
    stepped(optimizer, [p], range(2))
    assert optimizer.last_grad_norm == pytest.approx(numbers(100, dtype=torch.bfloat16).double().norm().item())
    state = optimizer.state[p]
    assert (state["remainder"].dtype, state["exp_avg"].dtype) == (torch.int16, torch.int8)


def test_float32_states_are_no_format_beside_float32_parameters():
    plain, flat = ([leaf(numbers(0)), leaf(numbers(1))] for _ in range(2))
    stepped(DeepSpeedCPUAdam(plain), plain, range(3))
    stepped(DeepSpeedCPUAdam(flat, flat=True), flat, range(3))
    assert all(map(torch.equal, plain, flat))


def test_the_program_of_the_page(capsys):
    page = (Path(__file__).parents[1] / "docs" / "torch.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {})
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL))


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adamw_mode", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_as_near_to_float64_as_torch(adamw_mode, reference):
    kwargs = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}

    def torchs(params):
        return reference(params, foreach=False, **kwargs)

    def ours(params):
        return DeepSpeedCPUAdam(params, adamw_mode=adamw_mode, **kwargs)

    gradients = recorded_gradients(torchs, STEPS)
    expected = run(torchs, gradients, torch.float64)
    assert_as_near_as_torch(run(ours, gradients, torch.float32), run(torchs, gradients, torch.float32), expected)


class Formula:
    """Adam as DeepSpeed documents it, in the dtype of its parameters; one hyper-parameter of each kind."""

    def __init__(self, params, lr, betas, eps, weight_decay, adamw_mode, bias_correction):
        self.params, self.lr, self.betas, self.eps, self.decay = params, lr, betas, eps, weight_decay
        self.decoupled, self.corrects, self.t = adamw_mode, bias_correction, 0
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]

    @torch.no_grad()
    def step(self):
        self.t += 1
        beta_1, beta_2 = self.betas
        corrections = [1 - beta**self.t if self.corrects else 1.0 for beta in self.betas]
        for p, (mean, square) in zip(self.params, self.state, strict=True):
            grad = p.grad if self.decoupled else p.grad + self.decay * p
            mean.copy_(beta_1 * mean + (1 - beta_1) * grad)
            square.copy_(beta_2 * square + (1 - beta_2) * grad * grad)
            if self.decoupled:
                p.mul_(1 - self.lr * self.decay)
            p.sub_(self.lr * (mean / corrections[0]) / ((square / corrections[1]).sqrt() + self.eps))


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("adamw_mode", [True, False])
def test_formula(adamw_mode, bias_correction):
    kwargs = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    kwargs |= {"adamw_mode": adamw_mode, "bias_correction": bias_correction}
    formula = functools.partial(Formula, **kwargs)
    gradients = recorded_gradients(formula, STEPS)
    expected = run(formula, gradients, torch.float64)
    exact = functools.partial(DeepSpeedCPUAdam, fp32_optimizer_states=False, **kwargs)
    assert distance(run(exact, gradients, torch.float64), expected) < 1e-11
    assert distance(run(functools.partial(DeepSpeedCPUAdam, **kwargs), gradients, torch.float32), expected) < 2e-5


def test_hyper_parameters_are_read_at_every_step():
    params = [[leaf(numbers(k, 50)) for k in range(2)] for _ in range(2)]
    kwargs = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    ours = DeepSpeedCPUAdam(params[0], **kwargs)
    formula = Formula(params[1], **kwargs, adamw_mode=True, bias_correction=True)
    for step, corrects in enumerate([True, False, False, True]):
        formula.lr, formula.corrects = 0.02 / (1 + step), corrects
        ours.param_groups[0].update(lr=formula.lr, bias_correction=corrects, betas=[0.8, 0.99])
        stepped(ours, params[0], [step])
        stepped(formula, params[1], [step])
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("full", [True, False], ids=["float32 states", "own states"])
def test_16_bits_are_float32_rounded_to_the_nearest(dtype, full):
    kwargs = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    p = leaf(numbers(0, dtype=dtype))
    optimizer = DeepSpeedCPUAdam([p], fp32_optimizer_states=full, **kwargs)
    for step in range(10):
        formula = Formula([leaf(p.float())], **kwargs, adamw_mode=True, bias_correction=True)
        formula.t = step
        if step:
            formula.state = [tuple(optimizer.state[p][name].float().clone() for name in ("exp_avg", "exp_avg_sq"))]
        stepped(optimizer, [p], [step])
        formula.params[0].grad = p.grad.float()
        formula.step()
        pairs = [(p, formula.params[0])]
        pairs += [(optimizer.state[p][n], s) for n, s in zip(("exp_avg", "exp_avg_sq"), formula.state[0], strict=True)]
        for found, exact in pairs:
            expected = exact.detach().to(found.dtype)
            if found.dtype == torch.float32:
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
            else:  # nearly all to the bit; a float32 on the border of two neighbours is rounded to either
                assert (found == expected).float().mean() > 0.995
                torch.testing.assert_close(found.float(), exact.detach(), rtol=torch.finfo(dtype).eps, atol=1e-7)


# -- where DeepSpeed's engine puts parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False], ids=["float32 states", "own states"])
def test_parameters_elsewhere_may_be_added_and_are_not_stepped(full):
    """The engine is given an optimizer of the model's parameters on a GPU; ZeRO-Offload puts its own in their place."""
    far = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = DeepSpeedCPUAdam([far], fp32_optimizer_states=full)
    far.grad = torch.zeros_like(far)
    with pytest.raises(
        ValueError, match=r"^DeepSpeedCPUAdam steps parameters on the CPU, .* on meta.*offload_optimizer"
    ):
        optimizer.step()
    assert not optimizer.state
    near = leaf(numbers(0))
    optimizer.param_groups[0]["params"] = [near]
    assert stepped(optimizer, [near], [0]).state.keys() == {near}
    assert not torch.equal(near, numbers(0))


def by_list(optimizer, groups):
    """As ZeRO 1 and 2: a list of one group."""
    for group in groups:
        optimizer.param_groups = [group]
        yield optimizer.step()
    optimizer.param_groups = groups


def by_parameters(optimizer, groups):
    """As ZeRO 3: all groups, of which but one are empty."""
    own = [group["params"] for group in groups]
    for number in range(len(groups)):
        for k, group in enumerate(groups):
            group["params"] = own[k] if k == number else []
        yield optimizer.step()
    for group, params in zip(groups, own, strict=True):
        group["params"] = params


@pytest.mark.parametrize("way", [by_list, by_parameters])
def test_groups_that_are_stepped_one_after_the_other(way, monkeypatch):
    """Nothing is made anew for it once all have been stepped."""
    builds, build = [], fastopt.torch.base.build
    monkeypatch.setattr("fastopt.torch.base.build", lambda *args: builds.append(1) or build(*args))
    params = [[leaf(numbers(k)) for k in range(3)] for _ in range(2)]
    together, apart = (
        DeepSpeedCPUAdam([{"params": [p], "lr": 0.1 / k} for k, p in enumerate(own, 1)]) for own in params
    )
    counts = []
    for step in range(6):
        stepped(together, params[0], [step])
        for p, q in zip(*params, strict=True):
            q.grad = p.grad.clone()
        list(way(apart, apart.param_groups))
        assert all(map(torch.equal, *params))
        counts.append(len(builds))
    assert counts[2] == counts[-1]
    assert [state["step"] for state in apart.state_dict()["state"].values()] == [6, 6, 6]
    stepped(together, params[0], [6])
    stepped(apart, params[1], [6])
    assert all(map(torch.equal, *params))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_amsgrad_is_refused():
    message = "DeepSpeedCPUAdam does not support the AMSGrad variant: .*AdamW"
    with pytest.raises(RuntimeError, match=message):
        DeepSpeedCPUAdam([leaf(numbers(0))], amsgrad=True)
    optimizer = DeepSpeedCPUAdam([leaf(numbers(0))])
    with pytest.raises(RuntimeError, match=message):
        optimizer.add_param_group({"params": [leaf(numbers(1))], "amsgrad": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"slot_dtype": "int4"}, "slot_dtype must be"),
    ],
)
def test_refused_hyper_parameters(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DeepSpeedCPUAdam([leaf(numbers(0))], **kwargs)


# -- DeepSpeed's own ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """DeepSpeed's class, compiled; tests that want it are skipped where it cannot be."""
    if reason := DeepSpeed.missing():
        pytest.skip(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    return DeepSpeedCPUAdam


def test_the_signature_is_that_of_the_installed_deepspeed(theirs):
    assert list(defaults_of(theirs, None).items()) == list(SIGNATURE.items())


KWARGS = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("adamw_mode", [True, False])
def test_float32_is_deepspeeds(theirs, adamw_mode, bias_correction):
    """It makes float32 of its hyper-parameters first: 1 - 0.99 is 0.00999999 then, by 1e-6."""
    kwargs = KWARGS | {"adamw_mode": adamw_mode, "bias_correction": bias_correction}
    ends = []
    for kind in (theirs, DeepSpeedCPUAdam):
        p = leaf(numbers(0))
        state = stepped(kind([p], **kwargs), [p], range(20)).state[p]
        ends.append([p.detach(), state["exp_avg"], state["exp_avg_sq"]])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("full", [True, False], ids=["float32 states", "own states"])
def test_16_bits_are_deepspeeds(theirs, dtype, full):
    """Each step from the same numbers: what either rounds lies 1e-5 apart, which makes another neighbour of few."""
    p, q = leaf(numbers(0, dtype=dtype)), leaf(numbers(0, dtype=dtype))
    ours = DeepSpeedCPUAdam([p], fp32_optimizer_states=full, **KWARGS)
    own = theirs([q], fp32_optimizer_states=full, **KWARGS)
    for step in range(20):
        stepped(ours, [p], [step])
        stepped(own, [q], [step])
        for one, other in [(p, q), *((ours.state[p][name], own.state[q][name]) for name in ("exp_avg", "exp_avg_sq"))]:
            assert one.dtype == other.dtype
            if one.dtype in HALVES:
                assert (one == other).float().mean() > 0.99
            eps = torch.finfo(one.dtype).eps if one.dtype in HALVES else 1e-5
            torch.testing.assert_close(one.detach(), other.detach(), rtol=eps, atol=1e-6)
            with torch.no_grad():
                other.copy_(one)


@pytest.mark.parametrize("direction", ["from DeepSpeed", "to DeepSpeed"])
def test_checkpoints_go_from_one_to_the_other(theirs, direction):
    kinds = [theirs, DeepSpeedCPUAdam] if direction == "from DeepSpeed" else [DeepSpeedCPUAdam, theirs]
    p, q = leaf(numbers(0)), leaf(numbers(0))
    first = stepped(kinds[0]([p], **KWARGS), [p], range(5))
    second = kinds[1]([q])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        q.copy_(p)
    stepped(first, [p], range(5, 10))
    stepped(second, [q], range(5, 10))
    torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
    assert second.state_dict()["state"][0]["step"] == 10
    assert second.param_groups[0].keys() == first.param_groups[0].keys()


def zero(code, world=1):
    """What the processes of a run report, which are all on this code."""
    environment = {
        "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": None, "OMP_NUM_THREADS": 1, "WORLD_SIZE": world,
        "MASTER_ADDR": "localhost", "MASTER_PORT": os.getpid() % 2**16,  # DeepSpeed names its shared memory by it
        "PATH": os.pathsep.join([os.environ["PATH"], sysconfig.get_path("scripts")]),  # ninja, to compile more
    }  # fmt: skip
    processes = [children.start(code, RANK=rank, LOCAL_RANK=rank, **environment) for rank in range(world)]
    try:
        return [children.finish(process, 600) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


BOUNDS = {"float32": 1e-4, "bfloat16": 0.02}
"""How far losses may be apart, of DeepSpeed's: at two neighbours of bfloat16 weights are, which differ by 0.008."""


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.full), 2])
def test_zero_offload_trains_as_with_deepspeeds_own(tmp_path, world):
    cases = [(stage, dtype) for stage in (1, 2, 3) for dtype in BOUNDS]
    code = f"import children, zero_training; children.report(found=zero_training.train({cases}, {str(tmp_path)!r}))"
    for found in [each["found"] for each in zero(code, world)]:
        for (_, dtype), runs in zip(cases, found.values(), strict=True):
            expected = runs.pop("theirs")
            assert expected[-1] < 0.5 * expected[0] and len(runs) == 3
            for losses in runs.values():
                assert losses == pytest.approx(expected, rel=BOUNDS[dtype])


@pytest.mark.usefixtures("theirs")
def test_what_deepspeed_says_where_its_configuration_lacks_a_line(tmp_path):
    code = f"""
        import children, fastopt.torch, zero_training as zero

        zero.meet({str(tmp_path)!r})
        said, whole = {{}}, zero.config_of
        for key in ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"):
            zero.config_of = lambda *args: {{name: value for name, value in whole(*args).items() if name != key}}
            try:
                zero.engine_of(fastopt.torch.DeepSpeedCPUAdam, 2, "float32")
            except Exception as error:
                said[key] = str(error)
        children.report(said=said)
    """
    said = zero(code)[0]["said"]
    assert len(said) == 2 and all(key in sentence for key, sentence in said.items())
