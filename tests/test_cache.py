"""The cache of compiled code: what it notices, what it survives, where it lies."""

import importlib.util
import itertools
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import children
import kernel_cache
import pytest
from fastopt.kernels import maths
from fastopt.kernels.compile import _jit, fingerprints
from fastopt.kernels.compile import cache as cache_module
from numba import types

import fastopt

pytestmark = pytest.mark.xdist_group("cache")  # one worker fills the cache that the tests start from

ADAM = """
    import children, fastopt
    with children.recorded_compilations() as events:
        digest = children.few_steps(fastopt.Adam())
    children.report(digest=digest, events=len(events))
"""


def run_adam(folder, **options):
    return children.run(ADAM, FASTOPT_CACHE_DIR=folder, **options)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def loaded(digest):
    """What `run_adam` says if nothing had to be compiled."""
    return {"compilations": 0, "events": 0, "digest": digest}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache with the kernels of Adam, and what the process said that filled it."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, run_adam(folder)


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the filled cache that a test may do anything to."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


@pytest.fixture(scope="module")
def uncached_digest(filled):
    """What Adam's steps give without a cache: the process that filled it compiled everything itself."""
    first = filled[1]
    assert first["compilations"] > 0
    assert first["events"] > 0
    return first["digest"]


# -- loading -----------------------------------------------------------------------------------------------------------


def test_nothing_is_compiled_at_import():
    code = """
        import gc, children
        with children.recorded_compilations() as events:
            import fastopt
        from numba.core.dispatcher import Dispatcher
        ready = [repr(found) for found in gc.get_objects() if isinstance(found, Dispatcher) and found.overloads]
        children.report(events=len(events), ready=ready)
    """
    assert children.run(code) == {"compilations": 0, "events": 0, "ready": []}


def test_second_process_compiles_nothing(filled, uncached_digest):
    assert run_adam(filled[0]) == loaded(uncached_digest)


def test_numbers_of_threads_share_the_cache(filled, uncached_digest):
    assert run_adam(filled[0], NUMBA_NUM_THREADS=4) == loaded(uncached_digest)


def test_another_layer_compiles_nothing_but_its_own_launch(cache, uncached_digest):
    assert run_adam(cache, **children.layer("workqueue"))["compilations"] == 1
    assert run_adam(cache, NUMBA_NUM_THREADS=4, **children.layer("omp")) == loaded(uncached_digest)


# -- edits of the kernels ----------------------------------------------------------------------------------------------

EDITS = {
    "cpu/loops.py": ("p, new_slots = update(p, g,", "p, new_slots = update(g, g,"),
    "rules/adam.py": ("s.epsilon), (momentum, velocity)", "-s.epsilon), (momentum, velocity)"),
}
"""A loop and a rule. Each changes what Adam computes; that every file of kernels/ counts is another test."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """fastopt as an installation lays it out, for editing."""
    return children.copy_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def kernel_file(site):
    """The path of a file of the installed kernels, which is restored after the test."""
    originals = {}

    def path_of(name):
        path = site / "fastopt" / "kernels" / name
        originals[path] = path.read_text()
        return path

    yield path_of
    for path, text in originals.items():
        path.write_text(text)


def test_installations_of_the_same_sources_share_the_cache(filled, uncached_digest, site):
    assert run_adam(filled[0], site=site) == loaded(uncached_digest)


@pytest.mark.parametrize("name", EDITS)
def test_edit_of_a_kernel_takes_effect(name, cache, uncached_digest, site, kernel_file):
    children.edit(kernel_file(name), *EDITS[name])
    edited = run_adam(cache, site=site)
    assert edited["compilations"] > 0
    assert edited["digest"] != uncached_digest


def key_of(kernels):
    """The build key that a process works out whose kernels are in this folder."""
    spec = importlib.util.spec_from_file_location("fastopt.kernels.compile._copy", kernels / "compile" / "cache.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_key()


def test_every_file_of_the_kernels_counts(site, kernel_file):
    kernels = site / "fastopt" / "kernels"
    keys = [key_of(kernels)]
    for path in sorted(kernels.rglob("*.py")):
        kernel_file(path.relative_to(kernels)).write_text(path.read_text() + "\n")
        keys.append(key_of(kernels))
    assert len(set(keys)) == len(keys)


TINY = """
    import children
    from fastopt.kernels.compile import _jit, cache
    from fastopt.kernels import maths
    from numba import types

    def tiny(function):
        number = types.float64
        return _jit.specialise(getattr(maths, function), "tiny", number(number, number), dict(), key="tiny")(2.0, 5.0)
