"""Every way of running the same steps gives the same bits."""

import functools

import children
import pytest
from fastopt.kernels.cpu import launch

import fastopt

pytestmark = pytest.mark.xdist_group("bits")  # one worker compiles and computes the reference, the others load

EVERY = tuple(children.OPTIMIZERS)
FEW = ("Adam", "Adafactor")
OTHER_WAYS = [way for way in children.WAYS if way != "list"]

ALL_BITS = """
    import children
    from fastopt.kernels.cpu.threads import layer
    bits = {{name: children.bits(name) for name in {names}}}
    children.report(bits=bits, layer=layer())
"""


@functools.cache
def reference(name):
    """On Numba's two threads, from lists, with whatever the cache holds."""
    return children.bits(name)


def bits_in_child(names, **environment):
    found = children.run(ALL_BITS.format(names=names), **environment)
    return found["bits"], found


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = dict(launch._state)
    yield fastopt.set_num_threads
    launch._state.update(before)


def test_steps_change_every_array():
    """So that equal digests mean something."""
    assert len({reference(name) for name in EVERY}) == len(EVERY)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("name", EVERY)
def test_number_of_threads(name, count, threads):
    threads(count)
    assert children.bits(name) == reference(name)


@pytest.mark.parametrize("name", EVERY)
def test_launches_on_one_thread_and_on_all_in_turn(name, threads):
    bits, alone, on_all = children.bits_in_turn(name)
    assert bits == reference(name)
    assert alone and on_all


@pytest.mark.parametrize("count", [1, 4])
def test_number_of_numba_threads(count):
    bits, _ = bits_in_child(EVERY, NUMBA_NUM_THREADS=count)
    assert bits == {name: reference(name) for name in EVERY}


@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("name", EVERY)
def test_containers_and_strides(name, way):
    assert children.bits(name, way) == reference(name)


@pytest.mark.parametrize("layer", children.LAYERS)
def test_threading_layers(layer):
    """Whatever threads there are; on one and on all in turn, too."""
    code = ALL_BITS.format(names=EVERY).replace("layer=layer()", "layer=layer(), in_turn=children.bits_in_turn('Adam')")
    child = children.run(code, **children.layer(layer))
    assert child["layer"] == layer
    assert child["bits"] == {name: reference(name) for name in EVERY}
    bits, alone, on_all = child["in_turn"]
    assert bits == reference("Adam")
    assert alone and on_all


@pytest.mark.parametrize("names", [FEW[:1], pytest.param(EVERY[1:], marks=pytest.mark.full)], ids=["Adam", "others"])
def test_without_cache(names, tmp_path):
    no_folder = tmp_path / "file"
    no_folder.touch()
    bits, child = bits_in_child(names, FASTOPT_CACHE_DIR=no_folder / "below")
    assert child["compilations"] > 0
    assert bits == {name: reference(name) for name in names}


def test_two_processes_at_once():
    both = [children.start(ALL_BITS.format(names=FEW)) for _ in range(2)]
    expected = {name: reference(name) for name in FEW}
    assert [children.finish(child)["bits"] for child in both] == [expected, expected]
