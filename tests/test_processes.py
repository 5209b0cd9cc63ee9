"""Second steps, forks, threads, launches, memory: what a step does beside arithmetic."""

import multiprocessing
import sys

import children
import numpy as np
import pytest
from fastopt.kernels.compile import _jit
from fastopt.kernels.compile.intrinsics import array_at, call_number
from fastopt.kernels.cpu import exchange, launch, threads
from numba import types

import fastopt

pytestmark = pytest.mark.xdist_group("processes")  # the tests load what the first of them compiled

# -- second steps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def specialised(monkeypatch):
    """Names of the kernels that were compiled or loaded so far, by a process that begins with none."""
    names = []

    def specialise(kernel, name, *arguments, **options):
        names.append(f"{kernel.__name__}_{name}")
        return _jit.specialise(kernel, name, *arguments, **options)

    monkeypatch.setattr(launch, "specialise", specialise)
    monkeypatch.setattr(exchange, "specialise", specialise)
    for cached in (launch.kernel, launch.serial_function, exchange._compiled, exchange.obstacle):
        cached.cache_clear()
    return names


def arrays(*shapes, dtype=np.float32):
    return [np.ones(shape, dtype) for shape in shapes]


def stepped(optimizer, params, steps=1):
    """The optimizer, built, after steps with gradients of ones."""
    optimizer.build(params)
    for _ in range(steps):
        optimizer.apply([np.ones_like(array) for array in params])
    return optimizer


