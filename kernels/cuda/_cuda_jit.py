"""How fastopt compiles for GPUs: a kernel that takes int64 numbers alone, to PTX and on to a cubin, kept on disk.

numba-cuda makes LLVM IR of the kernel, libNVVM makes PTX of that, nvJitLink a cubin. None of them asks for a GPU or a
driver, and the driver is given cubins alone: it may be older than the toolkit, and would then not read its PTX.

Multiplications and additions are never contracted to one operation of a single rounding, as libNVVM does by default:
a GPU gives the bits that a CPU gives.
"""

import contextlib
import functools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numba

from ..compile import _jit, cache
from ..compile._aside import aside
from ._numba_cuda import llvm_of, path_of_libdevice
from .errors import INSTALL, CudaUnavailable

NVVM_OPTIONS = ("-opt=3", "-fma=0")
"""No contraction, no fastmath: libNVVM's defaults are IEEE division and square root, and subnormal numbers."""

EXACT = frozenset({"fabs", "sqrt", "floor", "ceil", "trunc", "rint", "copysign"})
"""Functions of libdevice, by their names for float64, that hold no fused multiply-add of their own."""


class Program(NamedTuple):
    """A kernel compiled for one kind of GPU.

    ``name`` is that of its entry point, ``image`` the cubin, ``arguments`` how many numbers it takes.
    """

    name: str
    image: bytes
    arguments: int


class Resources(NamedTuple):
    """What a kernel takes of a multiprocessor, per thread: registers, and bytes of local memory, of spilled values."""

    registers: int
    local: int
    spilled: int


def cuda_program(kernel, name, arguments, bindings, capability, key=None):
    """Compile ``kernel`` for GPUs of one compute capability, or load it from the cache. Needs no GPU and no driver.

    Parameters
    ----------
    kernel : function
        Takes int64 numbers and returns nothing. Its globals named in ``bindings`` are replaced in a private clone.
    name : str
        A readable name for the specialisation, as in `_jit.specialise`.
    arguments : int
        How many numbers it takes.
    bindings : dict
        Global name → value: dtype, scalars class, compiled callees.
    capability : (int, int)
        Compute capability, such as (9, 0).
    key : str or None
        Fingerprint of what ``bindings`` bring in. ``None`` means that it is unknown: do not cache.

    Returns
    -------
    Program

    Raises
    ------
    CudaUnavailable
        If a part of the toolkit is missing, or knows no such GPU.
    """
    clone = _jit.clone_of(kernel, name, bindings)
    version = aside(toolkit, capability)
    path = cache.cache_path(clone.__name__, key, arguments, *version, clone.__module__)
    return aside(_program_of, clone, arguments, capability, path, says=_jit.notice_of(clone.__name__, path))


def _program_of(clone, arguments, capability, path):
    kept = path and cache.read_cached(path)
    if kept:
        _jit.loads += 1
        entry, _, image = kept.partition(b"\n")
        return Program(entry.decode(), image, arguments)
    entry, ptx = _ptx_of(clone, arguments, capability)
    image, _ = _linked(ptx, capability)
    _jit.compilations += 1
    if path:
        cache.write_cached(path, lambda: entry.encode() + b"\n" + image)
    return Program(entry, image, arguments)


def cuda_ptx(kernel, name, arguments, bindings, capability):
    """The PTX that `cuda_program` makes its cubin of."""
    return aside(_ptx_of, _jit.clone_of(kernel, name, bindings), arguments, capability)[1]


def cuda_resources(kernel, name, arguments, bindings, capability):
    """The `Resources` of what `cuda_program` makes, as ptxas reports them."""
    _, log = aside(_linked, cuda_ptx(kernel, name, arguments, bindings, capability), capability)
    report = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill.*\s+.*Used (\d+) reg", log
    )
    if report is None:
        raise RuntimeError(f"nvJitLink's report has no numbers where they were: {log}")
    local, stored, loaded, registers = map(int, report.groups())
    return Resources(registers, local, stored + loaded)


@functools.cache
def toolkit(capability):
    """Name what compiles for a compute capability: versions of numba-cuda, libNVVM and nvJitLink, and the target.

    With other ones other machine code may come out. Raises `CudaUnavailable` where something is missing.
    """
    require_packages()
    import numba_cuda

    header, linker = _header_of_ptx(capability), _version_of_linker()
    release = re.search(r"release (\d+)\.(\d+)", header)
    if release and linker < tuple(map(int, release.groups())):  # it would end the process over a GPU it does not know
        raise CudaUnavailable(f"nvJitLink {_dotted(linker)} is older than libNVVM, of CUDA {release[0]}: {INSTALL}")
    return numba_cuda.__version__, header, linker


def require_packages():
    """Look for what numba-cuda needs before it is imported: its own errors name other remedies."""
    if numba.config.ENABLE_CUDASIM:
        raise CudaUnavailable("NUMBA_ENABLE_CUDASIM is set: Numba's simulator compiles nothing, unset it")
    for package, module in (("numba-cuda", "numba_cuda"), ("cuda-bindings", "cuda.bindings")):
        if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
            raise CudaUnavailable(f"CUDA needs the package {package}, which is not installed: {INSTALL}")


