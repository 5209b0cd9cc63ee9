"""Shapes of models that the benchmarks step."""

from collections.abc import Callable

Shape = tuple[int, ...]


def gpt2_shapes(width: int = 768, vocabulary: int = 50257) -> list[Shape]:
    """The 148 parameters of GPT-2 small, 124 million elements; or of a smaller one of its kind."""
    block: list[Shape] = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (1024, width), *block * 12, (width,), (width,)]


def resnet50_shapes() -> list[Shape]:
    """The 161 parameters of ResNet-50, 25.6 million elements."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    entering = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for kernel in ((width, entering, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [kernel, (kernel[0],), (kernel[0],)]
            if block == 0:
                shapes += [(4 * width, entering, 1, 1), (4 * width,), (4 * width,)]
            entering = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b_shapes(width: int = 768) -> list[Shape]:
    """The 152 parameters of ViT-B/16, 86.6 million elements."""
    block: list[Shape] = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    ends: list[Shape] = [(width,), (width,), (1000, width), (1000,)]
    return [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,), *block * 12, *ends]


def small_shapes(tensors: int = 400) -> list[Shape]:
    """Many small tensors, half of them matrices of 4096 elements, half of them vectors of 64."""
    return [(64, 64), (64,)] * (tensors // 2)


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "gpt2": gpt2_shapes,
    "resnet50": resnet50_shapes,
    "vit-b": vit_b_shapes,
    "400-tensors": small_shapes,
    "400-vectors": lambda: [(64,)] * 400,
    "465-groups": lambda: small_shapes(466)[:465],
}
"""Name → shapes. A parameter of ``465-groups`` has a learning rate and a weight decay of its own."""


def shapes_of(model: str) -> list[Shape]:
    """Shapes of one of `MODELS`, or, for a number like ``1e6``, of one array with so many elements."""
    return MODELS[model]() if model in MODELS else [(round(float(model)),)]
