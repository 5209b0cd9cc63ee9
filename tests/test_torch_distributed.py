"""fastopt.torch over several processes: distributed tensors (FSDP2, tensor parallel). They run tests/two_ranks.py."""

import pytest
from children import finish, start
from needs_torch import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

RUN = """
    import children, two_ranks

    children.report(**two_ranks.main({store!r}, {rank}, {world}))
"""


def ranks(folder, world):
    """What each of so many processes has found, in every case."""
    folder.mkdir(exist_ok=True)
    given = {"store": str(folder / "store"), "world": world}
    children = [start(RUN.format(rank=k, **given), PYTHONWARNINGS=None) for k in range(world)]
    try:
        return [finish(child, timeout=300) for child in children]
    finally:
        for child in children:
            child.kill()


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