"""


def test_edit_under_a_running_process_is_not_taken_for_what_it_compiled(tmp_path, site, kernel_file):
    """A package may be upgraded while a notebook holds the old one."""
    edit = str(kernel_file("maths.py")), "return y if y > x or y != y else x", "return y * y"
    edit_then_compile = f"{TINY}\n    children.edit(*{edit})\n    children.report(value=tiny('maximum'))"
    compile_alone = f"{TINY}\n    children.report(value=tiny('maximum'))"
    found = [children.run(code, site=site, FASTOPT_CACHE_DIR=tmp_path) for code in (edit_then_compile, compile_alone)]
    assert found[0] == {"compilations": 1, "value": 5.0}
    assert found[1] == {"compilations": 1, "value": 25.0}, "old code was filed under the new sources"


# -- a user's rule -----------------------------------------------------------------------------------------------------

USER_HELPERS = """
from numba.extending import register_jitable

OFFSET = 1.0

@register_jitable
def doubled(x):
    return x * 2.0
"""
USER_RULES = """
from typing import NamedTuple
import fastopt, user_helpers
from numba.extending import register_jitable
from user_helpers import doubled

GAIN = 1.0

class PlainScalars(NamedTuple):
    learning_rate: float

@register_jitable
def bent(x, slope=1.0):
    return x * slope + 1.0

def plain(param, grad, slots, s):
    return param - s.learning_rate * doubled(bent(grad)) * GAIN * user_helpers.OFFSET, slots

Plain = fastopt.register_rule("Plain", plain, PlainScalars, defaults={"learning_rate": 0.5})
"""
STEP = """
    import children, numpy as np
    from user_rules import Plain
    param = np.ones(3, np.float32)
    optimizer = Plain()
    optimizer.build([param])
    optimizer.apply([np.ones(3, np.float32)])
    children.report(value=float(param[1]))
"""
USER_EDITS = {
    "rule": ("user_rules.py", "return param - s.learning_rate", "return param + s.learning_rate", 3.0),
    "helper": ("user_rules.py", "x * slope + 1.0", "x * slope + 3.0", -3.0),
    "default of a helper": ("user_rules.py", "slope=1.0", "slope=2.0", -2.0),
    "helper in another module": ("user_helpers.py", "x * 2.0", "x * 4.0", -3.0),
    "constant": ("user_rules.py", "GAIN = 1.0", "GAIN = 3.0", -5.0),
    "constant in another module": ("user_helpers.py", "OFFSET = 1.0", "OFFSET = 2.0", -3.0),
}


def write_user(folder):
    (folder / "user_rules.py").write_text(USER_RULES)
    (folder / "user_helpers.py").write_text(USER_HELPERS)


@pytest.fixture(scope="module")
def user(filled, tmp_path_factory):
    """A folder with a user's modules, and a cache that has the kernels of its rule and of Adam."""
    folder = tmp_path_factory.mktemp("user")
    cache = shutil.copytree(filled[0], folder / "cache")
    write_user(folder)
    first = children.run(STEP, site=folder, FASTOPT_CACHE_DIR=cache)
    assert first["compilations"] > 0
    assert first["value"] == -1.0
    yield folder, cache


