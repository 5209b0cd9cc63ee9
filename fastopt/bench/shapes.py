"""Shapes of models that the benchmarks step."""


def gpt2_shapes(width: int = 768, vocabulary: int = 50257) -> list[tuple[int, ...]]:
    """The 148 parameters of GPT-2 small, 124 million elements; or of a smaller one of its kind."""
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (1024, width), *block * 12, (width,), (width,)]
