"""Whether launches use threads where other programs want the cores. Machines are made up, and so are their clocks."""

import numpy as np
import pytest
from fastopt.kernels.compile import _jit
from fastopt.kernels.compile.intrinsics import array_at, call_number
from fastopt.kernels.cpu import crowding, launch, threads
from numba import types

import fastopt

WAIT = 8e-3
"""Seconds that a thread waits for a core."""


class Program:
    """Launches, one after the other, on a machine where one of them takes ``cost(threads, k)`` seconds."""

    def __init__(self, cost):
        self.cost, self.record, self.now = cost, crowding.new_record(), 1000.0

    def launch(self, count, between=0.0):
        """So many launches, ``between`` seconds apart: mean time of one, and how many used one thread."""
        spent, alone = 0.0, 0
        for k in range(count):
            threads = 1 if crowding.is_alone(self.record) else 2
            seconds = self.cost(threads, k)
            self.now += seconds
            crowding.learn(self.record, seconds, self.now)
            self.now += between
            spent += seconds
            alone += threads == 1
        return spent / count, alone

    @property
    def pause(self):
        """What is left of a pause."""
        return self.record[crowding.PAUSE]

    def until_pause(self):
        """Launches until a pause begins; how many times as long as what was lost it will be."""
        while not self.pause:
            self.launch(1)
        return self.pause / -self.record[crowding.BALANCE]


def quiet(threads, k):
    """A step on 100 000 numbers."""
    return {1: 25e-6, 2: 17e-6}[threads]


def random_waits(share, each=WAIT, of_one=0.0, seed=0):
    """A machine on which so many launches on threads wait, and ``of_one`` of those on one."""
    rng = np.random.default_rng(seed)
    return lambda threads, k: quiet(threads, k) + each * (rng.random() < (share if threads > 1 else of_one))


def mean_on(threads, cost, count):
    return sum(cost(threads, k) for k in range(count)) / count


# -- quiet machines ----------------------------------------------------------------------------------------------------


def test_a_quiet_machine_loses_nothing():
    program = Program(quiet)
    program.launch(10_000)
    mean, alone = program.launch(100_000)
    assert alone <= 400
    assert mean <= 1.005 * quiet(2, 0)


def test_it_costs_next_to_nothing_to_find_out_at_first():
    mean, _ = Program(quiet).launch(1000)
    assert mean <= 1.01 * quiet(2, 0)


def test_a_machine_of_many_cores_does_not_wait_for_one():
    program = Program(lambda threads, k: 20e-3 if threads == 1 else 0.3e-3)
    assert program.launch(50_000)[0] <= 1.02 * 0.3e-3


def test_a_slow_first_launch_is_no_reason():
    """It starts threads, and meets new memory."""
    program = Program(lambda threads, k: 5e-3 if k == 0 else quiet(threads, k))
    program.launch(1)
    assert program.launch(1000)[1] <= 12


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_times_that_vary_are_no_reason(noise):
    rng = np.random.default_rng(0)
    _, alone = Program(lambda threads, k: quiet(threads, k) * rng.lognormal(0, noise)).launch(20_000)
    assert alone <= 300


def test_a_wait_now_and_then_is_no_reason():
    """On one thread it would have come as well, or threads have won as much in between."""
    program = Program(lambda threads, k: quiet(threads, k) + (WAIT if k % 4000 == 3999 else 0))
    program.launch(3999)
    assert not program.pause
    assert program.launch(20_000)[1] <= 120


def test_launches_of_several_sizes_in_turn():
    """Steps in which some parameters have no gradient, in a pattern of whatever length."""
    for period in (2, 3, 5):
        program = Program(lambda threads, k, period=period: quiet(threads, k) * (1 if k % period else 10))
        program.launch(3000)
        assert program.launch(10_000)[1] <= 500


# -- busy machines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("of_one", [0.0, 0.002])
def test_a_busy_machine_costs_little_more_than_one_thread(share, of_one):
    count = 50_000
    mean, alone = Program(random_waits(share, of_one=of_one)).launch(count)
    best = min(mean_on(threads, random_waits(share, of_one=of_one), count) for threads in (1, 2))
    assert mean <= 1.5 * best
    assert alone > count / 2


def test_waits_far_longer():
    """A dozen programs on two cores: 50 ms, at every launch."""
    cost = random_waits(1.0, 0.05)
    program = Program(cost)
    program.launch(200_000)
    assert program.launch(200_000)[0] <= 1.1 * quiet(1, 0)


@pytest.mark.parametrize("busy_for", [10, 100_000])
def test_threads_come_back(busy_for):
    """After a pause that was no longer than what the waits had cost, times `LONGEST`."""
    program = Program(quiet)
    program.launch(5000)
    program.cost = random_waits(0.5)
    program.launch(busy_for)
    program.cost = quiet
    began, worst = program.now, crowding.LONGEST * 3 * WAIT
    while program.pause:
        program.launch(1)
    assert program.now - began <= worst
    assert program.launch(10_000)[1] <= 100