OPTIONS = {
    "plain": {},
    "global_clipnorm, ema": {"global_clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2},
    "clipnorm": {"clipnorm": 1.0},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, global_clipnorm": {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0},
    "accumulation, clipnorm": {"gradient_accumulation_steps": 3, "clipnorm": 1.0},
    "accumulation, skip": {"gradient_accumulation_steps": 2, "nonfinite": "skip"},
}


def second_steps(name, options):
    covering = name == "Adam" or options in ("plain", "accumulation, global_clipnorm")
    return pytest.param(name, options, marks=[] if covering else [pytest.mark.full])


ENGINES = ("Adam", "Lamb", "Adafactor", "Muon", "ScheduleFreeAdamW")


@pytest.mark.parametrize(("name", "options"), [second_steps(name, options) for name in ENGINES for options in OPTIONS])
def test_second_step_compiles_nothing(name, options, specialised):
    optimizer = stepped(getattr(fastopt, name)(**OPTIONS[options]), arrays((40, 7), 33))
    first = list(specialised)
    with children.recorded_compilations() as events:
        for _ in range(6):
            optimizer.apply(arrays((40, 7), 33))
    assert specialised == first
    assert events == []


def test_build_compiles_everything(specialised):
    """The first step, a micro-step, is as fast as those after it."""
    optimizer = fastopt.Adam(gradient_accumulation_steps=2, global_clipnorm=1.0)
    optimizer.build(arrays(5))
    at_build = list(specialised)
    optimizer.apply(arrays(5))
    optimizer.apply(arrays(5))
    assert specialised == at_build


@pytest.fixture
def warm(specialised):
    """What Adam and SGD need is there, on threads too. Whatever the test makes compile, or load, fails it."""
    for optimizer in (fastopt.Adam(), fastopt.SGD(momentum=0.9)):
        stepped(optimizer, arrays(3, 100_000))
    before = list(specialised)
    with children.recorded_compilations() as events:
        yield
    assert specialised == before
    assert events == []


@pytest.mark.parametrize("shapes", [[()], [0], [100_000], [(3, 4, 5)] * 400, [7, 40_000, (2, 2)]], ids=len)
def test_new_sizes_and_numbers_of_parameters_compile_nothing(shapes, warm):
    stepped(fastopt.Adam(), arrays(*shapes), steps=2)


def test_new_hyper_parameters_compile_nothing(warm):
    stepped(fastopt.Adam(1e-2, beta_1=0.5, weight_decay=0.1, clipvalue=1.0, loss_scale_factor=2.0), arrays(3), 2)


def test_new_containers_compile_nothing(warm):
    for params in (tuple(arrays(3, 4)), {"a": arrays(3), "b": {"c": np.ones(4, np.float32)}}, arrays(3)[0]):
        optimizer = fastopt.Adam()
        optimizer.build(params)
        optimizer.apply(params if isinstance(params, np.ndarray) else fastopt.pack(params).views)
    packed = fastopt.pack(arrays(3, 4))
    optimizer = fastopt.Adam()
    optimizer.build(packed)
    optimizer.apply(packed.like())
    optimizer.apply(packed.like().flat)


GRADIENTS = {
    "strided": lambda: np.ones((40, 9), np.float32)[:, ::3],
    "transposed": lambda: np.ones((3, 40), np.float32).T,
    "reversed": lambda: np.ones((40, 3), np.float32)[::-1],
    "of another dtype": lambda: np.ones((40, 3)),
    "read-only": lambda: np.broadcast_to(np.float32(1), (40, 3)),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_new_kinds_of_gradients_compile_nothing(kind, warm):
    optimizer = stepped(fastopt.Adam(), arrays((40, 3), 50_000))
    optimizer.apply([GRADIENTS[kind](), np.ones(50_000, np.float32)])


def test_parts_of_the_parameters_compile_nothing(warm):
    params = arrays(3, 4)
    optimizer = stepped(fastopt.Adam(), params)
    optimizer.apply_gradients([(np.ones(4, np.float32), params[1])])
    optimizer.apply(arrays(3, 4), zero_grads=True)


# -- launches ----------------------------------------------------------------------------------------------------------

CLIPPED = {"global_clipnorm": 1.0, "use_ema": True}
LAUNCHES = [
    ("Adam", {}, 1),
    ("Adam", {"use_ema": True, "clipvalue": 1.0, "weight_decay": 0.1, "loss_scale_factor": 2.0}, 1),
    ("Adam", CLIPPED, 2),
    ("Adam", {"clipnorm": 1.0, "nonfinite": "skip"}, 2),
    ("Adam", {"gradient_accumulation_steps": 2}, 1),
    ("Lion", CLIPPED, 2),
    ("Lamb", {}, 2),
    ("Lamb", CLIPPED, 3),
    ("Adafactor", {}, 3),
    ("Adafactor", CLIPPED, 4),
]


@pytest.mark.parametrize(("name", "options", "expected"), LAUNCHES)
def test_launches_of_one_step_on_400_parameters(name, options, expected, launches):
    params = [array for k in range(200) for array in arrays((k % 7 + 1, 32), 32)]
    optimizer = stepped(getattr(fastopt, name)(**options), params)
    launches.clear()
    optimizer.apply(params)
    assert len(launches) == expected


# -- memory ------------------------------------------------------------------------------------------------------------

MEGABYTE = 2**20
STEPS_ON_100_MEGABYTES = """
    import tracemalloc
    import numpy as np
    import children, fastopt
    from numba.core.runtime import rtsys

    rows, columns = 6400, 4096
    param = np.ones((rows, columns), np.float32)
    assert param.nbytes == 100 * 2**20

    def measured(name, options, stride):
        grad = np.full((rows, columns * stride), 0.5, np.float32)[:, ::stride]
        optimizer = getattr(fastopt, name)(**options)
        optimizer.build([param])

        def update():
            for _ in range(options.get("gradient_accumulation_steps", 1)):
                optimizer.apply([grad])

        update()
        update()
        before = rtsys.get_allocation_stats()
        peak = children.peak_memory(update)
        after = rtsys.get_allocation_stats()
        tracemalloc.start()
        update()
        by_python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {{
            "peak": peak,
            "by_python": by_python,
            "by_numba": after.alloc - before.alloc,
            "kept_by_numba": (after.alloc - after.free) - (before.alloc - before.free),
        }}

    children.report(found=[measured(*case) for case in {cases}])
"""
ALL_OPTIONS = {"global_clipnorm": 1.0, "use_ema": True, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([("Adam", {}, 1), ("Adam", ALL_OPTIONS, 2)], id="Adam"),
        pytest.param([("Lamb", ALL_OPTIONS, 2), ("Adafactor", ALL_OPTIONS, 2)], id="others", marks=pytest.mark.full),
    ],
)
def test_a_step_on_100_megabytes_allocates_less_than_one(cases):
    found = children.run(STEPS_ON_100_MEGABYTES.format(cases=cases), NUMBA_NRT_STATS=1)["found"]
    for case, each in zip(cases, found, strict=True):
        assert each["peak"] < MEGABYTE, case
        assert each["by_python"] < MEGABYTE, case
        assert each["kept_by_numba"] == 0, case
        assert each["by_numba"] < 100, f"{case}: scratch is allocated per launch and thread, not per chunk"


# -- fork --------------------------------------------------------------------------------------------------------------

# From Python 3.12 on a fork in a process with threads warns. That it works nevertheless is what is tested here.
FORKING = {"PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning"}


@children.FORK
@pytest.mark.parametrize("layer", children.LAYERS)
def test_fork_after_parallel_steps(layer):
    code = """
        import children, fastopt, numpy as np
        from fastopt.kernels.cpu.threads import layer

        expected = children.steps_of("Adam")
        param = np.ones(100_000, np.float32)
        optimizer = fastopt.SGD(momentum=0.9)
        optimizer.build([param])
        optimizer.apply([param.copy()])

        def go_on():
            optimizer.apply([np.ones_like(param)])
            fastopt.set_num_threads(2)
            return [children.digest_of(optimizer, [param]), children.steps_of("Adam"), fastopt.get_num_threads()]

        child = children.in_fork(go_on)
        again = children.in_fork(go_on)
        parent = go_on()
        children.report(child=child, again=again, parent=parent, expected=expected, layer=layer())
    """
    found = children.run(code, **children.layer(layer), **FORKING)
    digest, adam, threads = found["parent"]
    assert found["layer"] == layer
    assert threads == 2
    assert adam == found["expected"]
    assert found["child"] == found["again"] == [digest, adam, 1]


AFTER_TORCH = """
    {first}
    import children, torch
    torch.set_num_threads(2)
    matrix = torch.ones(1500, 1500)
    assert float((matrix @ matrix).add(1.0).sum()) > 0
    in_child = children.in_fork(lambda: children.steps_of("Adam"))
    import fastopt
    before_fork = children.in_fork(lambda: children.steps_of("Adam"))
    children.report(found=[in_child, before_fork], expected=children.steps_of("Adam"))
"""


def assert_forks_step_after_torch(layer, first=""):
    pytest.importorskip("torch")
    code = AFTER_TORCH.format(first=first)
    found = children.run(code, **children.layer(layer), PYTHONWARNINGS="default")  # torch's own are none of ours
    assert found["found"] == [found["expected"]] * 2
    assert found["expected"] == children.steps_of("Adam")


@children.FORK
@pytest.mark.parametrize("layer", children.LAYERS)
def test_fork_where_only_torch_ran_in_parallel(layer):
    """Before fastopt is imported, and after."""
    assert_forks_step_after_torch(layer)


@children.FORK
def test_fork_where_only_torch_ran_in_parallel_and_fastopt_was_imported_first():
    """Whose OpenMP runtime is loaded first."""
    assert_forks_step_after_torch("openmp", "import fastopt")


FIRST_STEPS_OF_TORCH = """
    import children, torch, fastopt.torch

    torch.set_num_threads(2)
    CASES = [
        ("Adam", {"ema": 0.9}),
        ("SGD", {"flat": True, "fused_zero_grad": True}),
        ("ScheduleFreeAdamW", {}),
        ("Adagrad", {"initial_accumulator_value": 0.5}),
    ]

    def inputs():
        wide = [torch.linspace(-k, 3, 2_000_000).reshape(1000, 2000) for k in range(2)]
        return torch.nn.Parameter(torch.linspace(-1, 1, 1_000_000).reshape(1000, 1000)), [grad[:, ::2] for grad in wide]

    def few_steps(name, options, p, grads):
        optimizer = getattr(fastopt.torch, name)([p], **options)
        if name == "ScheduleFreeAdamW":
            optimizer.train()
        for p.grad in grads:
            optimizer.step()
        found = [children.digest(p.detach().numpy(), *(grad.numpy() for grad in grads))]
        if "ema" in options:
            with optimizer.evaluation_weights():
                found.append(children.digest(p.detach().numpy()))
        if name == "ScheduleFreeAdamW":
            optimizer.eval()
        return [*found, children.digest(p.detach().numpy())]

    def all_steps(given):
        return [few_steps(*case, *each) for case, each in zip(CASES, given, strict=True)]

    # By torch, which would hang in the child itself.
    in_parent, in_child = ([inputs() for _ in CASES] for _ in range(2))
    parent = all_steps(in_parent)
    children.report(parent=parent, child=children.in_fork(lambda: all_steps(in_child)))
"""


@children.FORK
def test_first_steps_of_torchs_parameters_in_a_fork():
    """The parent's bits: what makes and fills state, averages and buffers does not enter OpenMP there."""
    pytest.importorskip("torch", reason="its optimizers are stepped")
    found = children.run(FIRST_STEPS_OF_TORCH, timeout=400, PYTHONWARNINGS="default")  # torch's own are none of ours
    assert found["child"] == found["parent"]


LOCKS = {
    "launches": "from fastopt.kernels.cpu.launch import exclusively as lock",
    "compiles": "from numba.core.compiler_lock import global_compiler_lock as lock",
}
WHILE_A_LOCK_IS_HELD = """
    import threading, time
    import children, fastopt
    {imported}

    def forked():
        held = threading.Event()

        def hold():
            with lock:
                held.set()
                time.sleep(0.5)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = children.in_fork(lambda: children.steps_of("Adam"))
        thread.join()
        return child

    before_the_first_build = forked()
    parent = children.steps_of("Adam")
    children.report(found=[before_the_first_build, forked()], parent=parent)
"""


@children.FORK
@pytest.mark.parametrize("does", LOCKS)
def test_fork_while_another_thread(does):
    """Before the first build, and later."""
    found = children.run(WHILE_A_LOCK_IS_HELD.format(imported=LOCKS[does]), **FORKING)
    assert found["found"] == [found["parent"]] * 2


@children.FORK
def test_forked_child_builds_no_parallel_form():
    """There is no use for it. That a forked child compiles is tested in `test_compiling`."""
    code = """
        import children, fastopt

        def step():
            from fastopt.kernels.compile import _jit
            return [children.few_steps(fastopt.SGD(), steps=1), _jit.compilations + _jit.loads]

        children.in_fork(lambda: 0)
        child = children.in_fork(step)
        children.report(child=child, parent=step())
    """
    found = children.run(code, **FORKING)
    assert found["child"][0] == found["parent"][0]
    assert 0 < found["child"][1] < found["parent"][1]


METHODS = multiprocessing.get_all_start_methods()


def test_pools_of_processes():
    """Started in any way: all that this platform has."""
    code = f"""
        import multiprocessing
        import children

        names = ["Adam", "Lion", "Adam", "Lion"]
        expected = [children.steps_of(name) for name in names]
        found = {{}}
        for method in {METHODS!r}:
            with multiprocessing.get_context(method).Pool(2) as pool:
                found[method] = pool.map_async(children.steps_of, names).get(timeout=120)
        children.report(found=found, expected=expected)
    """
    found = children.run(code, timeout=400, **FORKING)
    assert found["found"] == dict.fromkeys(METHODS, found["expected"])


# -- Python threads ----------------------------------------------------------------------------------------------------

IN_THREADS = """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    import children, fastopt
    from fastopt.kernels.cpu.threads import layer

    names = ["Adam", "Lion", "Lamb", "Nadam"] * 2
    barrier = threading.Barrier(len(names))

    def run(name):
        barrier.wait()
        optimizer = getattr(fastopt, name)(global_clipnorm=1.0, use_ema=True)
        return children.few_steps(optimizer, steps=40, sizes=(40_000, 50_001, 33))

    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(run, names))
        again = list(pool.map(run, names))
    barrier = threading.Barrier(1)
    alone = [run(name) for name in names]
    children.report(together=together, again=again, alone=alone, layer=layer())
"""


@pytest.mark.parametrize("layer", children.LAYERS)
def test_threads_that_build_and_step_at_once(layer):
    found = children.run(IN_THREADS, **children.layer(layer))
    assert found["layer"] == layer
    assert found["together"] == found["again"] == found["alone"]


# -- whose threads -----------------------------------------------------------------------------------------------------

RUNTIMES = """
    import pathlib, re
    import children
    {first}
    {second}
    from fastopt.kernels.cpu.threads import layer

    maps = pathlib.Path("/proc/self/maps").read_text()
    steps = children.steps_of("Adam")
    children.report(steps=steps, layer=layer(), runtimes=len(set(re.findall(r"/\\S*lib[gi]?omp\\d?\\.so\\S*", maps))))
"""
TORCH_IN_PARALLEL = "import torch; torch.set_num_threads(2); torch.ones(1 << 20).add_(1)"
FASTOPT_IN_PARALLEL = "import fastopt; children.steps_of('Adam')"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which libraries a process has")
@pytest.mark.parametrize("torch_first", [True, False])
def test_torch_and_fastopt_share_their_threads(torch_first):
    """A pool each would spin on the processors that the other needs."""
    pytest.importorskip("torch")
    order = TORCH_IN_PARALLEL, FASTOPT_IN_PARALLEL
    first, second = order if torch_first else order[::-1]
    code = RUNTIMES.format(first=first, second=second)
    found = children.run(code, NUMBA_THREADING_LAYER=None, PYTHONWARNINGS="default")
    assert (found["layer"], found["runtimes"]) == ("openmp", 1)
    assert found["steps"] == children.steps_of("Adam")


def note_thread(first, last, found, number):
    """A kernel that notes the number of its thread; ``number`` is the address of what tells it."""
    array_at(found, first, 1, np.int64)[0] = call_number(number)


def test_no_more_threads_than_torch_is_told_to_use():
    torch = pytest.importorskip("torch", reason="the limit is torch's to set")
    team = threads._team(True)
    if team is None:
        pytest.skip("this process has been told to use another layer, or has no OpenMP runtime")
    kernel = _jit.specialise(note_thread, "test", types.void(*[types.int64] * 4), {})
    before, used = torch.get_num_threads(), {}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = np.zeros(8, np.int64)
            threads.call(_jit.c_address(kernel), np.arange(9), found.ctypes.data, int(team[1]))()
            used[count] = set(found.tolist())
    finally:
        torch.set_num_threads(before)
    assert used == {1: {0}, 2: {0, 1}}
