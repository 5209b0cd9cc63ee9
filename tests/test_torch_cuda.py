"""fastopt.torch on CUDA tensors gives the bits of the CPU. On a real GPU: tests/gpu/test_torch.py."""

import contextlib
import copy
from functools import partialmethod

import pytest
from fastopt.kernels.cuda import gpu
from gpu_arrays import tensors_of_addresses
from running_driver import finish_all

pytestmark = pytest.mark.usefixtures("gpus")
SHAPES = ((5, 3), (2, 3, 2, 2), (7,), ())
NAMES = (
    "SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "Lion", "Lamb", "Adafactor", "Muon",
    "RAdam", "ScheduleFreeAdamW",
)  # fmt: skip
KWARGS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.9, "centered": True}}


@pytest.fixture(autouse=True)
def stream(monkeypatch):
    torch = pytest.importorskip("torch")

    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(torch.cuda, "current_stream", lambda ordinal=None: Stream())
    tensors_of_addresses(monkeypatch)
    return Stream


def tensor(shape, seed, on_gpu, dtype=None):
    import torch
    from gpu_arrays import tensor_class

    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype or torch.float32)
    return values.as_subclass(tensor_class()) if on_gpu else values


class Twin:
    """An optimizer whose tensors are in CPU memory, or say that they are on a GPU."""

    def __init__(self, name, on_gpu, dtype=None, shapes=SHAPES, **options):
        import fastopt.torch

        self.on_gpu, self.steps, self.dtype = on_gpu, 0, dtype
        shapes = [shape for shape in shapes if name != "Muon" or len(shape) == 2]
        self.params = [tensor(shape, k, on_gpu, dtype).requires_grad_() for k, shape in enumerate(shapes)]
        groups = [{"params": self.params[:1]}, {"params": self.params[1:], "lr": 0.02}]
        groups = [group for group in groups if group["params"]]
        own = KWARGS.get(name, {})
        self.optimizer = getattr(fastopt.torch, name)(groups, lr=0.05, weight_decay=0.1, **own, **options)
        if name == "ScheduleFreeAdamW":
            self.optimizer.train()

    def step(self, skip=(), bad=(), found_inf=None):
        """One step, without gradients for some parameters, or with a NaN; as a GradScaler has it done, if told so."""
        self.steps += 1
        for k, p in enumerate(self.params):
            p.grad = None if k in skip else tensor(p.shape, 100 * self.steps + k, self.on_gpu, self.dtype)
            if k in bad:
                p.grad.view(-1)[0] = float("nan")
        if found_inf is None:
            self.optimizer.step()
            return
        scaling = {"grad_scale": 4.0, "found_inf": float(found_inf)}
        for name, value in scaling.items():
            setattr(self.optimizer, name, tensor((), 0, self.on_gpu).fill_(value))
        self.optimizer.step()
        for name in scaling:
            delattr(self.optimizer, name)

    def values(self):
        """Parameters and state."""
        finish_all()
        states = [self.optimizer.state[p] for p in self.params if p in self.optimizer.state]
        values = [*self.params, *(state[key] for state in states for key in sorted(state))]
        return [bytes_of(value) for value in values]

    def found(self):
        """These, and what is told of the last step: it makes the host wait."""
        return self.values(), (self.optimizer.last_step_skipped, self.optimizer.last_grad_norm)


def bytes_of(value):
    """The bits of a tensor."""
    import torch

    value = value.detach()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy().tobytes()


def both(name, **options):
    return Twin(name, False, **options), Twin(name, True, **options)


def assert_same(one, other):
    assert one.found() == other.found()
    assert len(one.found()[0]) >= len(one.params)


KERNELS_OF_OTHERS = {"RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Lamb", "RAdam"}
"""Whose rules are those of classes of fastopt with the decay inside: `test_cuda_steps.py` has these."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n in KERNELS_OF_OTHERS)) for n in NAMES])
def test_every_rule(name):
    twins = both(name, clip_norm=1.0, ema=0.9)
    for _ in range(3):
        for twin in twins:
            twin.step()
    assert_same(*twins)


def test_gradients_that_come_and_go_skipped_steps_and_zeroing():
    twins = both("AdamW", nonfinite="skip", fused_zero_grad=True)
    for options in ({}, {"skip": (1,)}, {"bad": (0,)}, {"skip": (0, 2)}, {}):
        for twin in twins:
            twin.step(**options)
            assert twin.optimizer.last_step_skipped == ("bad" in options)
            assert not any(p.grad is not None and p.grad.any() for p in twin.params)
        assert_same(*twins)


@contextlib.contextmanager
def waits(driver):
    """A list that is given the names of what waits for a GPU: calls of the driver, and numbers read from tensors."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            moves = function.name() == "aten::_to_copy" and (kwargs or {}).get("device") is not None
            if moves or function.name() == "aten::_local_scalar_dense":
                found.append(function.name())
            return function(*args, **(kwargs or {}))

    found, before = [], len(driver.calls)
    with Reads():
        yield found
    found += [name for name in driver.calls[before:] if "Synchronize" in name or "DtoH" in name]


