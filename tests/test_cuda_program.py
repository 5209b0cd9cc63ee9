"""Kernels compiled for GPUs where there is none: what PTX and cubins they become, and how they are kept."""

import importlib.util
import math
import re
import textwrap

import children
import numpy as np
import pytest
from fastopt.kernels.compile import _jit
from fastopt.kernels.compile import cache as cache_module
from fastopt.kernels.compile.intrinsics import array_at
from fastopt.kernels.cuda import _cuda_jit
from fastopt.kernels.cuda.errors import CudaUnavailable
from fastopt.kernels.maths import clip, constant
from fastopt.kernels.registry import update
from fastopt.kernels.rules.adam import AdamScalars
from numba import cuda, types

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package for this platform"
)
CAPABILITIES = ((8, 0), (9, 0), (10, 0))
DTYPES = (np.float32, np.float64)


# -- kernels: their globals DTYPE and Scalars are bound when they are compiled -----------------------------------------


def adam(address, size):
    """A rule, through the registry, on what lies side by side in memory."""
    i = cuda.grid(1)
    if i < size:
        x = array_at(address, 0, 10 * size, DTYPE)  # noqa: F821
        s = Scalars(x[4], x[5], x[6], x[7])  # noqa: F821
        param, slots = update(x[i], clip(x[i + 1], -x[8], x[8]), (x[i + 2], x[i + 3]), s)
        x[i], (x[i + 2], x[i + 3]) = param, slots


def multiply_and_add(address, size):
    """What libNVVM would contract."""
    x = array_at(address, 0, size, DTYPE)  # noqa: F821
    x[0] = x[1] * x[2] + x[3] * x[4] - x[5] * constant(0.5, x[0])


def exponential(address, size):
    """A function of libdevice with multiply-adds of its own, as a user's rule may call."""
    x = array_at(address, 0, size, DTYPE)  # noqa: F821
    x[0] = math.exp(x[1]) * x[2] + x[3]


def spilling(address, size):
    """An array of a thread that no register can hold."""
    x = array_at(address, 0, size, DTYPE)  # noqa: F821
    mine = cuda.local.array(100, np.float32)
    for i in range(100):
        mine[i] = x[i]
    x[0] = mine[size]


def bindings(dtype):
    """The globals of the kernels."""
    return {"DTYPE": np.dtype(dtype).type, "Scalars": AdamScalars}


def ptx_of(kernel, dtype, capability=(9, 0)):
    """The PTX of one of the kernels."""
    return _cuda_jit.cuda_ptx(kernel, np.dtype(dtype).name, 2, bindings(dtype), capability)


def program(kernel=multiply_and_add, capability=(9, 0), key="known", dtype=np.float32):
    """The `Program` of one of the kernels."""
    return _cuda_jit.cuda_program(kernel, np.dtype(dtype).name, 2, bindings(dtype), capability, key)


# -- PTX ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_arithmetic_is_that_of_the_cpu(capability, dtype):
    bits = np.dtype(dtype).itemsize * 8
    ptx = ptx_of(adam, dtype, capability)
    operations = set(re.findall(r"\b((?:add|sub|mul|div|sqrt|fma|mad)\.\S*f\d\d(?:x2)?)\b", ptx))
    assert operations == {f"{name}.rn.f{bits}" for name in ("add", "sub", "mul", "div", "sqrt")}
    assert f".f{96 - bits}" not in ptx
    assert f".target sm_{capability[0]}{capability[1]}" in ptx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_nothing_is_contracted(capability, dtype, monkeypatch):
    ptx = ptx_of(multiply_and_add, dtype, capability)
    assert "fma" not in ptx
    assert len(re.findall(r"\bmul\.rn\.f", ptx)) == 3
    monkeypatch.setattr(_cuda_jit, "NVVM_OPTIONS", ("-opt=3",))
    with pytest.raises(RuntimeError, match="libNVVM fused multiplications with additions"):
        ptx_of(multiply_and_add, dtype, capability)


def test_libdevice_may_fuse_in_its_own_functions():
    assert "fma.rn.f64" in ptx_of(exponential, np.float64)