@pytest.fixture
def user_files(user):
    """The folder of the user's modules, which are restored after the test."""
    yield user[0]
    write_user(user[0])


def step_of_user(user):
    return children.run(STEP, site=user[0], FASTOPT_CACHE_DIR=user[1])


def test_rule_of_a_user_is_cached(user):
    assert step_of_user(user) == {"compilations": 0, "value": -1.0}


EDIT_AND_STEP = """
    import importlib, pathlib, sys
    import children, numpy as np

    def value():
        for name in ("user_rules", "user_helpers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        param = np.ones(3, np.float32)
        optimizer = importlib.import_module("user_rules").Plain()
        optimizer.build([param])
        optimizer.apply([np.ones(3, np.float32)])
        return float(param[1])

    def edited(file, old, new, _):
        path = pathlib.Path({folder!r}, file)
        text = path.read_text()
        children.edit(path, old, new)
        found = value()
        path.write_text(text)
        return found

    children.report(found={{name: edited(*edit) for name, edit in {edits!r}.items()}})
"""


def test_edits_of_a_users_rule_take_effect(user, user_files):
    """In a process that begins with what another has compiled, and imports the modules anew after each edit."""
    code = EDIT_AND_STEP.format(folder=str(user_files), edits=USER_EDITS)
    told = children.run(code, site=user[0], FASTOPT_CACHE_DIR=user[1])
    assert told["found"] == {name: expected for name, (*_, expected) in USER_EDITS.items()}
    assert told["compilations"] == len(USER_EDITS)


def test_versions_of_a_rule_that_two_processes_compiled_meet_in_a_third(user, user_files, tmp_path):
    """As where a notebook reloads a module whose edits other processes have run."""
    edit, cache = USER_EDITS["rule"], shutil.copytree(user[1], tmp_path / "cache")
    children.edit(user_files / edit[0], *edit[1:3])
    assert step_of_user((user[0], cache))["value"] == edit[3]
    write_user(user_files)
    code = EDIT_AND_STEP.format(folder=str(user_files), edits={})
    code += f"    children.report(values=[value(), edited(*{edit}), value()])"
    found = children.run(code, site=user[0], FASTOPT_CACHE_DIR=cache)
    assert found == {"compilations": 0, "values": [-1.0, edit[3], -1.0]}


def test_missing_module_of_a_user_leaves_other_rules_alone(user, user_files, uncached_digest):
    (user_files / "user_rules.py").unlink()
    (user_files / "user_helpers.py").unlink()
    assert run_adam(user[1]) == loaded(uncached_digest)


def test_renamed_class_of_a_user_leaves_other_rules_alone(user, user_files, uncached_digest):
    path = user_files / "user_rules.py"
    path.write_text(path.read_text().replace("PlainScalars", "RenamedScalars"))
    assert step_of_user(user)["value"] == -1.0
    assert run_adam(user[1]) == loaded(uncached_digest)


RULE_OF_MAIN = """
    from typing import NamedTuple
    import children, fastopt, numpy as np

    class Scalars(NamedTuple):
        learning_rate: float

    def from_main(param, grad, slots, s):
        return param - s.learning_rate * grad, slots

    param = np.ones(3, np.float32)
    optimizer = fastopt.register_rule("Main", from_main, Scalars, defaults={"learning_rate": 0.5})()
    optimizer.build([param])
    optimizer.apply([np.ones(3, np.float32)])
    children.report(value=float(param[1]))
"""


def test_rule_of_main_works_and_is_not_cached(cache):
    before = files_in(cache)
    found = children.run(RULE_OF_MAIN, FASTOPT_CACHE_DIR=cache)
    assert found["value"] == 0.5
    assert found["compilations"] > 0
    assert files_in(cache) == before


# -- what a fingerprint sees -------------------------------------------------------------------------------------------

