"""What the CUDA kernels are compiled to, for GPUs that nobody here has: loads, arithmetic, registers, bytes in flight.

Kernels are those that building an optimizer asks for, on a stand-in for a GPU. A covering subset always runs; every
rule, dtype and architecture with the mark `full`.
"""

import contextlib
import functools
import importlib.util
import re
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastopt.kernels.compile.tuples import numbers_at, put_numbers
from fastopt.kernels.cuda import _cuda_jit, engine, gpu, row_gradients, strided
from fastopt.kernels.cuda.lanes import one, wide
from fastopt.kernels.registry import RULES
from gpu_arrays import DeviceNDArray, Interface, tensor_class
from machine_code import (
    blocks_per_multiprocessor,
    find_nvdisasm,
    groups_of_cubin,
    groups_of_ptx,
    kib_per_multiprocessor,
    shared_of,
)
from numba import cuda
from running_driver import RunningDriver, install, keep_ptx, remove
from table import OWN, VARIANTS

import fastopt
from fastopt.compat import keras_2_3

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package for this platform"
    ),
    pytest.mark.xdist_group("ptx"),
]

CAPABILITIES = ((8, 0), (9, 0), (10, 0))
HOPPER = (9, 0)
F32, F64 = np.dtype("float32"), np.dtype("float64")
NVDISASM = find_nvdisasm()


# -- the kernels that optimizers ask for -------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """The arguments of `cuda_program`."""

    function: Any
    name: str
    arguments: int
    bindings: dict
    capability: tuple
    key: Any

    @property
    def id(self):
        """Function and specialisation."""
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__} {self.name}"

    def blocks(self, tasks, threads):
        """As a kernel that is loaded."""
        return 1

    def launch(self, *arguments):
        """It is not."""


class Machine(gpu.Device):
    """A GPU of some compute capability, upon a driver in the host's memory, that notes what it is to load."""

    def __init__(self, capability):
        super().__init__(0)
        self.capability = capability
        self.wanted = []

    def load(self, wanted):
        self.wanted.append(wanted)
        return wanted


@contextlib.contextmanager
def driven():
    """Patches by which there are GPUs, as `conftest.gpus` makes them."""
    with pytest.MonkeyPatch.context() as patch:
        driver = RunningDriver()
        install(patch, driver)
        yield patch
        remove(driver)


def kernels_of(build, dtype, capability):
    """What ``build(dtype)``, which builds an optimizer on a GPU, has compiled."""
    with driven() as patch:
        machine = Machine(capability)
        patch.setattr(gpu, "device", lambda ordinal: machine)
        for name, module in list(sys.modules.items()):
            if name.startswith("fastopt.kernels.cuda.") and hasattr(module, "cuda_program"):
                patch.setattr(module, "cuda_program", Wanted)
        build(dtype)
    return {wanted.id: wanted for wanted in machine.wanted}


SHAPES = ((7, 5), (33,))


def built(kind, kwargs, dtype):
    """Build an optimizer that clips, so that norms are measured too."""
    optimizer = kind(**kwargs, clipnorm=1.0)
    optimizer.build([Interface(np.zeros(shape, dtype)) for shape in SHAPES])
    if isinstance(optimizer, fastopt.ScheduleFreeAdamW):
        with optimizer.evaluation_weights():
            """The averages are worked out by a rule."""


def stepped(name, kwargs, dtype):
    """Have an optimizer of `fastopt.torch` build, which it does when it has gradients."""
    torch = pytest.importorskip("torch")
    import fastopt.torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_stream", lambda ordinal=None: SimpleNamespace(cuda_stream=0))
        params = [
            torch.ones(shape, dtype=getattr(torch, dtype.name)).as_subclass(tensor_class()).requires_grad_()
            for shape in SHAPES
            if name != "Muon" or len(shape) == 2
        ]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = getattr(fastopt.torch, name)(params, **kwargs, clip_norm=1.0)
        if name == "ScheduleFreeAdamW":
            optimizer.train()
        optimizer.step()


