"""Real kernels without one of their barriers or fences, and kernels that are wrong on purpose: launches notice it."""

import functools
import gc
import importlib.util
import os
import re
import sys
import types
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastopt.kernels.compile.intrinsics import array_at
from fastopt.kernels.cuda import _cuda_jit
from numba import cuda

import fastopt

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package for this platform"
    ),
    pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="kernels are compiled"),
    pytest.mark.xdist_group("ptx mutations"),
]

# -- optimizers on both sides ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """An optimizer, its parameters' shapes, which steps are broken, which gradients are missing, and all steps."""

    make: Any
    shapes: Any
    broken: tuple = ()
    missing: Any = ()
    steps: int = 2


def skipping(**kwargs):
    """Makes what measures its gradients, and leaves out steps whose are not finite."""
    return lambda: fastopt.SGD(0.1, nonfinite="skip", **kwargs)


SMALL = ((33, 7), *((k,) for k in range(1, 40)))
"""More parameters than there are warps: a warp that is done with one has another one to do."""
SOME, MANY = ((40_001,), *SMALL[:2]), ((530_001,), *SMALL)
MATRICES = ((9001,), (33, 7), (64, 300), (3, 20, 50), (40, 5000), (12, 5, 7))
RUNS = {
    "clipnorm": Run(skipping(clipnorm=0.5), SOME, broken=(2,)),
    "clipnorm, small": Run(skipping(clipnorm=0.5), SMALL),
    "clipnorm, missing": Run(skipping(clipnorm=0.5), ((100_001,), *SMALL), missing=range(1, 20)),
    "clipnorm, many": Run(skipping(clipnorm=0.5), MANY, broken=(2,)),
    "global": Run(skipping(global_clipnorm=0.5), SOME, broken=(2,)),
    "Adam": Run(lambda: fastopt.Adam(0.01), ((9001,), (33, 7))),
    "Lamb": Run(lambda: fastopt.Lamb(0.01), SOME),
    "Lamb, small": Run(lambda: fastopt.Lamb(0.01), SMALL),
    "Lamb, many": Run(lambda: fastopt.Lamb(0.01), MANY),
    "Adafactor": Run(lambda: fastopt.Adafactor(0.01), MATRICES),
    "Adafactor, small": Run(lambda: fastopt.Adafactor(0.01), ((3, 5), *SMALL, (7, 9), (80, 90))),
    "Adafactor, long": Run(lambda: fastopt.Adafactor(0.01), MANY, steps=1),
    "Adafactor, tall": Run(lambda: fastopt.Adafactor(0.01), ((8300, 64), *8 * [(40, 30)]), steps=1),
}


def drawn(run, step):
    """Gradients of a step; parameters for step 0."""
    rng = np.random.default_rng(step)
    arrays = [np.asarray(rng.normal(size=shape), np.float32) for shape in run.shapes]
    if step in run.broken:
        arrays[0][1234] = np.inf
    return arrays


class Replaced:
    """What kernels are run in the place of which.

    Parameters
    ----------
    kernels : dict, optional
        A program's image → what is run.
    counters : numpy.ndarray, optional
        What else they may write to.
    """

    def __init__(self, kernels=None, counters=None):
        self.kernels, self.counters, self.images = kernels or {}, counters, []

    def kernel_of(self, image):
        """As `running_driver.kernel_of`."""
        import running_driver

        self.images.append(image)
        return self.kernels.get(image) or _kernel_of(running_driver, image)


@functools.cache
def _kernel_of(driver, image):
    return driver.Kernel(image.decode())


def train(name, replaced, **way):
    """Some steps on the CPU and with kernels on a made-up GPU: what goes wrong, None if both have the same bits."""
    import running_driver
    from cupy_stand_in import CuPy

    driver = running_driver.RunningDriver((1.0, 1.0), seed=1, way={"order": 2, "seed": 1, "resident": 64} | way)
    with pytest.MonkeyPatch.context() as patch:
        cupy = CuPy(driver)
        patch.setitem(sys.modules, "cupy", cupy)
        patch.setattr(running_driver, "kernel_of", replaced.kernel_of)
        running_driver.install(patch, driver)
        if replaced.counters is not None:
            driver.known[0].add(replaced.counters.ctypes.data, replaced.counters.nbytes)
        failure = _failure(RUNS[name], cupy)
        for stream in driver.streams.values():
            stream.queue.clear()
        gc.collect()
        running_driver.remove(driver)
    return failure