JITABLE = "from numba.extending import register_jitable as jitable\n"
CHANGES = {
    "body": ({"m": "def rule(x): return x * 2.0"}, {"m": "def rule(x): return x * 3.0"}),
    "default": (
        {"m": JITABLE + "@jitable\ndef h(x, k=2.0): return x * k\ndef rule(x): return h(x)"},
        {"m": JITABLE + "@jitable\ndef h(x, k=3.0): return x * k\ndef rule(x): return h(x)"},
    ),
    "constant that an inner function names": (
        {"m": "K = 2.0\ndef rule(x): return (lambda y: y * K)(x)"},
        {"m": "K = 3.0\ndef rule(x): return (lambda y: y * K)(x)"},
    ),
    "constant array": (
        {"m": "import numpy as np\nK = np.array([2.0])\ndef rule(x): return x * K[0]"},
        {"m": "import numpy as np\nK = np.array([3.0])\ndef rule(x): return x * K[0]"},
    ),
    "closure": (
        {"m": "def make(k):\n    return lambda x: x * k\nrule = make(2.0)"},
        {"m": "def make(k):\n    return lambda x: x * k\nrule = make(3.0)"},
    ),
    "attribute of a module": (
        {"m": "import other\ndef rule(x): return x * other.K", "other": "K = 2.0"},
        {"m": "import other\ndef rule(x): return x * other.K", "other": "K = 3.0"},
    ),
    "attribute with the name of a builtin": (
        {"m": "import other\ndef rule(x): return other.pow(x)", "other": "def pow(x): return x * 2.0"},
        {"m": "import other\ndef rule(x): return other.pow(x)", "other": "def pow(x): return x * 3.0"},
    ),
    "attribute with the name of a global": (
        {"m": "import other\nK = 1.0\ndef rule(x): return K * other.K", "other": "K = 2.0"},
        {"m": "import other\nK = 1.0\ndef rule(x): return K * other.K", "other": "K = 3.0"},
    ),
    "attribute of a module in a package": (
        {"m": "import pack.inner\ndef rule(x): return x * pack.inner.K", "pack/__init__": "", "pack/inner": "K = 2.0"},
        {"m": "import pack.inner\ndef rule(x): return x * pack.inner.K", "pack/__init__": "", "pack/inner": "K = 3.0"},
    ),
    "module whose name starts like a library's": (
        {"numba_rules": "def rule(x): return x * 2.0", "m": "from numba_rules import rule"},
        {"numba_rules": "def rule(x): return x * 3.0", "m": "from numba_rules import rule"},
    ),
    "helper module whose name starts like a library's": (
        {"mathx": "K = 2.0", "m": "import mathx\ndef rule(x): return x * mathx.K"},
        {"mathx": "K = 3.0", "m": "import mathx\ndef rule(x): return x * mathx.K"},
    ),
    "flags of a helper": (
        {"m": "import numba\n@numba.njit\ndef h(x): return x + x + x\ndef rule(x): return h(x)"},
        {"m": "import numba\n@numba.njit(fastmath=True)\ndef h(x): return x + x + x\ndef rule(x): return h(x)"},
    ),
    "code without a module": (
        {"m": "space = {}\nexec('def rule(x): return x * 2.0', space)\nrule = space['rule']"},
        {"m": "space = {}\nexec('def rule(x): return x * 3.0', space)\nrule = space['rule']"},
    ),
}


