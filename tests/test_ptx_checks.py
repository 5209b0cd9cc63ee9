"""What the executor of PTX notices: wrong accesses, threads that wait in vain, races; and the orders of threads."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from ptx.kernel import Fault, Kernel
from ptx.memory import Memory
from test_ptx_operations import SHARED, ptx_of

pytestmark = pytest.mark.xdist_group("ptx operations")

over_orders = pytest.mark.parametrize("order", [0, 1, 2])
over_seeds = pytest.mark.parametrize("seed", range(1, 6))

START = """
	ld.param.u64 %at1, [x];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mov.u32 %me2, %ntid.x;
	mad.lo.s32 %r3, %r2, %me2, %r1;
	mul.wide.u32 %rd1, %r1, 4;
	mul.wide.u32 %rd2, %r3, 4;
	mov.u64 %at7, mine;
	add.s64 %at7, %at7, %rd1;
	add.s64 %at8, %at1, %rd2;
"""
"""``%r1``: the thread in its block; ``%r2``: the block; ``%r3``: the thread in the grid; ``%at7``: its own four bytes
of the shared array ``mine``, which has 2048; ``%at8``: of the array ``x``, which begins at ``%at1``."""


def kernel(*lines):
    """A kernel of these statements after `START`; labels end with a colon."""
    body = "".join(f"\t{line}{'' if line.endswith(':') else ';'}\n" for line in lines)
    return Kernel(ptx_of(f"{START}{body}\tret;", ["x"], SHARED))


def run(*lines, blocks=1, threads=64, words=None, written=True, **way):
    """Launch with an array of zeros, or of memory that nobody wrote; the array."""
    array = np.zeros(words or blocks * threads + 1, np.uint32)
    memory = Memory()
    memory.add(array.ctypes.data, array.nbytes, written)
    kernel(*lines).launch(blocks, threads, [array.ctypes.data], memory, **way)
    return array


def fault(what):
    """The launch notices something."""
    return pytest.raises(Fault, match=f"^{what}: ")


# -- bounds ------------------------------------------------------------------------------------------------------------

WORDS = slice(17, 47)
"""What may be touched of 64 words. Bytes are counted from the word before on, whose address is a multiple of 16."""

INSIDE = {"u8": (4, 123), "u16": (4, 122), "u32": (4, 120), "u64": (8, 112), "v2.u32": (8, 112), "v4.u32": (16, 96)}
OUTSIDE = {"u8": (3, 124), "u16": (2, 124), "u32": (0, 124), "u64": (0, 120), "v2.u32": (0, 120), "v4.u32": (0, 112)}
SOURCES = {"u8": "%rs1", "u16": "%rs1", "u32": "%r4", "u64": "%rd4", "v2.u32": "{%r4, %r5}"}
SOURCES |= {"v4.u32": "{%r4, %r5, %r6, %r7}"}


def pairs(places):
    """A test for each type and place."""
    return pytest.mark.parametrize(("kind", "byte"), [(kind, byte) for kind in places for byte in places[kind]])


def access(what, kind, byte, space="global"):
    """A statement that touches memory at ``%at1``."""
    place = f"[%at1+{byte}]"
    if what == "ld":
        return f"ld.{space}.{kind} {SOURCES[kind]}, {place}"
    return f"st.{space}.{kind} {place}, {SOURCES[kind]}" if what == "st" else f"atom.{space}.add.{kind} %r4, {place}, 1"


def touch(statement, *parts):
    """One thread carries it out where only parts of 64 words may be touched."""
    room = np.zeros(80, np.uint32)
    first = -room.ctypes.data % 16 // 4
    memory, words = Memory(), room[first : first + 64]
    for part in parts or (WORDS,):
        memory.add(words[part].ctypes.data, words[part].nbytes)
    kernel(statement).launch(1, 1, [words[16:].ctypes.data], memory)


@pytest.mark.parametrize("what", ["ld", "st"])
@pairs(INSIDE)
def test_the_first_and_the_last_place_may_be_touched(what, kind, byte):
    touch(access(what, kind, byte))


@pytest.mark.parametrize("what", ["ld", "st"])
@pairs(OUTSIDE)
def test_one_beyond_either_end_is_out_of_bounds(what, kind, byte):
    """Of what is wider than a word, a part may be inside."""
    with fault("out of bounds"):
        touch(access(what, kind, byte))


@pytest.mark.parametrize(("byte", "fine"), [(0, False), (4, True), (120, True), (124, False)])
def test_bounds_of_atomic_operations(byte, fine):
    if fine:
        return touch(access("atom", "u32", byte))
    with fault("out of bounds"):
        touch(access("atom", "u32", byte))


@pytest.mark.parametrize("parts", [(slice(16, 31), slice(31, 47)), (slice(16, 31), slice(32, 47))])
def test_an_access_is_to_one_range(parts):
    """To two neighbours it is out of bounds, as to memory between them."""
    touch(access("ld", "u64", 48), *parts)
    touch(access("ld", "u32", 56), *parts)
    touch(access("ld", "u32", 64), *parts)
    with fault("out of bounds"):
        touch(access("ld", "u64", 56), *parts)


def test_memory_between_ranges():
    with fault("out of bounds"):
        touch(access("ld", "u32", 60), slice(16, 31), slice(32, 47))


@pytest.mark.parametrize("kind", ["u16", "u32", "u64", "v2.u32", "v4.u32"])
@pytest.mark.parametrize("what", ["ld", "st"])
def test_misaligned(what, kind):
    """A vector as a whole."""
    nbytes = {"u16": 2, "u32": 4, "u64": 8, "v2.u32": 8, "v4.u32": 16}[kind]
    touch(access(what, kind, 32))
    with fault("misaligned"):
        touch(access(what, kind, 32 + nbytes // 2))


@pytest.mark.parametrize("place", ["mine", "mine+2044"])
def test_shared_memory_may_be_touched(place):
    run(f"st.shared.u32 [{place}], 1", f"ld.shared.u32 %r4, [{place}]", threads=1)


@pytest.mark.parametrize("statement", ["st.shared.u32 [%at7+2048], 1", "st.shared.u32 [%at7+-4], 1"])
def test_bounds_of_shared_memory(statement):
    with fault("out of bounds"):
        run(statement, threads=1)


@pytest.mark.parametrize("statement", ["st.shared.u32 [%at8], 1", "st.global.u32 [%at7], 1"])
def test_an_access_is_to_the_space_that_it_names(statement):
    with fault("out of bounds"):
        run(statement)
    run(re.sub(r"\.(shared|global)", "", statement))


# -- memory that nobody wrote ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["ld.global.u32 %r4, [%at8]", "atom.global.add.u32 %r4, [%at8], 1",
                                       "ld.shared.u32 %r4, [%at7]", "atom.shared.add.u32 %r4, [%at7], 1"])  # fmt: skip
def test_nobody_wrote_it(statement):
    with fault("nobody wrote what is read"):
        run(statement, written=False)
    store = "st.shared.u32 [%at7], 5" if "shared" in statement else "st.global.u32 [%at8], 5"
    run(store, statement, written=False)


def test_a_part_was_not_written():
    stores = [f"st.global.u32 [%at1+{4 * k}], %r1" for k in range(3)]
    with fault("nobody wrote what is read"):
        touch_unwritten(*stores, "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%at1]")
    touch_unwritten(*stores, "ld.global.v2.u32 {%r4, %r5}, [%at1]", "ld.global.u32 %r4, [%at1+8]")
    touch_unwritten("st.global.v4.u32 [%at1], {%r1, %r1, %r1, %r1}", "ld.global.u32 %r4, [%at1+12]")


def touch_unwritten(*statements):
    """One thread carries them out on four words at a multiple of 16."""
    room = np.zeros(8, np.uint32)
    first, memory = room.ctypes.data + -room.ctypes.data % 16, Memory()
    memory.add(first, 16, written=False)
    kernel(*statements).launch(1, 1, [first], memory)


def test_the_host_writes():
    """And takes it back."""
    array, memory = np.zeros(4, np.uint32), Memory()
    memory.add(array.ctypes.data, array.nbytes, written=False)
    load = kernel("ld.global.u32 %r4, [%at1+4]")
    memory.write(array.ctypes.data + 4, 4)
    load.launch(1, 1, [array.ctypes.data], memory)
    memory.write(array.ctypes.data, 16, undone=True)
    with fault("nobody wrote what is read"):
        load.launch(1, 1, [array.ctypes.data], memory)


@pytest.mark.parametrize("way", [{"order": 0}, {"order": 2, "resident": 1}, {"order": 2, "resident": 2}], ids=str)
def test_what_another_block_left_in_shared_memory(way):
    lines = "setp.ne.u32 %p1, %r2, 0", "@%p1 bra $read", "st.shared.u32 [%at7], 5", "$read:"
    with fault("nobody wrote what is read"):
        run(*lines, "ld.shared.u32 %r4, [%at7]", blocks=2, **way)


def test_shared_memory_is_no_memory_of_zeros():
    """It would hide that nobody wrote it."""
    found = run("st.shared.u8 [%at7], 0", "ld.shared.u32 %r4, [%at7]", "st.global.u32 [%at8], %r4")
    assert (found[:64] == 0xFFFFFF00).all()


# -- barriers ----------------------------------------------------------------------------------------------------------

FIRST_HALF = ("setp.lt.u32 %p1, %r1, 16", "@%p1 bra $first")
"""Half of a warp goes on at ``$first``."""


def apart(some, others, condition=FIRST_HALF):
    """Some threads carry out one statement, the others another one."""
    return *condition, others, "bra $end", "$first:", some, "$end:"


@over_orders
def test_waiting_for_others_that_never_come(order):
    with fault("threads wait for others that never come"):
        run(*apart("bar.sync 0", "bar.warp.sync -1"), threads=32, order=order)


@over_orders
@pytest.mark.parametrize("barrier", ["bar.sync 0", "bar.warp.sync -1"])
def test_a_warp_at_different_barriers(barrier, order):
    with fault("threads of a warp wait at different barriers"):
        run(*apart(barrier, barrier), threads=32, order=order)


@over_orders
@pytest.mark.parametrize("barrier", ["bar.sync 0", "bar.warp.sync -1"])
def test_warps_at_different_barriers(barrier, order):
    """They meet there: of barriers of the block only their number counts."""
    run(*apart(barrier, barrier, ("setp.lt.u32 %p1, %r1, 32", "@%p1 bra $first")), order=order)


@over_orders
@pytest.mark.parametrize("barrier", ["bar.sync 0", "bar.warp.sync -1"])
def test_nobody_waits_for_who_has_ended(barrier, order):
    run("setp.lt.u32 %p1, %r1, 5", "@%p1 ret", barrier, order=order)


@over_orders
def test_a_guarded_barrier(order):
    run("setp.lt.u32 %p1, %r1, 32", "@%p1 bar.warp.sync -1", "@!%p1 bar.warp.sync -1", "bar.sync 0", order=order)
    with fault("threads wait for others that never come"):
        run("setp.eq.u32 %p1, %r1, 40", "@%p1 bar.sync 0", "bar.warp.sync -1", order=order)


# -- guards ------------------------------------------------------------------------------------------------------------


@over_orders
def test_guards(order):
    """Of loads, stores, atomic operations, what is worked out, and the guard itself."""
    found = run(
        "setp.lt.u32 %p1, %r1, 20", "mov.u32 %r4, 7",
        "@%p1 add.u32 %r4, %r4, %r1", "@!%p1 ld.global.u32 %r4, [%at1+256]",
        "@%p1 st.global.u32 [%at8], %r4", "@%p1 setp.lt.u32 %p1, %r1, 10", "@%p1 atom.global.add.u32 %r5, [%at8], 100",
        "@!%p1 bra $end", "@%p1 add.u32 %r4, %r4, 1", "$end:",
        "setp.ge.u32 %p2, %r1, 60", "@%p2 st.global.u32 [%at8], %r4", "@%p2 ret", "bar.warp.sync -1",
        order=order,
    )  # fmt: skip
    k = np.arange(64)
    assert found[:64].tolist() == np.where(k < 20, 7 + k + 100 * (k < 10), 0).tolist()


def test_a_guard_keeps_from_touching():
    run("setp.eq.u32 %p1, %r1, 1000", "@%p1 ld.global.u32 %r4, [%at1+-4]", "@%p1 st.global.u32 [%at1+-4], 1")


# -- orders ------------------------------------------------------------------------------------------------------------

TICKET = "atom.global.add.u32 %r4, [%at1], 1", "st.global.u32 [%at8+4], %r4"
TWO_TICKETS = "atom.global.add.u32 %r4, [%at1], 1", *TICKET


def tickets(lines=TICKET, blocks=4, threads=40, **way):
    """The number of each thread in the order in which they come."""
    return run(*lines, blocks=blocks, threads=threads, **way)[1:].tolist()


def test_in_order_threads_take_turns():
    assert tickets(order=0, resident=4) == list(range(160))
    assert tickets(TWO_TICKETS, blocks=1, order=0) == list(range(40, 80))


def test_backwards_a_thread_goes_as_far_as_it_comes():
    assert tickets(order=1, resident=4) == list(range(160))[::-1]
    assert tickets(TWO_TICKETS, blocks=1, order=1) == list(range(1, 80, 2))[::-1]


@over_seeds
def test_at_random(seed):
    found = tickets(order=2, seed=seed)
    assert sorted(found) == list(range(160))
    assert found == tickets(order=2, seed=seed)
    others = [
        tickets(order=order, seed=other) for order in range(3) for other in range(1, 6) if (order, other) != (2, seed)
    ]
    assert found not in others


@pytest.mark.parametrize(("order", "resident", "together"), [(0, 4, 1), (1, 4, 1), (2, 1, 1), (2, 2, 2), (2, 3, 3),
                                                             (2, 8, 4)])  # fmt: skip
def test_blocks_that_are_there_at_the_same_time(order, resident, together):
    """Only at random; the next ones come when all of these are done."""
    found = np.array(tickets(order=order, resident=resident)).reshape(4, 40) // 40
    for first in range(0, 4, together):
        group = found[first : first + together]
        place = first if order != 1 else 3 - first
        assert set(group.ravel()) == set(range(place, min(place + together, 4)))
        assert all(len(set(row)) == len(group) for row in group)


# -- races -------------------------------------------------------------------------------------------------------------


class Pattern(NamedTuple):
    """Statements of two warps, and what is found: None or the beginning of a message."""

    lines: Any
    found: Any = None
    blocks: int = 1


def neighbour(bit, shared=False):
    """``%at5`` is the place of the thread whose number differs in one bit."""
    base = ("mov.u64 %at5, mine",) if shared else ("mov.u64 %at5, %at1",)
    return f"xor.b32 %r8, %r1, {bit}", "mul.wide.u32 %rd8, %r8, 4", *base, "add.s64 %at5, %at5, %rd8"


def exchange(bit, *between, shared=False):
    """Each thread writes its own place, and reads a neighbour's."""
    space, own = ("shared", "%at7") if shared else ("global", "%at8")
    return *neighbour(bit, shared), f"st.{space}.u32 [{own}], %r1", *between, f"ld.{space}.u32 %r4, [%at5]"


