"""What nobody promises to keep, of Numba, numba-cuda, CuPy, Keras, torch: where it stands, and what is done without."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import children
import numba
import numpy as np
import pytest
from fastopt.kernels import maths
from fastopt.kernels.compile import _jit, _numba, fingerprints
from fastopt.kernels.compile import cache as cache_module
from fastopt.kernels.cuda import _cupy
from keras_cases import COPY_KEYWORD
from numba import types

ROOT = Path(__file__).parent.parent

# -- where it stands ---------------------------------------------------------------------------------------------------

PRIVATE_MODULES = r"(numba\.(core|np|cuda\.\w+)|numba_cuda\.|llvmlite\.(?!ir$|binding$)|keras\.src|torch\._|cupy\._)"
PRIVATE_NAMES = {
    # Numba and numba-cuda
    "_cache", "_rebuild", "_getvalue", "add_overload", "fndesc", "llvm_cfunc_wrapper_name", "overloads",
    "populate_array", "save_thread", "restore_thread", "targetctx", "targetoptions", "compile_cuda", "kernel_fixup",
    "llvm_replace", "get_libdevice",
    # CuPy
    "_core", "_routines_linalg",
    # Keras
    "_trainable_variables", "_model_variables_moving_average", "_accumulated_gradients", "_exclude_from_weight_decay",
    "_use_weight_decay", "_overwrite_variable_with_gradient", "_get_current_learning_rate", "_backend_apply_gradients",
    "_direct_assign",
    # torch
    "_C", "_version", "_cdata", "_local_tensor", "_neg_view", "_step_supports_amp_scaling",
}  # fmt: skip
FILES = {
    "kernels/compile/_numba.py", "kernels/cuda/_numba_cuda.py", "kernels/cuda/_cupy.py", "fastopt/keras/_keras.py",
    "fastopt/_torch.py",
}  # fmt: skip
PEERS = ROOT / "fastopt" / "bench" / "peers"
"""What fastopt is measured beside is written as their users write it."""


def private_uses(path):
    """Imports and attributes of a source that nobody promises to keep."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"[\w.]+", node.value) else []
            yield from (name for name in names if name in PRIVATE_NAMES)
        else:
            if isinstance(node, ast.Attribute) and (
                node.attr in PRIVATE_NAMES
                or node.attr.startswith("_foreach_")
                or (node.attr == "_value" and path.parent.name == "keras")
            ):
                yield node.attr
            continue
        yield from (name for name in names if re.match(PRIVATE_MODULES, name))


def test_internals_of_others_are_used_in_one_file_each():
    sources = [path for folder in ("fastopt", "kernels") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): set(private_uses(path)) for path in sources if PEERS not in path.parents}
    used = {name: uses for name, uses in found.items() if uses}
    assert used.keys() == FILES, {name: uses for name, uses in used.items() if name not in FILES}


def test_nothing_reads_or_writes_in_others_objects():
    sources = [path for folder in ("fastopt", "kernels") for path in (ROOT / folder).rglob("*.py")]
    text = {path: path.read_text() for path in sources}
    for word in ("version_tag", "version tag", "_cdata", '/proc/self/mem"', "/proc/self/mem'"):
        assert not [path for path in sources if word in text[path]], word


def test_the_files_say_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    dev = {"bench", "dev", "test", "torch-libraries"}
    asked = [*project["dependencies"], *(each for name in extras.keys() - dev for each in extras[name])]
    for name, path in KNOWN_IN.items():
        major, minor = map(int, known(path).rpartition(" ")[2].split("."))
        own = [each for each in asked if re.match(rf"{name}[>\[]", each)]
        assert own and all(each.endswith(f",<{major}.{minor + 1}") for each in own), own


KNOWN_IN = {
    "numba": "kernels/compile/_numba.py",
    "numba-cuda": "kernels/cuda/_numba_cuda.py",
    "keras": "fastopt/keras/_keras.py",
    "torch": "fastopt/_torch.py",
}


def known(path):
    return re.search(r'^KNOWN = "(.*)"', (ROOT / path).read_text(), re.M)[1]


# -- Numba -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def specialised(tmp_path, monkeypatch):
    """Makes a small specialisation; whether it was compiled, and how many files there are."""
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(_numba, "_keeping", {"is_tried": False, "fails": False})

    def make(function=maths.maximum):
        before, number = _jit.compilations, types.float64
        made = _jit.specialise(function, "tiny", number(number, number), {}, key=function.__name__)
        assert made(2.0, 5.0) == (5.0 if function is maths.maximum else 2.0)
        return _jit.compilations - before, len(list(tmp_path.iterdir()))

    return make


def test_what_was_kept_has_been_tried(specialised):
    assert specialised() == (1, 1)
    assert _numba._keeping == {"is_tried": True, "fails": False}
    assert specialised() == (0, 1)