SKIPPING = {"nonfinite": {"bad": (0,)}, "scaler": {"found_inf": 1}}


def do_in_stream(patch, driver):
    """Have what torch does between kernels happen in their stream."""
    import torch

    from fastopt.torch.verdict import Verdict

    def later(verdict, given, does):
        given = [given] if isinstance(given, torch.Tensor) else given
        torch.autograd.graph.increment_version(given)

        def run():
            with torch.autograd._unsafe_preserve_version_counter(tuple(given)):
                does(verdict, given)

        with gpu.device(0).current():
            driver.enqueue(torch.cuda.current_stream().cuda_stream, run)

    leave_out_if, count = Verdict.leave_out_if, Verdict.count
    patch.setattr(Verdict, "leave_out_if", partialmethod(later, does=lambda own, given: leave_out_if(own, *given)))
    patch.setattr(Verdict, "count", partialmethod(later, does=count))


@pytest.mark.parametrize("late", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cause", SKIPPING)
@pytest.mark.parametrize("name", ["AdamW", "SGD", pytest.param("RAdam", marks=pytest.mark.full)])
def test_steps_that_a_gpu_may_leave_out_do_not_wait(name, cause, late, gpus, stream, monkeypatch):
    """The counters lie there, as torch.optim has them with ``fused=True``. How late it does them does not matter."""
    do_in_stream(monkeypatch, gpus)
    gpus.eagerness = (late, late)
    plain = {} if cause == "nonfinite" else {"found_inf": 0}
    pair = both(name, ema=0.9, **({"nonfinite": "skip"} if cause == "nonfinite" else {}))
    for twin in pair:
        twin.step(**plain)
    for round, options in enumerate((plain, SKIPPING[cause], plain, SKIPPING[cause], SKIPPING[cause], plain, plain)):
        for twin in pair:
            twin.optimizer.param_groups[0]["lr"] = 0.05 / (1 + round // 4)
        pair[0].step(**options)
        stream.cuda_stream = (5, 6)[round % 2]
        with waits(gpus) as found:
            pair[1].step(**options)
        assert not found
    assert_same(*pair)
    for step in [pair[1].optimizer.state[p].get("step") for p in pair[1].params]:
        assert step is None if name == "SGD" else (step.device.type, float(step)) == ("cuda", 5)
    some = {**plain, "skip": (1,)}
    for options in (SKIPPING[cause], some, plain, SKIPPING[cause], some, plain, SKIPPING[cause], plain):
        for twin in pair:
            twin.step(**options)
        assert pair[0].values() == pair[1].values()
    assert_same(*pair)


def test_a_scaler_hands_its_scale_over_where_torch_has_it_do_so():
    pair = both("AdamW", fused=True)
    assert [twin.optimizer._step_supports_amp_scaling for twin in pair] == [False, True]


@pytest.mark.parametrize("name", ["NAdam", "ScheduleFreeAdamW"])
def test_steps_of_rules_with_other_counters(name):
    """These wait, and count as on the CPU; "raise" always waits."""
    for option, sequence in (("skip", ({}, {"bad": (0,)}, {}, {})), ("raise", ({}, {}, {"bad": (1,)}, {}))):
        pair = both(name, nonfinite=option)
        for options in sequence:
            for twin in pair:
                with contextlib.suppress(FloatingPointError):
                    twin.step(**options)
            assert_same(*pair)


def test_options_that_change_while_the_gpu_is_behind():
    pair = both("AdamW", nonfinite="skip")
    good, bad = {}, {"bad": (0,)}
    changes = {3: {"nonfinite": "raise"}, 4: {"nonfinite": "propagate"}, 6: {"nonfinite": "skip"}, 9: {"ema": 0.5}}
    for number, options in enumerate((good, bad, good, good, good, good, bad, good, bad, bad, good, good)):
        for twin in pair:
            for name, value in changes.get(number, {}).items():
                setattr(twin.optimizer, name, value)
            twin.step(**options)
        assert pair[0].values() == pair[1].values()
    assert_same(*pair)


def test_state_goes_to_torch_and_back():
    """At any moment, also right after a step that was left out."""
    import torch

    (own,) = both("AdamW", nonfinite="skip")[1:]
    theirs = Twin("AdamW", True)
    theirs.optimizer = torch.optim.AdamW(theirs.optimizer.param_groups, foreach=False)
    for bad in ((), (0,), ()):
        own.step(bad=bad)
        if not bad:
            theirs.step()
        theirs.steps = own.steps
    for _ in range(2):
        states = [copy.deepcopy(twin.optimizer.state_dict()) for twin in (own, theirs)]
        for twin, state in zip((theirs, own), states, strict=True):
            twin.optimizer.load_state_dict(state)
            twin.step()
        for p, q in zip(own.params, theirs.params, strict=True):
            torch.testing.assert_close(p, q)
            assert float(own.optimizer.state[p]["step"]) == float(theirs.optimizer.state[q]["step"])


def test_changed_groups_and_moved_parameters():
    twins = both("AdamW")
    for twin in twins:
        twin.step()
        twin.optimizer.param_groups[0]["lr"] = 0.5
        twin.step()
        for p in twin.params:
            p.data = p.data.clone()
        twin.step()
    assert_same(*twins)


def test_fused_backward_frees_gradients():
    results = []
    for twin in both("SGD", fused_backward=True):
        for _ in range(2):
            sum((p * p).sum() for p in twin.params).backward()
            assert all(p.grad is None for p in twin.params)
        results.append(twin.found())
    assert results[0] == results[1]


def movable():
    """Tensors that say where they were put; what is made from one is there too, and `to` another goes where that is."""
    import torch
    from gpu_arrays import adopted

    class Movable(torch.Tensor):
        place = torch.device("cpu")
        device = property(lambda self: self.place)

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.to:
                like, function, args = args[1], torch.Tensor.clone, args[:1]
            else:
                like = args[0]
            made = super().__torch_function__(function, types, args, kwargs)
            if type(made) is cls and made is not args[0]:
                made.place = like.device
            return adopted(made)

    return Movable


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("AdamW", {"ema": 0.9}, SHAPES),
        pytest.param("Adafactor", {"ema": 0.9}, SHAPES, marks=pytest.mark.full),
        ("SGD", {"momentum": 0.9, "slot_dtype": "8bit"}, ((70, 90),)),
    ],
)
def test_state_follows_its_parameter_to_another_device(name, options, shapes):
    import torch
    from gpu_arrays import adopted

    import fastopt.torch

    kind, places = movable(), [torch.device("cpu"), torch.device("cuda", 0)]
    resting, moving = ([tensor(shape, k, False) for k, shape in enumerate(shapes)] for _ in range(2))
    moving = [adopted(p).as_subclass(kind) for p in moving]
    optimizers = [getattr(fastopt.torch, name)(params, lr=0.05, **options) for params in (resting, moving)]
    for step, number in enumerate((0, 0, 1, 1, 0)):
        for k, (p, q) in enumerate(zip(resting, moving, strict=True)):
            p.grad = tensor(p.shape, 100 * step + k, False)
            if q.place != places[number]:
                q.data, q.place = q.data.clone(), places[number]
            q.grad = adopted(p.grad.clone()).as_subclass(kind)
            q.grad.place = q.place
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(resting, moving, strict=True):
            assert torch.equal(p, q.as_subclass(torch.Tensor))
            for key, value in optimizers[0].state[p].items():
                found = optimizers[1].state[q][key]
                assert key == "step" or found.device == q.place
                assert torch.equal(value, found.as_subclass(torch.Tensor))


