"""What fastopt.torch is held against: torch.optim, and plain loops where torch has no such class.

Importing this imports torch, or skips the module that does where there is none.
"""

import copy
import warnings

from needs_torch import torch

STEPS = 50
TOLERANCE, FACTOR, FLOOR = 2e-6, 1.5, 1e-2
"""No further from float64 than the first, or so many times torch's own distance; relative to at least the third."""


class Net(torch.nn.Module):
    """Parameters of 4, 2 and 1 axes."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.hidden = torch.nn.Linear(27, 8)
        self.head = torch.nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(torch.tanh(self.conv(x)).flatten(1))))


def net(dtype=torch.float32):
    """The same net each time."""
    torch.manual_seed(0)
    return Net().to(dtype)


def batches(count, seed=1):
    """Inputs and targets, float32 numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 2, 5, 5, generator=generator).double(), torch.randn(16, 4, generator=generator).double())
        for _ in range(count)
    ]


def loss_of(model, batch):
    """Mean squared error."""
    x, y = (part.to(next(model.parameters()).dtype) for part in batch)
    return ((model(x) - y) ** 2).mean()


def parameters_of(model, name=""):
    """Those that an optimizer of this name takes."""
    return [p for p in model.parameters() if name != "Muon" or p.ndim == 2]


def recorded_gradients(make, count, name=""):
    """The gradients of a float64 training run, as float32 numbers: what all runs that are compared are given."""
    model = net(torch.float64)
    params = parameters_of(model, name)
    optimizer = make(params)
    recorded = []
    for batch in batches(count):
        model.zero_grad()
        loss_of(model, batch).backward()
        recorded.append([p.grad.float() for p in params])
        for p, grad in zip(params, recorded[-1], strict=True):
            p.grad = grad.double()
        optimizer.step()
    return recorded


def replay(optimizer, params, gradients):
    """Steps with recorded gradients."""
    for step in gradients:
        for p, grad in zip(params, step, strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step()


def run(make, gradients, dtype, name=""):
    """Parameters after replaying, in float64."""
    params = parameters_of(net(dtype), name)
    replay(make(params), params, gradients)
    return [p.detach().double() for p in params]


def distance(found, expected):
    """The greatest distance of two lists of tensors, relative to the second."""
    return max(
        ((one - other).abs() / other.abs().clamp(min=FLOOR)).max().item()
        for one, other in zip(found, expected, strict=True)
        if other.numel()
    )


def assert_as_near_as_torch(found, torchs, expected):
    """``found`` may not be further from ``expected`` than torch's float32 is, up to `FACTOR`."""
    assert distance(found, expected) <= max(TOLERANCE, FACTOR * distance(torchs, expected))


def for_loop(kind, kwargs):
    """A maker of torch's own optimizer, by its for-loop."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("fused", "foreach", "capturable")}
    if kind is not torch.optim.Muon:
        kwargs["foreach"] = False
    return lambda params: kind(params, **copy.deepcopy(kwargs))


def as_numbers(kwargs):
    """The same hyper-parameters, none of them a float32 tensor: torch computes with these in float32."""
    return {key: _as_number(value) for key, value in kwargs.items()}


def _as_number(value):
    if isinstance(value, tuple):
        return tuple(map(_as_number, value))
    return value.item() if isinstance(value, torch.Tensor) else value


def database():
    """The inputs of torch's own optimizer tests: name → list of (description, arguments).

    Those for CUDA are those for the CPU, and more with ``capturable`` and with tensors as hyper-parameters.
    """
    return {
        info.optim_cls.__name__: [(each.desc, each.kwargs) for each in info.optim_inputs_func(device="cuda")]
        for info in _optim_db()
    }


def error_database():
    """What torch's classes must refuse: name → list of (arguments, error, message, whether only a step refuses it)."""
    return {
        info.optim_cls.__name__: [
            (each.optimizer_error_input, each.error_type, each.error_regex, each.error_on.name == "STEP_ERROR")
            for each in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
        ]
        for info in _optim_db()
    }


def _optim_db():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    return optim_db


class Loop(torch.optim.Optimizer):
    """A plain loop over parameters; subclasses update one."""

    def __init__(self, params, **hyper):
        super().__init__(params, hyper)
        self.t = 0

    @torch.no_grad()
    def step(self):
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                grad = -p.grad if group.get("maximize") else p.grad
                self.update(p, grad, self.state[p], group)


class Lion(Loop):
    """Chen et al. 2023, algorithm 2, in the form of lion-pytorch 0.2.5."""

    def update(self, p, grad, state, h):
        m = state.setdefault("exp_avg", torch.zeros_like(p))
        beta_1, beta_2 = h["betas"]
        decay = h["weight_decay"] / self.defaults["lr"] if h.get("decoupled_weight_decay") else h["weight_decay"]
        p.mul_(1 - h["lr"] * decay)
        p.add_((beta_1 * m + (1 - beta_1) * grad).sign(), alpha=-h["lr"])
        m.mul_(beta_2).add_(grad, alpha=1 - beta_2)


class Lamb(Loop):
    """You et al. 2019, algorithm 2."""

    def update(self, p, grad, state, h):
        m, v = (state.setdefault(key, torch.zeros_like(p)) for key in "mv")
        beta_1, beta_2 = h["betas"]
        m.mul_(beta_1).add_(grad, alpha=1 - beta_1)
        v.mul_(beta_2).addcmul_(grad, grad, value=1 - beta_2)
        corrections = (1 - beta_1**self.t, 1 - beta_2**self.t) if h["bias_correction"] else (1, 1)
        u = m / corrections[0] / ((v / corrections[1]).sqrt() + h["eps"]) + h["weight_decay"] * p
        sizes = p.norm().item(), u.norm().item()
        p.sub_(u, alpha=h["lr"] * (sizes[0] / sizes[1] if all(sizes) else 1.0))


class ScheduleFreeAdamW(Loop):
    """Defazio et al. 2024, as AdamWScheduleFreeReference: x, y and z each on its own."""

    def update(self, p, grad, state, h):
        z = state.setdefault("z", p.clone())
        x = state.setdefault("x", p.clone())
        v = state.setdefault("v", torch.zeros_like(p))
        beta_1, beta_2 = h["betas"]
        lr = h["lr"] * min(1.0, self.t / h["warmup_steps"]) if h["warmup_steps"] else h["lr"]
        v.mul_(beta_2).addcmul_(grad, grad, value=1 - beta_2)
        u = grad / ((v / (1 - beta_2**self.t)).sqrt() + h["eps"]) + h["weight_decay"] * p
        z.sub_(u, alpha=lr)
        state["greatest"] = max(lr, state.get("greatest", 0.0))
        weight = self.t ** h["r"] * state["greatest"] ** h["weight_lr_power"]
        state["sum"] = state.get("sum", 0.0) + weight
        x.lerp_(z, weight / state["sum"])
        p.copy_(beta_1 * x + (1 - beta_1) * z)


def muon_in_full(patch):
    """Have torch's Muon multiply in the dtype that its gradients have, not in bfloat16."""
    patch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