TORCH = {
    "SGD": ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    "RMSprop": ({}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True}),
    "Adam": ({}, {"amsgrad": True}),
} | {
    name: ({},)
    for name in (
        "Adagrad",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "Lion",
        "Lamb",
        "ScheduleFreeAdamW",
        "RowwiseAdagrad",
    )
}
"""Arguments with which classes of `fastopt.torch` have rules of their own. Its Adafactor and Muon are Keras's."""
OPTIMIZERS = (
    {
        f"{name}-{variant}": functools.partial(built, getattr(fastopt, name), kwargs)
        for name, own in OWN.items()
        for variant, kwargs in {"plain": {}, "own": own[0], **VARIANTS.get(name, {})}.items()
    }
    | {f"{kind.__name__}-2.3": functools.partial(built, kind, {}) for kind in (keras_2_3.Adagrad, keras_2_3.RMSprop)}
    | {
        "-".join(("torch", name, *kwargs)): functools.partial(stepped, name, kwargs)
        for name, variants in TORCH.items()
        for kwargs in variants
    }
)
"""What builds them for a dtype."""
COVERING = ("Adam-plain", "Lion-plain", "Ftrl-own", "Lamb-plain", "torch-NAdam")


@functools.cache
def wanted_by(key, dtype, capability):
    return kernels_of(OPTIMIZERS[key], dtype, capability)


def cases():
    for key in OPTIMIZERS:
        for dtype in (F32, F64):
            for capability in CAPABILITIES:
                covering = key in COVERING and capability == HOPPER and dtype == F32
                marks = [] if covering else [pytest.mark.full]
                id = f"{key}-{dtype}-sm_{capability[0]}{capability[1]}"
                yield pytest.param(key, dtype, capability, id=id, marks=marks)


over_kernels = pytest.mark.parametrize(("key", "dtype", "capability"), list(cases()))


_compiled = {}


class Compiled(NamedTuple):
    """PTX, and what ptxas made of it."""

    ptx: str
    resources: Any
    image: bytes
    groups: list  # wide loads in flight in each loop, as PTX tells, and as machine code does where it can be read


def compiled(wanted):
    """Each kernel is compiled once, however many optimizers want it."""
    key = wanted.id, wanted.capability
    if key not in _compiled:
        _compiled[key] = compile_anew(wanted)
    return _compiled[key]


def compile_anew(wanted):
    with pytest.MonkeyPatch.context() as patch:
        keep_ptx(patch)
        ptx = _cuda_jit.cuda_program(*wanted).image.decode()
    linked = _cuda_jit._linked(ptx, wanted.capability)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda_jit, "cuda_ptx", lambda *arguments: ptx)  # once is enough
        patch.setattr(_cuda_jit, "_linked", lambda *arguments: linked)
        resources = _cuda_jit.cuda_resources(*wanted[:5])
    by_code = [groups_of_cubin(linked[0], NVDISASM)] if NVDISASM else []
    return Compiled(ptx, resources, linked[0], [groups_of_ptx(ptx), *by_code])


# -- what is looked for ------------------------------------------------------------------------------------------------

ARITHMETIC = ("add", "sub", "mul", "mad", "fma", "div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")


def operations(ptx):
    """Operations of a kernel, with all their modifiers, and how often each stands there."""
    return Counter(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z]\w*(?:\.\w+)+)", ptx, re.MULTILINE))


def arithmetic(ptx, kind):
    """Arithmetic on floating-point numbers of a kind, as "f64", by operation without modifiers."""
    found = Counter()
    for operation, count in operations(ptx).items():
        name, *modifiers = operation.split(".")
        if name in ARITHMETIC and any(modifier.startswith(kind) for modifier in modifiers):
            found[name] += count
    return found


def inexact(ptx):
    """Operations that are not correctly rounded each for itself: fused, approximate, or without subnormal numbers."""
    return sorted(
        operation
        for operation in operations(ptx)
        if re.search(r"^(fma|rsqrt|ex2|lg2|sin|cos|tanh)\.|\.(approx|ftz|full|sat|rz|rm|rp)\b.*f(32|64)", operation)
        and not operation.startswith(("cvt.", "ex2.approx.ftz.bf"))
    )


ASKED_FOR = {"step.step power_ftrl_float32": ("fma.rn.f32",), "step.step power_ftrl_float64": ("fma.rn.f64",)}
"""Kernel → what its rule asks for: powers are worked out with `fused`."""

