"""Child processes of the tests: how they are started, and what they run. Importing this imports no fastopt."""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
_TBB = pytest.mark.skipif(
    sys.platform == "darwin" or platform.machine() not in ("x86_64", "AMD64"),
    reason="PyPI has tbb for x86-64 Linux and Windows only",
)
LAYERS = ("openmp", "omp", "workqueue", pytest.param("tbb", marks=_TBB))
"""Threads of OpenMP, and Numba's threading layers, for `parametrize`. One that does not load fails its tests."""


# -- starting ----------------------------------------------------------------------------------------------------------


def start(code, *, site=None, cwd=None, **environment):
    """Start Python on ``code``, in a session of its own. ``NAME=None`` takes a variable out of its environment.

    ``site`` is a folder that comes before this environment's packages. The code can import this module.
    """
    settings = os.environ | {
        "NUMBA_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second of the last one would leave stale bytecode behind
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, (site, HERE, os.environ.get("PYTHONPATH"))))),
        "PYTHONWARNINGS": "error",
        **{key: str(value) for key, value in environment.items()},
    }
    for key in [key for key, value in environment.items() if value is None]:
        del settings[key]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(child, timeout=180):
    """What the child gave to `report`. Ends its descendants too, where one of them hangs."""
    try:
        output, errors = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        output, errors = child.communicate()
        pytest.fail(f"the child process hung for {timeout} s\n{output}\n{errors}")
    assert child.returncode == 0, f"exit status {child.returncode}\n{output}\n{errors}"
    return json.loads(output.splitlines()[-1])


def run(code, *, timeout=180, **options):
    """`start`, then `finish`."""
    return finish(start(code, **options), timeout)


def layer(name):
    """Environment of a child that is to use one threading layer."""
    environment = {"NUMBA_THREADING_LAYER": None if name == "openmp" else name}
    if name == "tbb":
        key = "PATH" if os.name == "nt" else "LD_LIBRARY_PATH"
        environment[key] = os.pathsep.join(filter(None, (str(_folder_of_tbb()), os.environ.get(key))))
    return environment


def _folder_of_tbb():
    """Where pip put TBB: a folder that the dynamic loader does not search by itself."""
    for file in importlib.metadata.files("tbb"):
        if file.name in ("libtbb.so.12", "tbb12.dll"):
            return Path(file.locate()).resolve().parent
    raise FileNotFoundError("the tbb distribution has no TBB library")


def copy_package(folder):
    """Copy fastopt into ``folder`` as an installation lays it out, so that its kernels can be edited; the folder."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for package in ("fastopt", "fastopt.kernels"):
        source = Path(importlib.util.find_spec(package).origin).parent
        shutil.copytree(source, folder.joinpath(*package.split(".")), ignore=unwanted, dirs_exist_ok=True)
    return folder


def edit(path, old, new):
    """Replace the only occurrence of ``old`` in a file."""
    path = Path(path)
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))


# -- running in a child ------------------------------------------------------------------------------------------------


def report(**values):
    """Hand values to the parent process."""
    from fastopt.kernels.compile import _jit

    print(json.dumps({"compilations": _jit.compilations, **values}), flush=True)


@contextlib.contextmanager
def recorded_compilations():
    """A list that Numba's compile events inside the block go to, nested ones included; loading is none."""
    from numba.core import event

    with event.install_recorder("numba:compile") as recorder:
        yield recorder.buffer