def test_ptx_has_one_entry_and_calls_nothing():
    ptx = ptx_of(adam, np.float32)
    assert len(re.findall(r"\.entry\b", ptx)) == 1
    assert not re.search(r"\bcall\b|\.extern|\.local", ptx)


def test_the_current_device_is_numbas_own_again():
    from numba.cuda import api, dispatcher

    ptx_of(adam, np.float32)
    assert dispatcher.get_current_device is api.get_current_device


# -- cubins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_cubin(capability):
    result = program(adam, capability, key=None)
    assert result.image.startswith(b"\x7fELF")
    assert f".text.{result.name}".encode() in result.image
    assert result.arguments == 2


def test_resources():
    takes = [_cuda_jit.cuda_resources(kernel, "r", 2, bindings(np.float32), (9, 0)) for kernel in (adam, spilling)]
    assert 8 <= takes[0].registers <= 64
    assert takes[0][1:] == (0, 0)
    assert takes[1].local >= 400


@pytest.mark.parametrize("capability", [(1, 0), (99, 0)], ids=str)
def test_a_gpu_that_the_toolkit_does_not_know(capability):
    with pytest.raises(CudaUnavailable, match=f"does not compile for GPUs of compute capability {capability[0]}.0: "):
        program(capability=capability)


def test_ptx_that_the_linker_does_not_take():
    with pytest.raises(CudaUnavailable, match="nvJitLink does not accept libNVVM's PTX: "):
        _cuda_jit._linked(ptx_of(adam, np.float32).replace(".version", ".version 99.0 //"), (9, 0))


def test_a_linker_older_than_the_compiler(monkeypatch):
    monkeypatch.setattr(_cuda_jit, "_version_of_linker", lambda: (12, 3))
    with pytest.raises(CudaUnavailable, match=r"nvJitLink 12.3 is older than libNVVM, of CUDA release 1\d\.\d+: pip"):
        _cuda_jit.toolkit.__wrapped__((9, 0))


def test_a_numba_cuda_that_has_changed(monkeypatch):
    monkeypatch.delattr("numba.cuda.compiler.kernel_fixup")
    with pytest.raises(RuntimeError, match=r"numba-cuda \S+, Numba \S+ and NumPy \S+ do not fit each other or this "):
        ptx_of(adam, np.float32)


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path)
    return tmp_path


def counted(function):
    """What it returns, and how many programs it compiled and loaded."""
    before = _jit.compilations, _jit.loads
    result = function()
    return result, _jit.compilations - before[0], _jit.loads - before[1]


def test_compiled_once_then_loaded(folder):
    first, *made = counted(program)
    second, *loaded = counted(program)
    assert (made, loaded, first[:2]) == ([1, 0], [0, 1], second[:2])
    (file,) = folder.iterdir()
    assert re.fullmatch(r"multiply_and_add_float32-[0-9a-f]{24}\.fastopt", file.name)


def first_of_two(address, size):
    x = array_at(address, 0, size, np.float32)
    x[0] = x[1] + x[1]


def test_compiling_for_gpus_and_for_cpus_takes_turns():
    """Numba 0.66 and older fail at the second one for CPUs: they have one lowering of an intrinsic, the last one's."""
    numbers, found = np.array([0, 2], np.float32), []
    for name in ("first", "second"):
        compiled = _jit.specialise(first_of_two, name, types.void(types.int64, types.int64), {})
        compiled(numbers.ctypes.data, 2)
        found.append(numbers[0])
        numbers[0] = 0
        assert _cuda_jit.cuda_program(first_of_two, name, 2, {}, (9, 0)).image
    assert found == [4, 4]


def test_what_has_no_key_is_not_kept(folder):
    assert counted(lambda: program(key=None))[1:] == (1, 0)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:-9] + b"x" * 9], ids=range(3))
def test_a_damaged_file_is_compiled_anew(folder, damage):
    program()
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    first, *made = counted(program)
    second, *loaded = counted(program)
    assert (made, loaded, first[:2]) == ([1, 0], [0, 1], second[:2])