@contextlib.contextmanager
def _part_of_toolkit(name):
    """Whatever goes wrong inside, the shared library ``name`` cannot be used."""
    try:
        yield
    except CudaUnavailable:
        raise
    except Exception as error:
        raise CudaUnavailable(f"{name}, a part of the CUDA toolkit, cannot be loaded: {INSTALL}") from error


def _version_of_linker():
    with _part_of_toolkit("nvJitLink"):
        from cuda.bindings import nvjitlink

        return nvjitlink.version()


def _header_of_ptx(capability):
    """The comment that PTX begins with, and its target. No function of libNVVM tells which build it is; this does."""
    with _part_of_toolkit("libNVVM"):
        from cuda.bindings import nvvm

        numbers = ", ".join(f"i32 {number}" for number in nvvm.ir_version())
        ptx = _ptx_of_modules([_NOTHING.format(version=numbers)], capability)
    return " ".join(line.strip("/ ") for line in ptx.splitlines() if line.startswith(("//", ".version", ".target")))


_NOTHING = """
target triple = "nvptx64-nvidia-cuda"
target datalayout = "e-p:64:64:64-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-f32:32:32-f64:64:64\
-v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64"
define void @nothing() {{
  ret void
}}
!nvvmir.version = !{{!0}}
!0 = !{{{version}}}
"""


def _ptx_of_modules(modules, capability):
    """The PTX that libNVVM makes of modules of LLVM IR."""
    from cuda.bindings import nvvm

    options = [f"-arch={_architecture('compute', capability)}", *NVVM_OPTIONS]
    program = nvvm.create_program()
    try:
        for module in modules:
            source = module.encode()
            nvvm.add_module_to_program(program, source, len(source), "module")
        if any("@__nv_" in module or '@"__nv_' in module for module in modules):
            functions = _libdevice()
            nvvm.lazy_add_module_to_program(program, functions, len(functions), "libdevice")
        nvvm.compile_program(program, len(options), options)
        ptx = bytearray(nvvm.get_compiled_result_size(program))
        nvvm.get_compiled_result(program, ptx)
    except nvvm.nvvmError as error:
        log = bytearray(nvvm.get_program_log_size(program))
        nvvm.get_program_log(program, log)
        raise CudaUnavailable(
            f"the installed CUDA toolkit does not compile for GPUs of compute capability {_dotted(capability)}: "
            f"{_text(log) or error} ({INSTALL})"
        ) from error
    finally:
        nvvm.destroy_program(program)
    return _text(ptx)


@functools.cache
def _libdevice():
    """NVIDIA's library of functions such as sqrt, as LLVM bitcode."""
    with _part_of_toolkit("libdevice"):
        from cuda import pathfinder

        try:
            path = pathfinder.find_bitcode_lib("device")
        except pathfinder.BitcodeLibNotFoundError:
            path = path_of_libdevice()  # gives up where NVRTC is missing
        return Path(path).read_bytes()


def _text(buffer):
    return buffer.decode().strip("\0 \n")


def _architecture(kind, capability):
    major, minor = capability
    return f"{kind}_{major}{minor}"


def _dotted(capability):
    return ".".join(map(str, capability))


def _ptx_of(function, arguments, capability):
    """The name of the entry point, and the PTX, of a function that takes int64 numbers."""
    entry, modules = llvm_of(function, arguments, capability, toolkit(capability)[0])
    ptx = _ptx_of_modules(modules, capability)
    _require_no_contraction(ptx, "\n".join(modules))
    return entry, ptx


def _require_no_contraction(ptx, llvm):
    """Check that libNVVM kept to its options, unless functions of libdevice fuse by themselves."""
    called = set(re.findall(r'@"?__nv_(\w+)', llvm))
    if "fma." in ptx and all(name in EXACT or name.removesuffix("f") in EXACT for name in called):
        raise RuntimeError("libNVVM fused multiplications with additions, though it was asked not to")


def _linked(ptx, capability):
    """The cubin that nvJitLink makes of PTX, and its report of what the kernel takes."""
    from cuda.bindings import nvjitlink

    options = [f"-arch={_architecture('sm', capability)}", "-verbose"]
    code = ptx.encode()
    link = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(link, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(link)
        image = bytearray(nvjitlink.get_linked_cubin_size(link))
        nvjitlink.get_linked_cubin(link, image)
        log = bytearray(nvjitlink.get_info_log_size(link))
        nvjitlink.get_info_log(link, log)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(link))
        nvjitlink.get_error_log(link, log)
        raise CudaUnavailable(f"nvJitLink does not accept libNVVM's PTX: {_text(log) or error} ({INSTALL})") from error
    finally:
        nvjitlink.destroy(link)
    return bytes(image), _text(log)
