"""What the GPU benchmark compares: models, recipes, and for each the sides that do the same step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import gpu_peers
import torch

import fastopt
from fastopt.bench.shapes import gpt2_shapes

RATE = 1e-3
BETAS = (0.9, 0.999)
LION_BETAS = (0.9, 0.99)
EPSILON = 1e-18  # fastopt's and torch's epsilons stand in different places: where it counts for nothing they agree
FLOAT32 = 4


class Model(NamedTuple):
    """Shapes of parameters; `packed`: they lie side by side in one buffer, and so do their gradients."""

    name: str
    shapes: list[tuple[int, ...]]
    packed: bool = False

    @property
    def size(self):
        """Number of elements."""
        return sum(map(math.prod, self.shapes))


def models(small):
    """By name; small ones have the same structure."""
    gpt2 = gpt2_shapes(4, 64) if small else gpt2_shapes()
    million, billion = (20_000, 50_000) if small else (10**6, 10**9)
    listed = [
        Model("1e4", [(10_000,)]),
        Model("1e6", [(million,)]),
        Model("GPT-2 small, 148 tensors", gpt2),
        Model("GPT-2 small, flat", gpt2, packed=True),
        Model("1e9", [(billion,)]),
    ]
    return {model.name: model for model in listed}


@dataclass(frozen=True)
class Recipe:
    """One step in fastopt's words and in torch's.

    `passes` are float32 numbers moved per parameter, reads and writes. `may_differ` is the share of elements that may
    end up further than `TOLERANCE` from torch's: where a sign decides, one rounding does.
    """

    name: str
    optimizer: str
    options: dict
    torch: Callable
    passes: int
    torch_passes: int
    fused: bool = True
    clip: float | None = None
    ema: float | None = None
    may_differ: float = 0.0

    def ours(self):
        """fastopt's optimizer."""
        options = dict(self.options)
        if self.clip:
            options["global_clipnorm"] = self.clip
        if self.ema:
            options |= {"use_ema": True, "ema_momentum": self.ema}
        return getattr(fastopt, self.optimizer)(learning_rate=RATE, **options)


def _torch_adam(tensors, pieces, capturable):
    return torch.optim.Adam(tensors, lr=RATE, betas=BETAS, eps=EPSILON, fused=True, capturable=capturable)


def _torch_adamw(tensors, pieces, capturable):
    options = {"weight_decay": 1e-2, "fused": True, "capturable": capturable}
    return torch.optim.AdamW(tensors, lr=RATE, betas=BETAS, eps=EPSILON, **options)


def _torch_momentum(tensors, pieces, capturable):
    return torch.optim.SGD(tensors, lr=RATE, momentum=0.9, fused=True)


def _torch_lion(tensors, pieces, capturable):
    return gpu_peers.Lion(tensors, RATE, LION_BETAS)


def _torch_lamb(tensors, pieces, capturable):
    return gpu_peers.Lamb(tensors, pieces, RATE, BETAS, EPSILON)


TAIL = "AdamW + global-norm clip + EMA"
RECIPES = [
    Recipe("Adam", "Adam", {"epsilon": EPSILON}, _torch_adam, passes=7, torch_passes=7),
    Recipe(
        TAIL,
        "AdamW",
        {"weight_decay": 1e-2, "epsilon": EPSILON},
        _torch_adamw,
        passes=10,  # the gradient for its norm, then that, 4 arrays read and 4 written
        torch_passes=13,  # norm 1, scaling 2, step 7, average 3
        clip=1.0,
        ema=0.99,
    ),
    Recipe("SGD with momentum", "SGD", {"momentum": 0.9}, _torch_momentum, passes=5, torch_passes=5),
    Recipe(
        "Lion",
        "Lion",
        {"beta_1": LION_BETAS[0], "beta_2": LION_BETAS[1]},
        _torch_lion,
        passes=5,
        torch_passes=13,
        fused=False,
        may_differ=1e-5,
    ),
    Recipe("Lamb", "Lamb", {"epsilon": EPSILON}, _torch_lamb, passes=10, torch_passes=26, fused=False),
]