@pytest.fixture
def fingerprint_of(tmp_path, monkeypatch):
    """The fingerprint of ``rule`` in module ``m``, once the given modules are imported from a folder."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    numbers = itertools.count()

    def fingerprint(sources):
        with monkeypatch.context() as patch:
            folder = tmp_path / str(next(numbers))
            patch.syspath_prepend(folder)
            for name, source in sources.items():
                path = folder / f"{name}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source)
                patch.delitem(sys.modules, name.removesuffix("/__init__").replace("/", "."), raising=False)
            importlib.invalidate_caches()
            return fingerprints.fingerprint(importlib.import_module("m").rule)

    return fingerprint


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_notices(change, fingerprint_of):
    before, after = CHANGES[change]
    first, again, changed = (fingerprint_of(sources) for sources in (before, before, after))
    assert first == again, "the same sources have the same fingerprint"
    assert first is None or first != changed


def test_what_cannot_be_told_has_no_fingerprint(fingerprint_of):
    assert fingerprint_of({"m": "class Box:\n    k = 2.0\nbox = Box()\ndef rule(x): return x * box.k"}) is None


# -- damage ------------------------------------------------------------------------------------------------------------


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


class Missing:
    """Stands for a class that is gone by the time a file is read."""

    def __reduce__(self):
        return importlib.import_module, ("a_module_that_is_missing",)


DAMAGES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "cut within the checksum": lambda content: content[:31],
    "checksum alone": lambda content: content[:32],
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "more bytes": lambda content: content + b"\0",
    "garbage": lambda content: bytes(range(256)) * 64,
    "flipped bit in the checksum": lambda content: flipped(content, 5),
    "flipped bit at the start": lambda content: flipped(content, 33),
    "flipped bit in the middle": lambda content: flipped(content, len(content) // 2),
    "flipped last bit": lambda content: flipped(content, len(content) - 1),
}
PAYLOADS = {
    "no pickle": b"no pickle",
    "pickle of something else": pickle.dumps((1, 2, 3)),
    "pickle from a missing module": pickle.dumps(Missing()),
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes a small specialisation with a cache of its own; a result, and how much had to be compiled."""
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path)

    def make():
        before = _jit.compilations
        number = types.float64
        maximum = _jit.specialise(maths.maximum, "tiny", number(number, number), {}, key="tiny")
        return maximum(2.0, 5.0), _jit.compilations - before

    assert make() == (5.0, 1)
    assert make() == (5.0, 0)
    (make.file,) = tmp_path.iterdir()
    return make


def assert_replaced(tiny):
    assert tiny() == (5.0, 1)
    assert tiny() == (5.0, 0)
    assert list(tiny.file.parent.iterdir()) == [tiny.file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_replaced(damage, tiny):
    tiny.file.write_bytes(DAMAGES[damage](tiny.file.read_bytes()))
    assert_replaced(tiny)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_file_of_something_else_is_replaced(payload, tiny):
    cache_module.write_cached(tiny.file, lambda: PAYLOADS[payload])
    assert_replaced(tiny)


def test_exchanged_files_are_not_run(tmp_path, monkeypatch):
    """What a tool that synchronises folders may do to them; the right values are Python's own."""
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path)
    number, expected = types.float64, [max(2.0, 5.0), min(2.0, 5.0)]

    def values():
        functions = [maths.maximum, maths.minimum]
        return [_jit.specialise(f, "tiny", number(number, number), {}, key="tiny")(2.0, 5.0) for f in functions]

    assert values() == expected
    one, other = tmp_path.iterdir()
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert values() == expected


