"""fastopt.torch on CUDA tensors gives the bits of the CPU. On a real GPU: tests/gpu/test_torch.py."""

import pytest
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


def tensor(shape, seed, on_gpu):
    import torch
    from gpu_arrays import tensor_class

    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.as_subclass(tensor_class()) if on_gpu else values


class Twin:
    """An optimizer whose tensors are in CPU memory, or say that they are on a GPU."""

    def __init__(self, name, on_gpu, **options):
        import fastopt.torch

        self.on_gpu, self.steps = on_gpu, 0
        shapes = [shape for shape in SHAPES if name != "Muon" or len(shape) == 2]
        self.params = [tensor(shape, k, on_gpu).requires_grad_() for k, shape in enumerate(shapes)]
        groups = [{"params": self.params[:1]}, {"params": self.params[1:], "lr": 0.02}]
        groups = [group for group in groups if group["params"]]
        own = KWARGS.get(name, {})
        self.optimizer = getattr(fastopt.torch, name)(groups, lr=0.05, weight_decay=0.1, **own, **options)
        if name == "ScheduleFreeAdamW":
            self.optimizer.train()

    def step(self, skip=(), bad=()):
        self.steps += 1
        for k, p in enumerate(self.params):
            p.grad = None if k in skip else tensor(p.shape, 100 * self.steps + k, self.on_gpu)
            if k in bad:
                p.grad.view(-1)[0] = float("nan")
        self.optimizer.step()

    def found(self):
        """Parameters, state, and what is told of the last step."""
        finish_all()
        states = [self.optimizer.state[p] for p in self.params if p in self.optimizer.state]
        values = [*self.params, *(state[key] for state in states for key in sorted(state))]
        told = self.optimizer.last_step_skipped, self.optimizer.last_grad_norm
        return [value.detach().numpy().tobytes() for value in values], told


def both(name, **options):
    return Twin(name, False, **options), Twin(name, True, **options)


def assert_same(one, other):
    assert one.found() == other.found()
    assert len(one.found()[0]) >= len(one.params)


@pytest.mark.parametrize("name", NAMES)
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


def test_changed_groups_and_moved_parameters():
    twins = both("Adam")
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


@pytest.mark.parametrize("name", ["AdamW", pytest.param("Adafactor", marks=pytest.mark.full)])
def test_state_follows_its_parameter_to_another_device(name):
    import torch
    from gpu_arrays import adopted

    import fastopt.torch

    kind, places = movable(), [torch.device("cpu"), torch.device("cuda", 0)]
    resting, moving = ([tensor(shape, k, False) for k, shape in enumerate(SHAPES)] for _ in range(2))
    moving = [adopted(p).as_subclass(kind) for p in moving]
    optimizers = [getattr(fastopt.torch, name)(params, lr=0.05, ema=0.9) for params in (resting, moving)]
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