class Fastopt:
    """fastopt's side: tensors in a list, or a buffer with a buffer of gradients."""

    def __init__(self, machine, recipe, model, draw):
        self._machine, self.passes = machine, recipe.passes
        tensors, grads = draw(model)
        self._params, self._grads = ([machine.as_array(tensor) for tensor in each] for each in (tensors, grads))
        self.tensors, self.grads = tensors, grads
        if model.packed:
            self._pack()
        self._optimizer = recipe.ours()
        self._optimizer.build(self._params)

    def _pack(self):
        self._params = fastopt.pack(self._params)
        packed = self._params.like()
        self.tensors = [self._machine.as_tensor(view) for view in self._params.arrays]
        views = [self._machine.as_tensor(view) for view in packed.arrays]
        torch._foreach_copy_(views, self.grads)
        self._grads, self.grads = packed, views

    def step(self):
        self._optimizer.apply(self._grads)

    def captured(self):
        return self._machine.captured(self._optimizer, self._grads)

    def averages(self):
        return [self._machine.as_tensor(array) for array in self._optimizer.slots["average"]]


class Torch:
    """torch's fused optimizer where it has one; clipping and averaging by torch's functions."""

    def __init__(self, machine, recipe, model, draw, capturable=False):
        self._machine, self._recipe, self.passes = machine, recipe, recipe.torch_passes
        self.tensors, self.grads = draw(model)
        self._take(self.tensors, self.grads, lambda tensors: tensors, capturable)

    def _take(self, params, grads, pieces, capturable):
        self._params, self._averages = params, None
        for param, grad in zip(params, grads, strict=True):
            param.requires_grad_().grad = grad
        self._optimizer = self._recipe.torch(params, pieces, capturable)

    def step(self):
        if self._recipe.clip:
            torch.nn.utils.clip_grad_norm_(self._params, self._recipe.clip)
        self._optimizer.step()
        if self._recipe.ema:
            self._average()

    @torch.no_grad()
    def _average(self):
        """As fastopt's, the average starts where the first step arrives."""
        if self._averages is None:
            self._averages = [param.detach().clone() for param in self._params]
        torch._foreach_lerp_(self._averages, self._params, 1 - self._recipe.ema)

    def captured(self):
        return self._machine.captured_torch(self.step)

    def averages(self):
        return self._averages


class Flat(Torch):
    """The same on flat copies, as apex and others keep them: separate gradients are copied into one tensor first."""

    def __init__(self, machine, recipe, model, draw, capturable=False):
        self._machine, self._recipe = machine, recipe
        tensors, self._separate = draw(model)
        self._shapes = model.shapes
        param, grad = (torch.cat([tensor.flatten() for tensor in each]) for each in (tensors, self._separate))
        self._pieces_of_grad = self._cut([grad])
        self.grads = self._pieces_of_grad if model.packed else self._separate
        self._copies = not model.packed
        self.passes = recipe.torch_passes + 2 * self._copies
        self._take([param], [grad], self._cut, capturable)
        self.tensors = self._cut([param.detach()])

    def _cut(self, tensors):
        """Views of one flat tensor in the parameters' shapes."""
        parts = tensors[0].split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def step(self):
        if self._copies:
            torch._foreach_copy_(self._pieces_of_grad, self._separate)
        super().step()

    def averages(self):
        return self._cut(self._averages)


def sides(machine, recipe, model, draw, capturable=False):
    """Name → side. Where parameters lie in one buffer, torch's is the flat one."""
    built = {"fastopt": Fastopt(machine, recipe, model, draw)}
    if not model.packed:
        built["torch"] = Torch(machine, recipe, model, draw, capturable)
    if len(model.shapes) > 1:
        built["torch, flat copies"] = Flat(machine, recipe, model, draw, capturable)
    return built


def bytes_needed(recipe, model):
    """Memory that all sides of a case occupy, at most: parameters, gradients, slots, averages and temporaries."""
    number_of_sides = 2 + (len(model.shapes) > 1 and not model.packed)
    arrays = 2 + {"SGD": 1, "Lion": 1}.get(recipe.optimizer, 2) + bool(recipe.ema)
    temporaries = 0 if recipe.fused else 3
    return FLOAT32 * model.size * (number_of_sides * (arrays + temporaries) + 1)
