"""fastopt.torch over several processes: distributed tensors (FSDP2, tensor parallel). They run tests/two_ranks.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import finish, start
from needs_torch import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

WHOLE = 4 * (9 * 33 + 34 * 33 + 34)
"""Bytes of the examples' parameters."""

RUN = """
    import children, two_ranks

    children.report(**two_ranks.main({store!r}, {rank}, {world}, {names}))
"""


def ranks(folder, world, names=None):
    """What each of so many processes has found, in every case."""
    folder.mkdir(exist_ok=True)
    given = {"store": str(folder / "store"), "world": world, "names": names}
    children = [start(RUN.format(rank=k, **given), PYTHONWARNINGS=None) for k in range(world)]
    try:
        return [finish(child, timeout=300) for child in children]
    finally:
        for child in children:
            if child.poll() is None:  # another one has failed
                child.kill()
                child.communicate()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return ranks(tmp_path_factory.mktemp("two"), 2)


def test_clipping_by_the_norm_over_all_processes(both):
    for found in both:
        assert found["clip_norm"]["gap"] < 2e-6
        assert found["clip_norm"]["norm"] < 1e-14
        assert found["clip_norm"]["norms"] == both[0]["clip_norm"]["norms"]
        assert found["clip_norm"]["sent"] == [1, 3 * 8]  # what is whole, what is divided, whether all are finite


def test_nothing_is_sent_where_nothing_is_asked(both):
    assert [found["nothing_is_sent"] for found in both] == [0, 0]


def test_elementwise_steps_have_the_bits_of_one_process(both):
    for found in both:
        assert all(found["elementwise_bits"].values()), found["elementwise_bits"]


def test_no_process_steps_where_one_is_to_skip(both):
    for found in both:
        assert len(found["skip"]) == 10
        for what, (skipped, goes_on, steps) in found["skip"].items():
            assert (skipped, goes_on, set(steps)) == (True, True, {2}), what


def test_every_process_raises(both):
    elsewhere = "a gradient is not finite in another process; nothing was updated"
    has_it = {"first": (0,), "second": (1,), "empty": (0,), "columns": (1,), "plain": (0, 1)}
    for rank, found in enumerate(both):
        assert found["raises"].keys() == has_it.keys()
        for where, message in found["raises"].items():
            if rank in has_it[where]:
                assert message.startswith("gradient parameter")
            else:
                assert message == elsewhere


def test_a_process_that_has_no_part(both):
    for found in both:
        assert found["part_of_nothing"] == [[False, 0.5], [True, 0.0]] * 2


def test_meshes_of_two_dimensions(both):
    for found in both:
        for (bits, gap), (expected, _) in zip(
            found["meshes_of_two_dimensions"], both[0]["meshes_of_two_dimensions"], strict=True
        ):
            assert bits == expected
            assert gap < 1e-14


def test_scalers(both):
    for found in both:
        assert found["scalers"] == {
            "False False": [False, 4.0],
            "False True": [True, 2.0],
            "True False": [False, 4.0],
            "True True": [True, 2.0],
            "in one alone": [True, True],
        }


def test_fsdp2(both):
    for found in both:
        assert found["fsdp2"]["gap"] < 2e-5
        assert found["fsdp2"]["norms"][0] < 1e-6
        assert found["fsdp2"]["norms"][1] < 1e-4  # of a model that is rounding apart
        assert found["fsdp2"]["last"] == both[0]["fsdp2"]["last"]


def test_tensor_parallel(both):
    for found in both:
        assert found["tensor_parallel"]["gap"] < 2e-5
        assert found["tensor_parallel"]["placed"] == ["S(0)", "S(0)", "S(1)", "R"]
        assert found["sequence_parallel"]["gap"] < 2e-5
        assert found["sequence_parallel"]["placed"] == ["(Partial(sum),)", "(Partial(sum),)"]


def test_evaluation_of_an_fsdp2_model(both):
    for found in both:
        apart, inside, after, refused = found["evaluation"]
        assert apart
        assert inside
        assert after
        assert "call model.reshard() before evaluation_weights()" in refused


def test_what_sees_some_parameters_alone(both):
    """ZeroRedundancyOptimizer and FullyShardedDataParallel, whose tensors do not say that they are parts."""
    expected = [
        "clip_norm would see the gradients of those parameters alone that ZeroRedundancyOptimizer",
        "clip_norm would see this process's part of the gradients of FullyShardedDataParallel",
        "nonfinite='skip' would see the gradients of those parameters alone that ZeroRedundancyOptimizer",
        "nonfinite='skip' would see this process's part of the gradients of FullyShardedDataParallel",
        "there are averages of those parameters alone that ZeroRedundancyOptimizer",
    ]
    for found in both:
        refused = found["parts_that_nothing_names"]["refused"]
        assert len(refused) == len(expected)
        assert all(map(str.startswith, refused, expected))
        assert max(found["parts_that_nothing_names"]["gaps"]) < 2e-5


def test_examples(both):
    """One process's curve; FSDP2 divides parameters and state, ZeRO-1 state. docs/scale.md has the bytes."""
    for rank, found in enumerate(both):
        for name, example in found["examples"].items():
            assert example["gap"] < 1e-4
            assert example["fell"] < 0.1
            weights, state = map(int, re.findall(r"(\d+) bytes of parameters, (\d+) of state", example["printed"])[0])
            assert (weights == WHOLE) == (name == "torch_zero1")
            assert state < 2 * WHOLE
            if name == "torch_fsdp2":
                assert state == 2 * weights
                assert 0.45 < weights / WHOLE < 0.55
            assert ("greatest difference from one process" in example["printed"]) == (rank == 0)
    states = [int(re.search(r"(\d+) of state", found["examples"]["torch_zero1"]["printed"])[1]) for found in both]
    assert sum(states) == 2 * WHOLE


@pytest.mark.full
@pytest.mark.parametrize("name", ["torch_fsdp2", "torch_zero1"])
def test_an_example_by_its_command(name):
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    commands = [[str(path), "--steps=4"], ["-m", "torch.distributed.run", "--nproc_per_node=2", str(path), "--steps=4"]]
    for command in commands:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=True)
        assert float(re.search(r"from one process: (\S+)", done.stdout)[1]) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 3, 4])
def test_other_numbers_of_processes(tmp_path, world):
    """What does not depend on which of two ranks has what."""
    every = ranks(
        tmp_path, world, ["clip_norm", "elementwise_bits", "skip", "raises", "meshes_of_two_dimensions", "fsdp2"]
    )
    for found in every:
        assert found["clip_norm"]["gap"] < 2e-6
        assert found["clip_norm"]["norms"] == every[0]["clip_norm"]["norms"]
        assert all(found["elementwise_bits"].values())
        assert all(skipped and goes_on for skipped, goes_on, _ in found["skip"].values())
        assert found["raises"].keys() == {"first", "second", "empty", "columns", "plain"}
        assert found["fsdp2"]["gap"] < 2e-5
        for (bits, gap), (expected, _) in zip(
            found["meshes_of_two_dimensions"], every[0]["meshes_of_two_dimensions"], strict=True
        ):
            assert bits == expected
            assert gap < 1e-14