FORMATS = {
    "as torch has it": {},
    "at random": {"stochastic_rounding": True, "slot_dtype": "bfloat16"},
    "split, 8 bits": {"master_weights": "split", "slot_dtype": "8bit"},
}
LONG = (70, 90), (33,)


@pytest.mark.parametrize("name", FORMATS)
def test_storage_formats(name):
    """Steps, state and its dtypes; one is left out, with what a scaler has found, and uses up no noise."""
    import torch

    twins = both("SGD", dtype=torch.bfloat16, shapes=LONG, seed=3, fused=True, **FORMATS[name])
    for options in ({}, {"found_inf": 1}, {"found_inf": 0}, {"skip": (1,)}):
        for twin in twins:
            twin.step(**options)
        assert_same(*twins)
    states = [[twin.optimizer.state[p] for p in twin.params] for twin in twins]
    for one, other in zip(*states, strict=True):
        assert {key: value.dtype for key, value in one.items()} == {key: value.dtype for key, value in other.items()}
        assert all(value.device.type == "cuda" for value in other.values())
    counts = [twin.optimizer.param_groups[0].get("rounding_step") for twin in twins]
    assert counts == [3 if name == "at random" else None] * 2


def test_what_storage_formats_are_not_for_is_refused():
    import torch

    with pytest.raises(TypeError, match=r"torch.bfloat16, and Lamb keeps parameters and state in float32 or float64"):
        both("Lamb", dtype=torch.bfloat16)[1].step()