@pytest.mark.parametrize("name", ["_reduce", "_rebuild"])
def test_a_numba_whose_code_cannot_be_kept(name, specialised, monkeypatch):
    """One warning, and everything is compiled."""
    monkeypatch.delattr(f"numba.core.compiler.CompileResult.{name}")
    with pytest.warns(RuntimeWarning, match=r"Numba \S+ has no .* as Numba 0\.61 to \S+ has.*each process compiles"):
        assert specialised() == (1, 0)
    assert specialised() == (1, 0)
    assert specialised(maths.minimum) == (1, 0)


def test_a_numba_that_rebuilds_something_else(specialised, monkeypatch):
    monkeypatch.setattr("numba.core.compiler.CompileResult._rebuild", lambda *arguments: None)
    with pytest.warns(RuntimeWarning, match="each process compiles anew"):
        assert specialised() == (1, 0)


def test_one_function_that_cannot_be_kept_is_to_blame_itself(specialised, monkeypatch):
    dumps = numba.core.serialize.dumps
    refused = []

    def refuse_the_first(value):
        refused.append(value)
        if len(refused) == 1:
            raise TypeError("cannot pickle this")
        return dumps(value)

    monkeypatch.setattr("numba.core.serialize.dumps", refuse_the_first)
    assert specialised() == (1, 0)
    assert specialised(maths.minimum) == (1, 1)


@pytest.fixture
def added():
    number = types.int64
    return numba.njit(number(number, number), error_model="numpy")(lambda x, y: x + y)


def test_without_an_entry_point_the_dispatcher_is_called(added):
    assert _numba.entry_point(added)(2, 3) == 5
    changed = SimpleNamespace(overloads={(): SimpleNamespace()})
    assert _numba.entry_point(changed) is changed


def test_without_an_address_it_is_compiled_again_for_c(added):
    import ctypes

    (signature,) = added.nopython_signatures
    changed = SimpleNamespace(overloads={(): SimpleNamespace()}, nopython_signatures=[signature], py_func=added.py_func)
    for dispatcher in (added, changed):
        function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(_numba.c_address(dispatcher))
        assert function(2, 3) == 5


def test_a_dispatcher_that_does_not_tell_its_options_has_no_fingerprint(added, monkeypatch):
    monkeypatch.setattr(_numba, "options_of", lambda dispatcher: None)
    assert fingerprints.fingerprint(added) is None


def test_an_intrinsic_whose_class_stays():
    class Fixed:
        __slots__ = ()

    fixed = Fixed()
    assert _numba.in_python(abs)(fixed) is fixed and type(fixed) is Fixed


@pytest.mark.parametrize(
    "module, name",
    [("core.compiler_lock", "global_compiler_lock"), ("np.arrayobj", "populate_array"), ("core.cgutils", None)],
)
def test_a_numba_without_what_there_is_no_way_around(module, name):
    change = f"delattr(numba.{module}, {name!r})" if name else f"sys.modules['numba.{module}'] = None"
    code = f"""
        import sys
        import children, numba.np.arrayobj
        {change}
        try:
            import fastopt
        except ImportError as error:
            print(__import__("json").dumps(str(error)))
    """
    message = children.run(code)
    assert re.fullmatch(rf"Numba \S+ has no numba\.{module}\S*, as Numba 0\.61 to .*: install one of these", message)


# -- CuPy --------------------------------------------------------------------------------------------------------------


def test_a_cupy_whose_precision_cannot_be_chosen(monkeypatch):
    changed = SimpleNamespace(__version__="99")
    monkeypatch.delenv("CUPY_TF32", raising=False)
    with _cupy.full_float32(changed):
        pass
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(RuntimeError, match="CuPy 99 multiplies as CUPY_TF32 says"), _cupy.full_float32(changed):
        pass


# -- Keras -------------------------------------------------------------------------------------------------------------

WITHOUT_HOOKS = """
    import importlib, sys
    import children, keras

    def message_without(owner, name):
        *path, owner = owner.split(".")
        holder = importlib.import_module(".".join(path))
        owner = getattr(holder, owner)
        hook = getattr(owner, name)
        delattr(owner, name)
        try:
            import fastopt.keras
        except ImportError as error:
            return str(error)
        finally:
            setattr(owner, name, hook)
            for module in [module for module in sys.modules if module.startswith("fastopt.keras")]:
                del sys.modules[module]

    children.report(messages=[message_without(*hook.rsplit(".", 1)) for hook in {hooks!r}])
"""
HOOKS = [
    "keras.src.optimizers.base_optimizer.BaseOptimizer._backend_apply_gradients",
    "keras.src.optimizers.base_optimizer.BaseOptimizer._get_current_learning_rate",
    "keras.src.backend.common.stateless_scope.in_stateless_scope",
]