def _failure(run, cupy):
    """What goes wrong, as text: an exception would keep arrays alive."""
    from ptx.kernel import Fault

    try:
        arrays = drawn(run, 0)
        cpu, gpu, params = run.make(), run.make(), [cupy.array(array) for array in arrays]
        cpu.build(arrays)
        gpu.build(params)
        for step in range(1, run.steps + 1):
            grads = [None if k in run.missing else array for k, array in enumerate(drawn(run, step))]
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of gradients that are missing
                gpu.apply([None if grad is None else cupy.array(grad) for grad in grads])
                cpu.apply(grads)
        same = all(found.get().tobytes() == array.tobytes() for found, array in zip(params, arrays, strict=True))
        return None if same else "wrong bits"
    except Fault as fault:
        return str(fault)


# -- what is taken out -------------------------------------------------------------------------------------------------

SITES = re.compile(r"^\s+(bar\.sync\s+0;|bar\.warp\.sync\s+-1;|membar\.gl;)", re.MULTILINE)


@functools.cache
def image_of(kernel, name):
    """The program of a kernel, by a part of its mangled name, that a run launches."""
    replaced = Replaced()
    assert train(name, replaced) is None
    (image,) = {image for image in replaced.images if kernel in re.search(rb"\.entry\s+(\w+)", image)[1].decode()}
    return image


def uncached(ptx):
    """A kernel whose machine code is not kept."""
    from ptx import kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "cache", types.SimpleNamespace(cache_path=lambda *arguments: None))
        return kernel.Kernel(ptx)


def reached(image, name, places):
    """Whether threads of a run come to each of some places: instructions that note it stand before them."""
    ptx, counters, pieces, end = image.decode(), np.zeros(len(places), np.uint32), [], 0
    for k, place in enumerate(places):
        pieces += [ptx[end : place.start(1)], f"st.global.u32 [{counters.ctypes.data + 4 * k}], 1;\n\t"]
        end = place.start(1)
    assert train(name, Replaced({image: uncached("".join([*pieces, ptx[end:]]))}, counters)) is None
    return counters > 0


def without(ptx, place):
    """A kernel without one instruction."""
    from ptx.kernel import Kernel

    return Kernel(ptx[: place.start(1)] + ptx[place.end(1) :])


WAYS = ({"seed": 3}, {"seed": 1})


def noticed(replaced, runs):
    """What one of the runs, in one of the orders, finds wrong; None if all is well."""
    for name in runs:
        for way in WAYS:
            if failure := train(name, replaced, races=True, **way):
                return failure.partition(":")[0]
    return None


class Case(NamedTuple):
    """A kernel by a part of its mangled name, what runs it, and what may be left out without being noticed.

    ``idle`` counts instructions that are not reached; they are there for blocks of one warp, which no launch has.
    """

    kernel: str
    runs: tuple
    unneeded: dict
    idle: dict


OWN = "the first barrier of `sums.fold`: of `sums.lane_sum` in a warp, a thread adds lanes first that it wrote itself"
END = "the last barrier of `sums.row_sum`: nothing is written to these lanes any more, for the kernel ends"
SUMMED = "the last barrier of `sums.segment_is_done`: each chunk's sums wait before the next answer is written"
AFTER = "the last barrier of `sums.row_sum`: one of the whole block comes before these lanes are written again"
ALONE = (
    "the first barrier of `adafactor._is_last`: since the one before it only the first warp has written, which counts"
)
ONE = "the same: the sum that is passed on is written by the thread that counts"
EARLIER = "the first fence of `finish.is_last` for a band: that of the ticket before has passed on the same"
CASES = {
    "step": Case("step_adam", ("Adam",), {}, {}),
    "phase one": Case("phase_one_lamb", ("Lamb", "Lamb, small", "Lamb, many"), {"bar.warp.sync": (OWN, SUMMED)}, {}),
    "norms": Case(
        "norms_float32",
        ("clipnorm", "global", "clipnorm, small", "clipnorm, missing", "clipnorm, many"),
        {"bar.warp.sync": (OWN,), "bar.sync": (END, END)},
        {"bar.warp.sync": 10},
    ),
    "sums": Case(
        "sums_adafactor",
        ("Adafactor", "Adafactor, small", "Adafactor, long", "Adafactor, tall"),
        {"bar.warp.sync": (*5 * (OWN,), *3 * (AFTER,)), "bar.sync": (ALONE, ONE), "membar.gl": (EARLIER,)},
        {},
    ),
    "sizes": Case(
        "sizes_adafactor",
        ("Adafactor", "Adafactor, small", "Adafactor, long", "Adafactor, tall"),
        {"bar.warp.sync": (*3 * (OWN,), AFTER), "bar.sync": (ALONE,)},
        {},
    ),
    "update": Case("update_adafactor", ("Adafactor",), {}, {}),
}