WIDE = {4: r"v4\.f32|v4\.b32|v2\.b64", 8: r"v2\.f64|v2\.b64"}
"""Element size → what PTX calls 16 bytes; for Blackwell pairs of float32 are numbers of 64 bits."""


def is_wide(ptx, access, dtype):
    """Whether there is an access, "ld" or "st", of 16 bytes to global memory."""
    return re.search(rf"\b{access}\.global(\.\w+)*?\.({WIDE[dtype.itemsize]})\b", ptx) is not None


MOVING = (
    "step.step", "two_phase.phase_one", "two_phase.phase_two", "per_row.step_per_row", "muon.momentum", "muon.update",
    "adafactor.update",
)  # fmt: skip
"""Kernels that read and write state: wide loads and wide stores."""

READING = ("norms.norms", "muon.divisors", "adafactor.sums", "adafactor.sizes")
"""Kernels that read arrays and write sums: wide loads."""

FEW = Counter(add=1, mul=1, rcp=2)
"""float64 in a kernel that ends a step, once per launch or chunk and never per element: the loss scale doubled (an
addition) or halved, and its reciprocal, which is the factor that unscales, in a full step and in a micro-step."""

MORE = {"muon.update": Counter(mul=1, sqrt=1), "adafactor.update": Counter(mul=1, sqrt=1, rcp=2)}
"""On top of `FEW`: Muon scales a matrix by the root of its extents, once per chunk; Adafactor takes the root of a row's
mean, once per row, and unscales in rows and in vectors."""

SUMS = (
    "norms.norms", "two_phase.phase_one", "per_row.step_per_row", "muon.divisors", "adafactor.sums", "adafactor.sizes",
)  # fmt: skip
"""Kernels of sums: these, roots and quotients of them, and factors of clipping are float64. What is summed is not."""

REGISTERS = dict.fromkeys(SUMS, 168) | {"adafactor.update": 168, "adafactor.sums": 255, "adafactor.sizes": 255}
"""At most, where it is not 128: all that a thread adds up side by side is under way at once. With 128, four blocks of
128 threads stand on a multiprocessor, with 168 three, with 255 two: those are Adafactor's sums."""

AMPERE = (8, 0)
SPILLED = {("adafactor.sums", "float64", AMPERE): (16, 32)}
"""Bytes of local memory and of spills where all 255 registers do not do: since nvJitLink 13.5, before it none."""

"""Here ptxas takes more registers for sums: 255. Two blocks have 16 KiB in flight of four vectors per thread, and 108
multiprocessors need 9 for 1.55 TB/s."""


IN_FLIGHT = {
    "step.step": (20, 30),
    "step.step sgd": (24, 24),
    "step.step coupled_sgd": (24, 24),
    "step.step lion": (20, 30),
    "step.step adam": (20, 40),
    "norms.norms": (32, 32),
    "two_phase.phase_one": (32, 32),
    "two_phase.phase_two": (24, 36),
    "per_row.step_per_row": (16, 16),
    "adafactor.sums": (24, 24),
    "adafactor.sizes": (24, 24),
    "adafactor.update": (18, 18),
    "muon.momentum": (24, 36),
    "muon.divisors": (28, 14),
    "muon.update": (40, 40),
}
"""Kernel, or kernel and rule → the least that is in flight of float32 on sm_90, in KiB per multiprocessor: as PTX
tells, which knows least where branches lie between loads, and as machine code does. Reading takes 16 to 21."""


def kernel_of(id):
    return id.partition(" ")[0]


def threads_of(wanted):
    """Of a block."""
    return 32 * wanted.bindings["WARPS"] if kernel_of(wanted.id) == "two_phase.phase_one" else engine.THREADS


FOURS = {"norms.norms": 1, "two_phase.phase_one": 4, "adafactor.sizes": 2, "adafactor.sums": 6}
"""Kernels with loops for different kinds of gradients → how many of these have four wide loads in flight or more. Those
over whole vectors that were not accumulated have four."""


def loads_in_flight(wanted):
    """Wide loads per thread, as PTX tells, and as machine code does where it can be read."""
    fours, found = FOURS.get(kernel_of(wanted.id)), compiled(wanted).groups
    if fours is None:
        return [max(groups) for groups in found]
    return [4 * (sum(loads >= 4 for loads in groups) >= fours) for groups in found]