def test_all_that_machine_code_depends_on_is_in_the_name(folder, monkeypatch):
    program()
    program(key="another rule")
    program(capability=(8, 0))
    version = _cuda_jit.toolkit((9, 0))
    for k in range(len(version)):
        changed = (*version[:k], "another", *version[k + 1 :])
        monkeypatch.setattr(_cuda_jit, "toolkit", lambda capability, changed=changed: changed)
        program()
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "cache_folder", lambda: folder)
    monkeypatch.setattr(cache_module, "_BUILD_KEY", "edited kernels")
    program()
    assert len(list(folder.iterdir())) == 3 + len(version) + 1


IN_A_CHILD = """
    import math, sys, children
    import numpy as np
    {before}
    from fastopt.kernels.cuda import _cuda_jit
    from fastopt.kernels.compile import _jit
    from fastopt.kernels.compile.intrinsics import array_at

    def doubled(address, size):
        x = array_at(address, 0, size, np.float32)
        x[0] = math.sqrt(x[1] + x[1])

    try:
        message = _cuda_jit.cuda_program(doubled, "child", 2, {{}}, (9, 0), key="known").name
    except Exception as error:
        message = f"{{type(error).__name__}}: {{error}}"
    numba_cuda = any(name.startswith("numba.cuda") for name in sys.modules)
    children.report(message=message, loads=_jit.loads, numba_cuda=numba_cuda)
"""


def in_a_child(before="", **environment):
    """What a child reports that compiles a kernel."""
    return children.run(textwrap.dedent(IN_A_CHILD).format(before=textwrap.dedent(before)), **environment)


def test_the_next_process_loads_without_numba_cuda(tmp_path):
    first, second = (in_a_child(FASTOPT_CACHE_DIR=tmp_path) for _ in range(2))
    assert (first["compilations"], first["loads"], first["numba_cuda"]) == (1, 0, True)
    assert (second["compilations"], second["loads"], second["numba_cuda"]) == (0, 1, False)
    assert first["message"] == second["message"]


# -- what is missing ---------------------------------------------------------------------------------------------------

WITHOUT_LIBRARY = """
from cuda import pathfinder
load = pathfinder.load_nvidia_dynamic_lib
def absent(name):
    if name == "{name}":
        raise pathfinder.DynamicLibNotFoundError(name)
    return load(name)
pathfinder.load_nvidia_dynamic_lib = absent
"""
WITHOUT_LIBDEVICE = """
from cuda import pathfinder
import numba.cuda.cudadrv.libs
def absent(name):
    raise pathfinder.BitcodeLibNotFoundError(name)
pathfinder.find_bitcode_lib = absent
numba.cuda.cudadrv.libs.get_libdevice = lambda: None
"""


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.modules['numba_cuda'] = None", "CUDA needs the package numba-cuda, which is not installed: pip install"),
        ("sys.modules['cuda'] = None", "CUDA needs the package cuda-bindings, which is not installed: pip install"),
        (WITHOUT_LIBRARY.format(name="nvvm"), "libNVVM, a part of the CUDA toolkit, cannot be loaded: pip install"),
        (WITHOUT_LIBRARY.format(name="nvJitLink"), "nvJitLink, a part of the CUDA toolkit, cannot be loaded: pip"),
        (WITHOUT_LIBDEVICE, "libdevice, a part of the CUDA toolkit, cannot be loaded: pip install"),
    ],
    ids=["numba-cuda", "cuda-bindings", "libNVVM", "nvJitLink", "libdevice"],
)
def test_what_is_missing_is_said(before, message, tmp_path):
    result = in_a_child(before, FASTOPT_CACHE_DIR=tmp_path)
    assert result["message"].startswith(f"CudaUnavailable: {message}")
    assert "\n" not in result["message"]


def test_numbas_simulator_compiles_nothing(tmp_path):
    result = in_a_child(FASTOPT_CACHE_DIR=tmp_path, NUMBA_ENABLE_CUDASIM=1)
    assert result["message"].startswith("CudaUnavailable: NUMBA_ENABLE_CUDASIM is set: Numba's simulator")
    assert list(tmp_path.iterdir()) == []