def outcomes(case, kinds):
    """Of each barrier or fence: its kind, and what is noticed without it; "idle" if it is never reached."""
    image = image_of(case.kernel, case.runs[0])
    ptx = image.decode()
    places = [place for place in SITES.finditer(ptx) if kind_of(place) in kinds]
    comes = [reached(image, name, places) for name in case.runs]
    for place, *those in zip(places, *comes, strict=True):
        runs = [name for name, come in zip(case.runs, those, strict=True) if come]
        yield kind_of(place), noticed(Replaced({image: without(ptx, place)}), runs) if runs else "idle"


def kind_of(place):
    return re.match(r"[\w.]+", place[1])[0]


KINDS = ("bar.sync", "bar.warp.sync", "membar.gl")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("step", KINDS),
        ("phase one", KINDS[2:]),
        *(pytest.param(name, KINDS, marks=pytest.mark.full) for name in CASES if name != "step"),
    ],
)
def test_each_barrier_and_fence_is_needed(name, kinds):
    """But for those that `CASES` gives reasons for."""
    case = CASES[name] if kinds == KINDS else CASES[name]._replace(runs=CASES[name].runs[:1], unneeded={}, idle={})
    found = Counter(outcomes(case, kinds))
    for kind in kinds:
        assert found[kind, None] == len(case.unneeded.get(kind, ())), (kind, found)
        assert found[kind, "idle"] == case.idle.get(kind, 0), (kind, found)
    assert sum(found.values()) - sum(found[kind, outcome] for kind in kinds for outcome in (None, "idle")) > 0


# -- wrong on purpose --------------------------------------------------------------------------------------------------

BEYOND = SHIFT = 0
WAITS = True


def turned(handle, count):
    """Turn an array around, through shared memory."""
    numbers = cuda.shared.array(128, np.float32)
    i = cuda.threadIdx.x
    if i < count + BEYOND:
        numbers[i] = array_at(handle, 0, i + 1, np.float32)[i]
    if WAITS:
        cuda.syncthreads()
    if i < count:
        array_at(handle, 0, i + 1, np.float32)[i] = numbers[count - 1 - i + SHIFT]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({}, None),
        ({"BEYOND": 1}, "out of bounds: 'ld"),
        ({"BEYOND": -1}, "nobody wrote what is read: 'ld.shared"),
        ({"WAITS": False}, "(race|nobody wrote what is read): '"),
        ({"SHIFT": 1}, "nobody wrote what is read: 'ld.shared"),
        ({"SHIFT": -1}, "nobody wrote what is read: 'ld.shared"),  # the last number, as in Python
    ],
    ids=str,
)
def test_a_kernel_in_python(wrong, found, order):
    from ptx.kernel import Fault, Kernel
    from ptx.memory import Memory

    bindings = {"BEYOND": 0, "SHIFT": 0, "WAITS": True} | wrong
    kernel, memory = Kernel(turned_ptx(tuple(bindings.items()))), Memory()
    array = np.arange(100, dtype=np.float32)
    memory.add(array.ctypes.data, array.nbytes)

    def launch():
        kernel.launch(1, 128, [array.ctypes.data, array.size], memory, order=order, races=True)

    if found:
        with pytest.raises(Fault, match=f"^{found}"):
            launch()
    else:
        launch()
        assert array.tolist() == list(range(100))[::-1]


@functools.cache
def turned_ptx(bindings):
    return _cuda_jit.cuda_ptx(turned, "turned", 2, dict(bindings), (9, 0))


def moved(ptx, place, nbytes):
    """A kernel with another address in one instruction."""
    from ptx.kernel import Kernel

    base, _, offset = place["address"].partition("+")
    changed = f"[{base}+{int(offset or 0) + nbytes}]"
    return Kernel(ptx[: place.start("address") - 1] + changed + ptx[place.end("address") + 1 :])


ACCESSES = re.compile(
    r"^\s+((?P<what>ld|st)\.(?:global\.)?(?P<vector>v[24]\.)?f32\s[^;]*?\[(?P<address>[^]]*)\])", re.MULTILINE
)


@pytest.mark.parametrize("most", [3, pytest.param(None, marks=pytest.mark.full)])
def test_indices_that_are_off_by_one(most):
    """Each access of Adam's step to float32, one after the other.

    It is noticed but for three numbers of the control record: those beside them are the same, or are not used.
    """
    image = image_of("step_adam", "Adam")
    ptx, places, found = image.decode(), list(ACCESSES.finditer(image.decode())), Counter()
    counts = reached(image, "Adam", places)
    for place in [place for place, count in zip(places, counts, strict=True) if count][:most]:
        nbytes = 4 * int((place["vector"] or "v1")[1])
        found[place["what"], noticed(Replaced({image: moved(ptx, place, nbytes)}), ["Adam"])] += 1
    assert found.total() >= 3 and found["st", None] == 0, found
    assert found["ld", None] <= (0 if most else 3), found