def test_truncated_files_are_compiled_anew(cache, uncached_digest):
    """Others are loaded."""
    truncated = sorted(cache.iterdir())[::4]
    for path in truncated:
        os.truncate(path, path.stat().st_size // 2)
    repaired = run_adam(cache)
    assert repaired["compilations"] == len(truncated) > 1
    assert repaired["digest"] == uncached_digest
    assert run_adam(cache) == loaded(uncached_digest)


def test_cache_that_vanishes(tiny):
    shutil.rmtree(tiny.file.parent)
    assert tiny() == (5.0, 1)


def test_file_that_cannot_be_replaced_costs_the_cache_alone(tiny):
    tiny.file.unlink()
    (tiny.file / "in the way").mkdir(parents=True)
    assert tiny() == (5.0, 1)
    assert list(tiny.file.parent.iterdir()) == [tiny.file], "a temporary file was left behind"


def test_write_that_the_system_cuts_short_leaves_nothing(tmp_path):
    """Files are limited to fewer bytes than the code has, which fails in the middle, as on a full disk."""
    pytest.importorskip("resource", reason="no limits on this platform")
    code = f"""
        import pathlib, resource
        import children
        from fastopt.kernels.compile import _jit, cache
        from fastopt.kernels import maths
        from numba import types

        cache.cache_folder = lambda: pathlib.Path({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        number = types.float64
        value = _jit.specialise(maths.maximum, "tiny", number(number, number), {{}}, key="tiny")(2.0, 5.0)
        children.report(value=value)
    """
    assert children.run(code) == {"compilations": 1, "value": 5.0}
    assert files_in(tmp_path) == []


def test_interrupt_while_a_file_is_written_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache_module.write_cached(tmp_path / "some.fastopt", lambda: b"code")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("folder, others", [("fastopt", []), ("chosen", ["tmp01234567"])])
def test_leftovers_of_killed_processes_are_removed(folder, others, tmp_path):
    """Not what is being written, nor what may be another program's: only a folder called fastopt is ours alone."""
    folder = tmp_path / folder
    folder.mkdir()
    for name in ("tmp01234567", "notes.txt", f"old{cache_module.UNFINISHED}"):
        (folder / name).touch()
        os.utime(folder / name, (1e9, 1e9))
    (folder / f"new{cache_module.UNFINISHED}").touch()
    cache_module.write_cached(folder / "some.fastopt", lambda: b"code")
    assert files_in(folder) == sorted([f"new{cache_module.UNFINISHED}", "notes.txt", "some.fastopt", *others])


# -- where it lies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen_folder(monkeypatch, tmp_path):
    """The folder that is chosen under some environment, in which nothing else names one."""
    nowhere = tmp_path / "a file"
    nowhere.touch()

    def choose(**environment):
        with monkeypatch.context() as patch:
            for key in ("FASTOPT_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
                patch.delenv(key, raising=False)
            for key in ("HOME", "USERPROFILE"):
                patch.setenv(key, str(nowhere / "nobody"))
            for key, value in environment.items():
                patch.setenv(key, str(value))
            return cache_module.cache_folder.__wrapped__()

    return choose


def test_no_folder_where_none_can_be_made(chosen_folder):
    assert chosen_folder() is None


def test_chosen_folder_comes_first(chosen_folder, tmp_path):
    wanted = tmp_path / "made" / "on" / "demand"
    assert chosen_folder(FASTOPT_CACHE_DIR=wanted, NUMBA_CACHE_DIR=tmp_path, HOME=tmp_path) == wanted
    assert wanted.is_dir()


def test_numbas_folder_comes_next(chosen_folder, tmp_path):
    assert chosen_folder(NUMBA_CACHE_DIR=tmp_path / "numba", HOME=tmp_path) == tmp_path / "numba" / "fastopt"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="other systems keep caches elsewhere")
def test_folder_of_the_user_comes_last(chosen_folder, tmp_path):
    assert chosen_folder(HOME=tmp_path) == tmp_path / ".cache" / "fastopt"
    assert chosen_folder(HOME=tmp_path, XDG_CACHE_HOME=tmp_path / "xdg") == tmp_path / "xdg" / "fastopt"


@pytest.mark.skipif(os.name == "nt", reason="permissions on Windows are no mode bits")
def test_folder_that_others_can_write_to_is_not_used(chosen_folder, tmp_path):
    """What lies in it is executed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert chosen_folder(FASTOPT_CACHE_DIR=shared) is None


@pytest.mark.skipif(os.name == "nt", reason="permissions on Windows are no mode bits")
def test_made_folder_is_private(chosen_folder, tmp_path):
    folder = chosen_folder(FASTOPT_CACHE_DIR=tmp_path / "new")
    assert folder.stat().st_mode & 0o077 == 0


def test_relative_folder_stays_where_it_was_named(chosen_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = chosen_folder(FASTOPT_CACHE_DIR="relative")
    monkeypatch.chdir("/")
    assert folder.is_dir()


def test_compiling_without_home_and_cache(tmp_path):
    """Whole steps without a cache are those of `test_bits`."""
    nowhere = tmp_path / "a file"
    nowhere.touch()
    homeless = {"HOME": nowhere / "nobody", "USERPROFILE": nowhere / "nobody", "LOCALAPPDATA": None}
    code = f"{TINY}\n    children.report(value=tiny('maximum'), folder=str(cache.cache_folder()))"
    found = children.run(code, FASTOPT_CACHE_DIR=None, NUMBA_CACHE_DIR=None, XDG_CACHE_HOME=None, **homeless)
    assert found == {"compilations": 1, "value": 5.0, "folder": "None"}


# -- processes at once -------------------------------------------------------------------------------------------------

AT_ONCE = f"""{TINY}
    children.meet({{meeting!r}}, {{number}})
    children.report(value=tiny({{name!r}}))
"""


def test_processes_fill_an_empty_cache_at_once(tmp_path):
    """Two with the same kernel, one with another."""
    cache, meeting, expected = tmp_path / "cache", tmp_path / "meeting", {"maximum": 5.0, "minimum": 2.0}
    meeting.mkdir()
    names = ("maximum", "minimum", "maximum")
    code = {name: AT_ONCE.format(meeting=str(meeting), number=len(names), name=name) for name in names}
    processes = [children.start(code[name], FASTOPT_CACHE_DIR=cache) for name in names]
    assert [children.finish(child)["value"] for child in processes] == [expected[name] for name in names]
    for name, value in expected.items():
        assert children.run(code[name], FASTOPT_CACHE_DIR=cache) == {"compilations": 0, "value": value}
    assert [path.suffix for path in cache.iterdir()] == [".fastopt"] * 2


def test_children_run_what_this_process_tests():
    assert children.run("import children, fastopt; children.report(file=fastopt.__file__)")["file"] == fastopt.__file__


# -- the folder that the tests themselves use --------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Where the tests would keep what they compile."""
    monkeypatch.setattr(kernel_cache, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(kernel_cache, "_is_kept", lambda: True)
    return tmp_path / "kept"


def test_tests_keep_what_they_compile_in_a_private_folder(kept):
    assert kernel_cache.folder() == kernel_cache.folder() == str(kept)
    assert os.name == "nt" or kept.stat().st_mode & 0o077 == 0


def is_temporary(folder):
    return Path(folder).parent == Path(tempfile.gettempdir())


@pytest.mark.skipif(os.name == "nt", reason="permissions on Windows are no mode bits")
def test_tests_keep_nothing_where_others_can_write(kept):
    kept.mkdir()
    kept.chmod(0o777)
    assert is_temporary(kernel_cache.folder())


def test_tests_keep_nothing_where_no_folder_can_be_made(kept):
    kept.touch()
    assert is_temporary(kernel_cache.folder())


def test_tests_keep_nothing_of_another_fastopt_or_under_numbas_switches(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("NUMBA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernel_cache, "ROOT", Path(fastopt.__file__).resolve().parent.parent)
    assert kernel_cache._is_kept()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert kernel_cache._is_kept()
    monkeypatch.setenv("NUMBA_OPT", "0")
    assert not kernel_cache._is_kept()
    monkeypatch.delenv("NUMBA_OPT")
    monkeypatch.setattr(kernel_cache, "ROOT", tmp_path)
    assert not kernel_cache._is_kept()


def test_tests_keep_the_newest_files(kept, monkeypatch):
    kept.mkdir(mode=0o700)
    for number in range(5):
        (kept / str(number)).write_bytes(bytes(100))
        os.utime(kept / str(number), (number, number))
    monkeypatch.setattr(kernel_cache, "LIMIT", 250)
    kernel_cache.folder()
    assert files_in(kept) == ["3", "4"]