def turned(bit, *between):
    """Each thread reads a neighbour's place, and writes its own."""
    return *neighbour(bit), "ld.global.u32 %r4, [%at5]", *between, "st.global.u32 [%at8], %r1"


ALL, WARP = "bar.sync 0", "bar.warp.sync -1"
ATOMIC = "atom.global.add.u32 %r4, [%at1], 1"
ONE = "setp.ne.u32 %p1, %r1, 3"
PATTERNS = {
    "own place": Pattern(("st.global.u32 [%at8], 1", "ld.global.u32 %r4, [%at8]", "st.global.u32 [%at8], 2")),
    "all read": Pattern(("ld.global.u32 %r4, [%at1]",)),
    "all write": Pattern(("st.global.u32 [%at1], 1",), "race"),
    "all write the shared array": Pattern(("st.shared.u32 [mine], 1",), "race"),
    "one writes what all read": Pattern((ONE, "@!%p1 st.global.u32 [%at1], 1", "ld.global.u32 %r4, [%at1]"), "race"),
    "one writes what all read later": Pattern((ONE, "@!%p1 st.global.u32 [%at1], 1", ALL, "ld.global.u32 %r4, [%at1]")),
    "one writes what all have read": Pattern((ONE, "ld.global.u32 %r4, [%at1]", "@!%p1 st.global.u32 [%at1], 1"),
                                             "race"),
    "one writes later": Pattern((ONE, "ld.global.u32 %r4, [%at1]", ALL, "@!%p1 st.global.u32 [%at1], 1")),
    "a warp's barrier is too little": Pattern((ONE, "ld.global.u32 %r4, [%at1]", WARP, "@!%p1 st.global.u32 [%at1], 1"),
                                              "race"),
    "atomics": Pattern((ATOMIC,)),
    "the last of the atomics is followed by a store": Pattern((ATOMIC, "setp.eq.u32 %p1, %r4, 63",
                                                               "@%p1 st.global.u32 [%at1], 0")),
    "an earlier one is": Pattern((ATOMIC, "setp.eq.u32 %p1, %r4, 62", "@%p1 st.global.u32 [%at1], 0"), "race"),
    "fences alone": Pattern(exchange(1, "membar.gl"), "race"),
    "atomic and load": Pattern((ONE, "@!%p1 ld.global.u32 %r4, [%at1]", "@%p1 " + ATOMIC), "race"),
    "load and atomic": Pattern((ONE, "@%p1 " + ATOMIC, "@!%p1 ld.global.u32 %r4, [%at1]"), "race"),
    "atomic and store": Pattern((ONE, "@!%p1 st.global.u32 [%at1], 1", "@%p1 " + ATOMIC), "race"),
    "store and atomic": Pattern((ONE, "@%p1 " + ATOMIC, "@!%p1 st.global.u32 [%at1], 1"), "race"),
    "atomic, barrier, load": Pattern((ATOMIC, ALL, "ld.global.u32 %r4, [%at1]")),
    "store, barrier, atomic": Pattern((ONE, "@!%p1 st.global.u32 [%at1], 1", ALL, ATOMIC)),
    "load, barrier, atomic": Pattern(("ld.global.u32 %r4, [%at1]", ALL, ATOMIC)),
    "halves of a word apart": Pattern(("st.global.u64 [%at1+8], %rd1", "ld.global.u32 %r4, [%at1+12]"), "race"),
    "two words apart": Pattern((ONE, "@!%p1 st.global.u64 [%at1+8], %rd1", "ld.global.u32 %r4, [%at1+16]")),
    "one block's shared array is not another's": Pattern(exchange(32, ALL, shared=True), blocks=4),
    "blocks write the same": Pattern(("setp.ne.u32 %p1, %r1, 0", "@!%p1 st.global.u32 [%at1], 1"), "race", blocks=2),
    "blocks' barriers are apart": Pattern((ONE, "setp.eq.u32 %p2, %r3, 0", "@%p2 st.global.u32 [%at1], 1", ALL,
                                           "@!%p1 ld.global.u32 %r4, [%at1]"), "race", blocks=2),
}  # fmt: skip
for _name, _turn in {"read after write": exchange, "write after read": turned}.items():
    PATTERNS |= {
        f"{_name}": Pattern(_turn(1), "race"),
        f"{_name}, barrier": Pattern(_turn(1, ALL)),
        f"{_name}, warp's barrier": Pattern(_turn(16, WARP)),
        f"{_name} of another warp": Pattern(_turn(32), "race"),
        f"{_name} of another warp, barrier": Pattern(_turn(32, ALL)),
        f"{_name} of another warp, warp's barrier": Pattern(_turn(32, WARP), "race"),
    }