def digest(*arrays):
    """Digest of the arrays' bits, whatever their strides."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digest_of(optimizer, params):
    """Digest of parameters and slots."""
    slots = [array for _, arrays in sorted(optimizer.slots.items()) for array in arrays if array is not None]
    return digest(*params, *slots)


def few_steps(optimizer, steps=3, sizes=(40_000, 33)):
    """Digest after steps on a parameter that goes parallel and one whose gradient is strided."""
    rng = np.random.default_rng(1)
    params = [rng.normal(size=size).astype(np.float32) for size in sizes]
    optimizer.build(params)
    for _ in range(steps):
        wide = rng.normal(size=(sizes[-1], 2)).astype(np.float32)
        optimizer.apply([*(rng.normal(size=size).astype(np.float32) for size in sizes[:-1]), wide[:, 0]])
    return digest_of(optimizer, params)


def waited(pid, timeout=60):
    """Exit status of a forked child; "hung" if it does not end, which this then does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def in_fork(function):
    """Call ``function`` in a forked child; its result, or the child's exit status if that is not zero."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(sending, json.dumps(function()).encode())
            os._exit(0)
        except BaseException as error:
            print(f"in the forked child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(sending)
    status = waited(pid)
    with os.fdopen(receiving) as pipe:
        return json.loads(pipe.read()) if status == 0 else status


def meet(folder, number):
    """Wait until so many processes have come here."""
    (Path(folder) / f"here-{os.getpid()}").touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).glob("here-*"))) < number:
        assert time.monotonic() < end, "the other processes did not come"
        time.sleep(0.005)


def steps_of(name):
    """`few_steps` of an optimizer with its defaults, by name: for pools of processes."""
    import fastopt

    return few_steps(getattr(fastopt, name)())


def peak_memory(function):
    """Bytes by which the resident set of this process rose, at its highest, while ``function`` ran."""
    import psutil

    before = psutil.Process().memory_info().rss
    if sys.platform != "linux":
        function()
        return psutil.Process().memory_info().rss - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    function()
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 - before


# -- the same steps in many ways ---------------------------------------------------------------------------------------

SHAPES = ((300_007,), (300, 701), (4097,), (33,), ())
OPTIMIZERS = {"Adam": {}, "SGD": {"momentum": 0.9}, "Lamb": {}, "Adafactor": {}, "Lion": {}}
OPTIONS = {
    "global_clipnorm": 1.0,
    "weight_decay": 0.01,
    "use_ema": True,
    "ema_momentum": 0.9,
    "gradient_accumulation_steps": 2,
}
UPDATES = 5


@functools.cache
def _drawn(number):
    """Arrays of `SHAPES`, the same for the same number."""
    rng = np.random.default_rng(number)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def bits(name, way="list"):
    """Digest after `UPDATES` steps of an optimizer with `OPTIONS`, its arrays handed over in one of the `WAYS`."""
    import fastopt

    optimizer = getattr(fastopt, name)(**OPTIMIZERS[name], **OPTIONS)
    params, gradients = WAYS[way](fastopt)
    optimizer.build(params)
    for number in range(1, UPDATES * OPTIONS["gradient_accumulation_steps"] + 1):
        optimizer.apply(gradients(_drawn(number)), zero_grads=way == "zeroed")
    arrays = params.values() if isinstance(params, dict) else getattr(params, "arrays", params)
    return digest_of(optimizer, arrays)


def bits_in_turn(name):
    """`bits`, with launches on one thread and on all in turn, at random; and how many were on one, and on all."""
    import random
    from unittest import mock

    from fastopt.kernels.cpu import crowding, launch

    import fastopt

    known, rng, alone = crowding.Account(), random.Random(0), []

    def account(kernel, elements):
        known.record[[crowding.SEEN, crowding.NEXT]] = 1, 1
        known.record[[crowding.PAUSE, crowding.UNTIL]] = rng.choice([0, 1e9]), np.inf
        alone.append(bool(crowding.is_alone(known.record)))
        return known.address

    fastopt.set_num_threads(2, yields=True)
    with mock.patch.object(launch.Kernel, "account", account):
        return bits(name), alone.count(True), alone.count(False)


def _copies():
    return [array.copy() for array in _drawn(0)]


def _as_list(fastopt):
    return _copies(), list


def _as_zeroed_list(fastopt):
    return _copies(), lambda arrays: [array.copy() for array in arrays]


def _as_dict(fastopt):
    names = [f"layer{k}" for k in range(len(SHAPES))]
    return dict(zip(names, _copies(), strict=True)), lambda arrays: dict(zip(names, arrays, strict=True))


def _as_buffer(fastopt):
    return fastopt.pack(_copies()), fastopt.pack


def _as_buffer_and_list(fastopt):
    return fastopt.pack(_copies()), list


def _as_buffer_and_flat_gradient(fastopt):
    return fastopt.pack(_copies()), lambda arrays: fastopt.pack(arrays).flat


def _as_list_and_strided_gradients(fastopt):
    return _copies(), lambda arrays: [_strided(array) for array in arrays]


def _strided(array):
    wide = np.full((*array.shape, 3), np.nan, array.dtype)
    wide[..., 1] = array
    return wide[..., 1]


def _as_list_and_float64_gradients(fastopt):
    return _copies(), lambda arrays: [array.astype(np.float64) for array in arrays]


WAYS = {
    "list": _as_list,
    "zeroed": _as_zeroed_list,
    "dict": _as_dict,
    "packed": _as_buffer,
    "packed, gradients in a list": _as_buffer_and_list,
    "packed, one flat gradient": _as_buffer_and_flat_gradient,
    "strided gradients": _as_list_and_strided_gradients,
    "float64 gradients": _as_list_and_float64_gradients,
}