def kib_in_flight(wanted):
    """KiB per multiprocessor, as PTX tells, and as machine code does where it can be read."""
    ptx, resources, *_ = compiled(wanted)
    room = resources.registers, threads_of(wanted), shared_of(ptx)
    return [kib_per_multiprocessor(loads, *room) for loads in loads_in_flight(wanted)]


@over_kernels
def test_kernels(key, dtype, capability):
    for id, wanted in wanted_by(key, dtype, capability).items():
        kernel, (ptx, resources, *_) = kernel_of(id), compiled(wanted)
        assert f".target sm_{capability[0]}{capability[1]}" in ptx
        assert [operation for operation in inexact(ptx) if operation not in ASKED_FOR.get(id, ())] == [], id
        assert not re.search(r"\.local\b|\bcall\b|\.extern", ptx), id
        assert (resources.local, resources.spilled) <= SPILLED.get(
            (kernel, np.dtype(dtype).name, capability), (0, 0)
        ), id
        most = 255 if capability == AMPERE and kernel in SUMS else REGISTERS.get(kernel, 128)
        assert resources.registers <= most, (id, resources.registers)
        if kernel in MOVING + READING:
            assert is_wide(ptx, "ld", dtype), id
        if kernel in MOVING:
            assert is_wide(ptx, "st", dtype), id
        if (capability, dtype) == (HOPPER, F32):
            least = IN_FLIGHT.get(id.removesuffix("_float32"), IN_FLIGHT.get(kernel))
            found = kib_in_flight(wanted)
            assert all(kib >= enough for kib, enough in zip(found, least, strict=False)), (id, found, least)
        if dtype == F64:
            assert not arithmetic(ptx, "f32"), id
        elif kernel in SUMS:
            assert kernel == "muon.divisors" or arithmetic(ptx, "f32"), id
        else:
            assert not arithmetic(ptx, "f64") - FEW - MORE.get(kernel, Counter()), id


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_copies(capability, width):
    """They move bits and know no numbers."""
    with driven() as patch:
        patch.setattr(strided, "cuda_program", Wanted)
        wanted = strided._kernel.__wrapped__(Machine(capability), width)
    ptx, resources, *_ = compiled(wanted)
    assert not arithmetic(ptx, "f")
    assert not re.search(r"\.local\b|\bcall\b", ptx)
    assert resources.registers <= 64 and resources[1:] == (0, 0)


def stepped_by_rows(dtype):
    """Have a gradient for some rows ask for its kernels, also for those that are launched if it touches any."""
    optimizer = fastopt.Adam(clipnorm=1.0)
    optimizer.build([Interface(np.zeros((7, 5), dtype))])
    indices, values = DeviceNDArray(np.zeros(3, np.int64)), DeviceNDArray(np.zeros((3, 5), dtype))
    optimizer.apply([fastopt.RowGradient(indices, values)])
    for function in (row_gradients.merge_rows, row_gradients.norms_of_rows):
        optimizer._plans[0].engine._compiled(function)