for _bit, _barriers, _found in (
    (1, (), "(race|nobody)"),
    (1, (WARP,), None),
    (32, (WARP,), "(race|nobody)"),
    (32, (ALL,), None),
):
    PATTERNS[f"shared, {_bit} {_barriers}"] = Pattern(exchange(_bit, *_barriers, shared=True), _found)


@over_orders
@pytest.mark.parametrize("name", PATTERNS)
def test_races(name, order):
    """They are found in whichever order threads come, for it is looked at what orders them."""
    lines, found, blocks = PATTERNS[name]
    for seed in range(1, 4 if order == 2 else 2):
        way = {"order": order, "seed": seed, "races": True, "blocks": blocks}
        if found:
            with pytest.raises(Fault, match=f"^{found}"):
                run(*lines, **way)
        else:
            run(*lines, **way)


NARROW = {"u8": 1, "u16": 2}


@over_orders
@pytest.mark.parametrize("kind", NARROW)
def test_neighbours_in_one_word_do_not_race(kind, order):
    lines = (f"mul.wide.u32 %rd5, %r3, {NARROW[kind]}", "add.s64 %at2, %at1, %rd5", f"st.global.{kind} [%at2], 1")
    run(*lines, blocks=2, races=True, order=order)
    with fault("race"):
        run(*lines, f"st.global.{kind} [%at2+{NARROW[kind]}], 1", blocks=2, races=True, order=order)
    with fault("race"):
        run(*lines, "ld.global.u32 %r4, [%at1+64]", blocks=2, races=True, order=order)