def test_a_large_launch_keeps_threads_that_are_worth_it():
    """A share of the machine goes by threads: with four other programs on two cores, two get more than one does."""
    program = Program(lambda threads, k: {1: 20e-3, 2: 10e-3}[threads])
    program.launch(100)
    program.cost = lambda threads, k: {1: 50e-3, 2: 30e-3}[threads]
    program.launch(500)
    assert program.launch(500)[1] <= 25


def test_pauses_double_and_one_after_long_use_is_short_again():
    program = Program(random_waits(1.0))
    pauses = []
    for _ in range(8):
        pauses.append(program.until_pause())
        while program.pause:
            program.launch(1)
    np.testing.assert_allclose(pauses, [1, 2, 4, 8, 16, 32, 32, 32])
    program.cost = quiet
    program.launch(50_000)
    program.cost = random_waits(1.0)
    assert program.until_pause() == 1


def test_threads_are_tried_again_however_rarely_something_is_launched():
    program = Program(random_waits(1.0))
    program.launch(20_000)
    while program.pause:
        program.launch(1)
    program.until_pause()
    began = program.now
    while program.pause:
        program.launch(1, between=0.5)
    assert program.now - began <= crowding.LATEST + 1


# -- launches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(monkeypatch):
    """The account that all launches of a test share."""
    shared = crowding.Account()
    if not shared.address:
        pytest.skip("this platform has no clock that compiled code could read")
    monkeypatch.setattr(launch.Kernel, "account", lambda self, elements: shared.address)
    return shared


@pytest.fixture
def two_threads():
    before = dict(launch._state)
    fastopt.set_num_threads(2, yields=True)
    yield
    launch._state.update(before)


def note_thread(first, last, found, number):
    """A kernel that notes the number of its thread; ``number`` is the address of what tells it."""
    array_at(found, first, 1, np.int64)[0] = call_number(number)


def test_a_launch_uses_as_many_threads_as_its_account_says(account):
    team = threads._team(threads._has_torch())
    if team is None:
        pytest.skip("this process has been told to use another layer, or has no OpenMP runtime")
    kernel = _jit.specialise(note_thread, "test", types.void(*[types.int64] * 4), {})
    used = []
    for pause in (0, 1e9):
        found = np.full(2, -1)
        account.record[[crowding.SEEN, crowding.NEXT, crowding.PAUSE, crowding.UNTIL]] = 1, 1, pause, np.inf
        threads.call(_jit.c_address(kernel), np.arange(3), found.ctypes.data, int(team[1]), account.address)()
        used.append(found.tolist())
    assert used == [[0, 1], [0, -1]]  # on one thread one call does it all


def large_step(optimizer=None):
    """An optimizer that has done a step on threads."""
    optimizer = optimizer or fastopt.SGD(momentum=0.9)
    param = np.ones(100_000, np.float32)
    optimizer.build([param])
    optimizer.apply([param.copy()])
    return optimizer


def test_every_launch_is_noted(account, two_threads):
    large_step()
    assert account.record[crowding.TRIED] == 1
    large_step(fastopt.Adam(global_clipnorm=1.0))
    assert account.record[crowding.TRIED] == 3
    large_step()
    assert account.record[crowding.TRIED] == 3 and account.record[crowding.SEEN] == 1
    assert account.record[crowding.USUAL] > 0


def test_small_launches_are_not(account, two_threads):
    optimizer, param = fastopt.SGD(), np.ones(1000, np.float32)
    optimizer.build([param])
    optimizer.apply([param.copy()])
    assert not account.record[crowding.TRIED]


def test_it_can_be_switched_off(account, two_threads):
    fastopt.set_num_threads(2, yields=False)
    fastopt.set_num_threads(2)
    large_step()
    assert not account.record[crowding.TRIED]
    fastopt.set_num_threads(2, yields=True)
    large_step()
    assert account.record[crowding.TRIED]


def test_without_a_clock_all_threads_are_used(monkeypatch, two_threads):
    monkeypatch.setattr(crowding, "_clock", lambda: (0, 0))
    assert crowding.begin(crowding.Account().address, 4) == (4, 0.0)
    monkeypatch.setattr(launch.Kernel, "account", lambda self, elements: crowding.Account().address)
    large_step()


def test_works_of_about_the_same_size_share_an_account(two_threads):
    large_step()
    kernel = large_step()._plans[0].engine._step
    assert kernel.account(100_000) == kernel.account(70_000) != 0
    assert kernel.account(100_000) != kernel.account(200_000)


def test_the_longest_launches_have_no_account(two_threads):
    assert large_step()._plans[0].engine._step.account(crowding.MOST + 1) == 0