@pytest.mark.parametrize("dtype", [F32, pytest.param(F64, marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize("capability", [HOPPER, *(pytest.param(c, marks=pytest.mark.full) for c in CAPABILITIES[::2])])
def test_rows(capability, dtype):
    """Kernels of gradients for some rows."""
    found = {kernel_of(id): w for id, w in kernels_of(stepped_by_rows, dtype, capability).items() if "row_" in id}
    own = ("merge_rows", "norms_of_rows", "step_rows"), ("fill_keys", "find_firsts", "sort_tiles", "sort_pass")
    assert found.keys() == {f"row_gradients.{name}" for name in own[0]} | {f"row_sort.{name}" for name in own[1]}
    for id, wanted in found.items():
        ptx, resources, *_ = compiled(wanted)
        assert inexact(ptx) == [], id
        assert not re.search(r"\.local\b|\bcall\b|\.extern", ptx), id
        assert (resources.local, resources.spilled) == (0, 0), id
        assert resources.registers <= 168, (id, resources.registers)  # three blocks on a multiprocessor


KEPT = {
    "bfloat16": ({"slot_dtype": "bfloat16", "stochastic_rounding": True, "clipnorm": 1.0}, 18),
    "8bit": ({"slot_dtype": "8bit", "master_weights": "split"}, 12),
    "float16": ({"slot_dtype": "float16", "master_weights": "float32"}, 18),
}
"""Options of Adam on parameters of 16 bits → the least that wide loads have in flight, in KiB per multiprocessor, less
those of gradients, which are under a condition, and of codes of 8 bits, which are half as wide."""


def kept(name, dtype):
    """Build Adam on parameters in a storage format, of bfloat16 where it is split."""
    optimizer = fastopt.Adam(**KEPT[name][0])
    kind = "float16" if name == "float16" else "bfloat16"
    optimizer.build([Interface(np.zeros((70, 90), np.uint16))], overrides={"": {"dtype": kind}})


def formats_cases():
    for name in KEPT:
        for capability in CAPABILITIES:
            marks = [] if capability == HOPPER and name != "float16" else [pytest.mark.full]
            yield pytest.param(name, capability, id=f"{name}-sm_{capability[0]}{capability[1]}", marks=marks)


@pytest.mark.parametrize(("name", "capability"), list(formats_cases()))
def test_formats(name, capability):
    """Three blocks stand on a multiprocessor; nothing is spilled, no number becomes a float64."""
    found = kernels_of(functools.partial(kept, name), F32, capability)
    expected = {"formatted.step_formatted", *(["norms.norms"] if "clipnorm" in KEPT[name][0] else [])}
    assert {kernel_of(id) for id in found} == expected
    for id, wanted in found.items():
        ptx, resources, *_ = compiled(wanted)
        assert inexact(ptx) == [], id
        assert not re.search(r"\.local\b|\bcall\b|\.extern", ptx), id
        assert (resources.local, resources.spilled) == (0, 0), id
        most = 255 if capability == AMPERE and kernel_of(id) in SUMS else 168
        assert resources.registers <= most, (id, resources.registers)
        if kernel_of(id) in SUMS:
            continue
        assert not arithmetic(ptx, "f64") - FEW, id
        if capability == HOPPER:
            assert all(kib >= KEPT[name][1] for kib in kib_in_flight(wanted)), (id, kib_in_flight(wanted))


def test_every_kernel_is_known():
    """So that no kernel goes by without being looked at closely."""
    found = {kernel_of(id) for key in OPTIMIZERS for id in wanted_by(key, F32, HOPPER)}
    assert found == {*MOVING, *READING}


def test_every_rule_is_compiled():
    """The rules of all built-in optimizers."""
    bound = {wanted.bindings.get("SCALARS") for key in OPTIMIZERS for wanted in wanted_by(key, F32, HOPPER).values()}
    built_in = {scalars for scalars in RULES if scalars.__module__.startswith("fastopt.kernels.")}
    assert built_in <= bound, built_in - bound


# -- that the checks find what they look for ---------------------------------------------------------------------------


def step_among(kernels):
    """The kernel of an elementwise rule."""
    return next(wanted for id, wanted in kernels.items() if kernel_of(id) == "step.step")


def step_of(key, dtype=F32):
    """That of one of `OPTIMIZERS`."""
    return step_among(wanted_by(key, dtype, HOPPER))


def ptx_with(options, wanted, patch):
    """PTX of a kernel, with other options of libNVVM."""
    patch.setattr(_cuda_jit, "NVVM_OPTIONS", options)
    patch.setattr(_cuda_jit, "_require_no_contraction", lambda ptx, llvm: None)
    return _cuda_jit.cuda_ptx(*wanted[:5])


def test_contraction_is_found(monkeypatch):
    assert set(inexact(ptx_with(("-opt=3", "-fma=1"), step_of("Adam-plain"), monkeypatch))) == {"fma.rn.f32"}


@pytest.mark.parametrize(
    ("option", "found"),
    [("-prec-div=0", "div.full.f32"), ("-prec-sqrt=0", "sqrt.approx.f32"), ("-ftz=1", "mul.rn.ftz.f32")],
)
def test_approximation_is_found(option, found, monkeypatch):
    assert found in inexact(ptx_with((*_cuda_jit.NVVM_OPTIONS, option), step_of("Adam-plain"), monkeypatch))


class RateScalars(NamedTuple):
    learning_rate: float


def with_literal(param, grad, slots, s):
    return param - 0.1 * s.learning_rate * grad, slots


def test_a_literal_that_makes_float64_is_found():
    """Once per element: of a vector and of its rest."""
    kind = fastopt.register_rule("LiteralForPtx", with_literal, RateScalars, defaults={"learning_rate": 0.1})
    step = step_among(kernels_of(functools.partial(built, kind, {}), F32, HOPPER))
    found = arithmetic(compile_anew(step).ptx, "f64") - FEW
    assert found["mul"] >= 5


def with_local_memory(handle, options):
    mine = cuda.local.array(100, np.float32)
    for i in range(100):
        mine[i] = i
    put_numbers(handle, (mine[options],))


def narrow(handle, options):
    put_numbers(handle, numbers_at(handle + options, one(DTYPE)))  # noqa: F821


def test_local_memory_and_narrow_loads_are_found():
    wanted = Wanted(with_local_memory, "f", 2, {}, HOPPER, None)
    ptx, resources, *_ = compile_anew(wanted)
    assert re.search(r"\.local\b", ptx) and resources.local >= 400
    ptx, *_ = compile_anew(Wanted(narrow, "f", 2, {"DTYPE": np.float32}, HOPPER, None))
    assert "ld.global" in ptx and not is_wide(ptx, "ld", F32) and not is_wide(ptx, "st", F32)


def one_at_a_time(handle, options):
    """Each load's address is known when the one before has come."""
    place = 0
    while place != options:
        a = numbers_at(handle + place, wide(DTYPE))  # noqa: F821
        place = 16 * np.int64(a[0] + a[1] + a[2] + a[3])
    put_numbers(handle, (place,))


def four_at_a_time(handle, options):
    place = 0
    while place != options:
        a = numbers_at(handle + place, wide(DTYPE))  # noqa: F821
        b = numbers_at(handle + place + 512, wide(DTYPE))  # noqa: F821
        c = numbers_at(handle + place + 1024, wide(DTYPE))  # noqa: F821
        d = numbers_at(handle + place + 1536, wide(DTYPE))  # noqa: F821
        place = 16 * np.int64((a[0] + b[1] + c[2] + d[3]) + (a[1] + b[2] + c[3] + d[0]) + (a[2] + b[3] + c[0] + d[1]))
    put_numbers(handle, (place,))


@pytest.mark.parametrize(("function", "loads"), [(one_at_a_time, 1), (four_at_a_time, 4)])
def test_loads_in_flight_are_found(function, loads):
    found = compile_anew(Wanted(function, "f", 2, {"DTYPE": np.float32}, HOPPER, None)).groups
    assert [max(groups) for groups in found] == [loads] * len(found)


LOOP = """
$loop:
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];
    BETWEEN
    ld.global.nc.v4.f32 {%f5, %f6, %f7, %f8}, [%rd2];
    add.f32 %f9, %f1, %f5;
    @%p1 bra $loop;
"""


@pytest.mark.parametrize(
    ("between", "loads"),
    [
        ("add.s64 %rd2, %rd1, 16;", 2),
        ("mul.f32 %f10, %f3, %f3;", 1),
        ("@%p2 bra $end;", 1),
        ("$label:", 1),
        ("@%p2 ld.global.v4.f32 {%f11, %f12, %f13, %f14}, [%rd3];", 2),
        ("ld.global.f32 %f11, [%rd3];", 2),
    ],
)
def test_what_ends_a_group_of_loads(between, loads):
    """A use, a branch, a label. Loads that are narrow, or under a condition, do not, and do not count."""
    assert groups_of_ptx(LOOP.replace("BETWEEN", between)) == [loads]


def test_loads_outside_of_loops_do_not_count():
    assert groups_of_ptx(LOOP.replace("@%p1 bra $loop;", "ret;")) == []


def test_blocks_that_a_multiprocessor_has_room_for():
    """What ends it: threads and blocks, then registers, then shared memory."""
    assert [blocks_per_multiprocessor(*room) for room in ((16, 128, 0), (16, 32, 0))] == [16, 32]
    assert [blocks_per_multiprocessor(registers, 128, 0) for registers in (80, 86, 128, 168, 255)] == [6, 5, 4, 3, 2]
    assert blocks_per_multiprocessor(64, 256, 48 * 1024) == 4