def test_nobody_looks_for_races_unless_asked():
    run("st.global.u32 [%at1], 1", order=2)


LAST_BLOCK = (
    "st.global.u32 [%at8+4], %r3", "bar.sync 0", "setp.ne.u32 %p1, %r1, 0", "@%p1 bra $others", "membar.gl",
    "atom.global.add.u32 %r4, [%at1], 1", "membar.gl", "st.shared.u32 [mine], %r4", "$others:", "bar.sync 0",
    "ld.shared.u32 %r4, [mine]", "setp.ne.u32 %p1, %r4, 2", "@%p1 bra $end", "add.s64 %at2, %at1, %rd1",
    "ld.global.u32 %r5, [%at2+4]", "ld.global.u32 %r6, [%at2+260]", "ld.global.u32 %r7, [%at2+516]",
    "add.u32 %r5, %r5, %r6", "add.u32 %r5, %r5, %r7", "st.global.u32 [%at2+4], %r5", "$end:",
)  # fmt: skip
"""Of three blocks the last one to be done adds up what all have written."""
NEEDED = {"both barriers and fences": None, "the first barrier": 1, "the fence before": 4, "the fence after": 6,
          "the second barrier": 9}  # fmt: skip


@pytest.mark.parametrize("way", [{"order": 0}, {"order": 1}, *({"order": 2, "seed": k} for k in range(1, 7))], ids=str)
@pytest.mark.parametrize("missing", NEEDED)
def test_the_last_block(missing, way):
    """Each barrier and each fence is needed: without it a race is found, whichever block comes last."""
    lines = [line for k, line in enumerate(LAST_BLOCK) if k != NEEDED[missing]]
    if NEEDED[missing] is None:
        found = run(*lines, blocks=3, races=True, **way)
        assert found[1:65].tolist() == [3 * k + 192 for k in range(64)]
    else:
        with pytest.raises(Fault, match=r"^(race|nobody wrote what is read): "):
            run(*lines, blocks=3, races=True, **way)