def test_a_keras_without_hooks():
    pytest.importorskip("torch")
    code = WITHOUT_HOOKS.format(hooks=HOOKS)
    messages = children.run(code, KERAS_BACKEND="torch", PYTHONWARNINGS=None)["messages"]
    for hook, message in zip(HOOKS, messages, strict=True):
        name = hook.rpartition(".")[2]
        assert re.fullmatch(rf"Keras \S+ has no \S*{name}, as Keras \S+ has, .*: install that", message)


@pytest.mark.filterwarnings(COPY_KEYWORD)
@pytest.mark.keras_backend("torch")
@pytest.mark.parametrize("name", ["_trainable_variables", "_u_product"])
def test_a_keras_whose_state_is_elsewhere(name, keras, fast, monkeypatch):
    """Keras's own update runs, and one warning says why."""
    from fastopt.keras import _keras

    monkeypatch.setattr(_keras, "hasattr", lambda value, asked: asked != name and hasattr(value, asked), raising=False)
    ours, theirs = fast.Nadam(0.1), keras.optimizers.Nadam(0.1)
    results = []
    for optimizer in (ours, theirs):
        variable = keras.Variable(np.ones(3, np.float32))
        optimizer.build([variable])
        if optimizer is ours:
            with pytest.warns(UserWarning, match=rf"own update runs.*Keras \S+ has no Nadam\.{name}, as Keras"):
                optimizer.apply([keras.ops.ones(3)])
        else:
            optimizer.apply([keras.ops.ones(3)])
        results.append(keras.ops.convert_to_numpy(variable.value))
    np.testing.assert_allclose(*results, rtol=1e-5)


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_steps(optimizer, parameters, steps=3):
    torch = pytest.importorskip("torch")
    for k in range(steps):
        for p in parameters:
            p.grad = torch.full_like(p, 0.5 + k)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def stepped_with_far_counters(kind):
    """Of which one is written to in between: it is no tensor that a compiled function reads."""
    torch = pytest.importorskip("torch")
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = kind(parameters, lr=0.1)
    torch_steps(optimizer, parameters, 1)
    for p in parameters:
        optimizer.state[p]["step"] = optimizer.state[p]["step"].to(torch.bfloat16)
    torch_steps(optimizer, parameters, 2)
    for p in parameters:
        optimizer.state[p]["step"].fill_(7)
    found = torch_steps(optimizer, parameters, 2)
    return [*found, *(optimizer.state[p]["step"].float() for p in parameters)]


@pytest.mark.parametrize("missing", ["nothing", "_foreach_zero_", "_foreach_add_", "_version"])
def test_a_torch_without_what_counters_use(missing, monkeypatch):
    torch = pytest.importorskip("torch")
    import fastopt.torch
    from fastopt import _torch

    expected = stepped_with_far_counters(torch.optim.Adam)
    if missing == "_version":
        monkeypatch.setattr(_torch, "hasattr", lambda value, name: name != missing, raising=False)
    elif missing != "nothing":
        monkeypatch.delattr(torch, missing)
    for ours, theirs in zip(stepped_with_far_counters(fastopt.torch.Adam), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_torch_that_counts_no_versions(monkeypatch):
    """Gradients that a step has left at zero are zeroed once more."""
    torch = pytest.importorskip("torch")
    import fastopt.torch
    from fastopt import _torch

    class Changed:
        pass

    assert _torch.versions_of([torch.ones(2)]) == [0]
    assert _torch.versions_of([Changed()]) is None
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = fastopt.torch.SGD([p], lr=0.1, fused_zero_grad=True)
    monkeypatch.setattr("fastopt.torch.versions.versions_of", lambda tensors: None)
    torch_steps(optimizer, [p])
    assert not p.grad.any()
    optimizer.zero_grad()
    assert p.grad is None


def test_a_torch_that_cannot_leave_out_modes(monkeypatch):
    torch = pytest.importorskip("torch")
    import fastopt.torch

    expected = torch_steps(torch.optim.SGD([p := torch.nn.Parameter(torch.ones(3))], lr=0.1), [p])
    monkeypatch.delattr(torch._C, "DisableTorchFunction")
    found = torch_steps(fastopt.torch.SGD([p := torch.nn.Parameter(torch.ones(3))], lr=0.1), [p])
    torch.testing.assert_close(found, expected)


def test_importing_fastopt_brings_none_of_them():
    code = """
        import sys
        import children, fastopt
        children.report(found=sorted({"torch", "keras", "cupy", "numba_cuda", "numba.cuda"} & set(sys.modules)))
    """
    assert children.run(code)["found"] == [], sys.version