def test_a_fence_is_the_threads_own():
    """Another thread's fence does not pass on what is written, unless a barrier comes before it."""
    lines = "st.global.u32 [%at8+4], 1", "membar.gl", ATOMIC, "membar.gl", *neighbour(1), "ld.global.u32 %r5, [%at5+4]"
    with fault("race"):
        run(*lines, order=0, races=True)
    run(*(line for line in lines if not line.startswith("ld")), order=0, races=True)


def test_atomics_at_other_addresses_pass_nothing_on():
    """Two threads, each with a counter of its own, or with one for both."""
    for counter, found in (("%at8", True), ("%at1", False)):
        count = f"atom.global.add.u32 %r4, [{counter}], 1"
        lines = "setp.eq.u32 %p1, %r1, 0", "@%p1 st.global.u32 [%at1+40], 1", "membar.gl", count, "membar.gl"
        lines += ("@!%p1 ld.global.u32 %r5, [%at1+40]",)
        if found:
            with fault("race"):
                run(*lines, threads=2, words=16, order=0, races=True)
        else:
            run(*lines, threads=2, words=16, order=0, races=True)


def test_a_message_names_both_instructions():
    lines = "setp.eq.u32 %p1, %r3, 67", "@%p1 st.global.u32 [%at1], %r3", "setp.eq.u32 %p2, %r3, 5"
    with pytest.raises(Fault) as found:
        run(*lines, "@%p2 ld.global.u32 %r4, [%at1]", blocks=2, order=1, races=True)
    assert re.fullmatch(
        r"race: '@%p2 ld.global.u32 %r4, \[%at1\];' at 0x[0-9a-f]+ by thread 5 of block 0 of test, "
        r"with '@%p1 st.global.u32 \[%at1\], %r3;' by thread 3 of block 1; 1 in all",
        str(found.value),
    )


def test_a_race_gives_way_to_what_is_worse():
    with fault("out of bounds"):
        run("st.global.u32 [%at1], 1", "bar.sync 0", "st.global.u32 [%at1+-4], 1", races=True)


def test_counts():
    array, memory = np.zeros(65, np.uint32), Memory()
    memory.add(array.ctypes.data, array.nbytes)
    lines = *exchange(32, ALL), ATOMIC, "ld.shared.u32 %r4, [mine]"
    launch = kernel("st.shared.u32 [%at7], 1", ALL, *lines).launch(1, 64, [array.ctypes.data], memory)
    assert [launch[name] for name in ("loads", "stores", "atomics", "wide_loads", "race_count")] == [128, 128, 64, 0, 0]


# -- ranges of memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    return Memory()


def ranges(memory):
    return memory.table()[:, :2].tolist()


def test_ranges_are_sorted_and_those_that_overlap_are_one(memory):
    numbers = [memory.add(low, nbytes) for low, nbytes in ((400, 50), (100, 100), (150, 100), (120, 10), (250, 8))]
    assert ranges(memory) == [[100, 250], [250, 258], [400, 450]]
    assert memory.holds(100, 150) and memory.holds(249) and memory.holds(250, 8) and memory.holds(449)
    assert not (memory.holds(99) or memory.holds(249, 2) or memory.holds(258) or memory.holds(399) or memory.holds(450))
    memory.remove(numbers[1])
    assert ranges(memory) == [[120, 130], [150, 250], [250, 258], [400, 450]]
    for number in numbers * 2:
        memory.remove(number)
    assert ranges(memory) == [] and memory.cells() == 0 and not memory.holds(120)


def test_cells_of_ranges_are_apart(memory):
    for low, nbytes in ((100, 10), (200, 4), (302, 7)):
        memory.add(low, nbytes)
    firsts = memory.table()[:, 3].tolist()
    assert all(next - first >= count for first, next, count in zip(firsts, firsts[1:], (3, 1), strict=False))
    assert memory.cells() >= firsts[-1] + 2


def test_nothing_is_added(memory):
    memory.remove(memory.add(100, 0))
    assert ranges(memory) == []


def test_bounds_of_copies(memory):
    memory.add(100, 20)
    memory.require(100, 20)
    with pytest.raises(ValueError, match="out of bounds"):
        memory.require(101, 20)


def test_flags(memory):
    memory.add(96, 30, written=False)
    memory.add(200, 8)
    assert memory.flags(200, 8) is None and memory.flags(50, 8) is None and memory.flags(120, 16) is None
    assert memory.flags(96, 30).tolist() == [0] * 8
    memory.write(100, 9)
    assert memory.flags(96, 30).tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    memory.write(96, 8, undone=True)
    memory.write(200, 8, undone=True)
    assert memory.flags(96, 30).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert memory.flags(104, 4).tolist() == [1]


def test_a_view_inside_an_allocation(memory):
    """Whatever of that is not written stays so, and bounds are the allocation's; without it the view's."""
    whole = memory.add(96, 32, written=False)
    views = [memory.add(96, 32), memory.add(96, 8), memory.add(104, 24)]
    assert ranges(memory) == [[96, 128]]
    assert memory.flags(96, 8).tolist() == [0, 0]
    memory.write(96, 4)
    memory.remove(views[0])
    assert memory.flags(96, 8).tolist() == [1, 0]
    memory.remove(whole)
    assert ranges(memory) == [[96, 104], [104, 128]] and memory.flags(96, 8) is None


def test_what_sticks_out_of_an_allocation_is_refused(memory):
    memory.add(96, 32, written=False)
    memory.add(100, 40)
    with pytest.raises(AssertionError, match="overlaps"):
        memory.table()
