"""What users install: the contents of sdist and wheel, and a step from a read-only installation in an empty venv."""

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("packaging")  # one worker builds, and the others get on with their work

ROOT = Path(__file__).parent.parent
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "fastopt", "kernels", "tests")

THREE_STEPS = """
import sys
import numpy as np
import fastopt

w = np.ones(1000, np.float32)
optimizer = fastopt.Adam()
optimizer.build([w])
for _ in range(3):
    optimizer.apply([np.ones_like(w)])
np.testing.assert_allclose(w, 0.997, rtol=1e-5)
assert fastopt.__file__.startswith(sys.argv[1]), fastopt.__file__
assert fastopt.kernels.__file__.startswith(sys.argv[1]), fastopt.kernels.__file__
"""


def run(*command, cwd, **environment):
    """The command's standard output; its errors are part of the failure."""
    inherited = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments, python=sys.executable):
    """Run this environment's pip for ``python``, which need not have one, with pip's settings in place."""
    settings = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key == "HOME"}
    run(sys.executable, "-m", "pip", "--python", python, "--quiet", "install", *arguments, cwd=ROOT, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the distributions are made of: building must leave nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def distributions(source, tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def shipped_modules():
    """Every module as the wheel must name it."""
    for package, folder in (("fastopt", ROOT / "fastopt"), ("fastopt/kernels", ROOT / "kernels")):
        for module in folder.rglob("*.py"):
            yield f"{package}/{module.relative_to(folder).as_posix()}"


def test_wheel_holds_every_module_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = set(wheel.namelist())
    payload = {name for name in names if ".dist-info/" not in name}
    assert payload == {*shipped_modules(), "fastopt/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_the_sources(distributions):
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    modules = {name.replace("fastopt/kernels/", "kernels/") for name in shipped_modules()}
    assert modules | {"pyproject.toml", "README.md", "LICENSE", "fastopt/py.typed"} <= names


def empty_venv(folder, borrowed_packages=()):
    """A venv without pip. Dependencies come from a folder of installed packages, whose own .pth files do not count."""
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    scheme = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    if borrowed_packages:
        (site_packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed_packages))
    return python, site_packages


def unprivileged(*command):
    """The command without root's right to write where permissions forbid it."""
    if os.name == "nt" or os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("running as root, without setpriv to drop the right to write anywhere")
    return (setpriv, "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command)


class ReadOnly:
    """Folders whose trees cannot be written to inside the ``with`` block."""

    def __init__(self, *folders):
        self.modes = {}
        for folder in folders:
            for path in (folder, *folder.rglob("*")):
                if not path.is_symlink():
                    self.modes[path] = stat.S_IMODE(path.stat().st_mode)

    def __enter__(self):
        for path, mode in self.modes.items():
            path.chmod(mode & ~0o222)

    def __exit__(self, *exception):
        for path, mode in self.modes.items():
            path.chmod(mode)


def step_from_read_only(python, folders, home, **environment):
    """Three steps of Adam from another folder, with no writable package or home; fastopt is in folders[0].

    Nor is there a cache, unless the environment names one.
    """
    cwd = home / "elsewhere"
    cwd.mkdir(parents=True)
    nowhere = {"HOME": str(home / "nobody"), "USERPROFILE": str(home / "nobody")}
    with ReadOnly(home, *folders):
        probe = unprivileged(python, "-c", "import sys; open(sys.argv[1], 'w')", folders[0] / "probe")
        assert subprocess.run(probe, capture_output=True).returncode != 0, "the folder is not read-only"
        run(*unprivileged(python, "-W", "error", "-c", THREE_STEPS, folders[0]), cwd=cwd, **nowhere | environment)


def borrowed():
    """Where this environment's packages are; fastopt itself is there at most as an import hook, in a .pth file."""
    return {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def cache_of_the_tests():
    """What the same kernels were compiled to before: one installation that compiles without a cache is enough."""
    return {"FASTOPT_CACHE_DIR": os.environ["FASTOPT_CACHE_DIR"]}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_distribution_steps(kind, distributions, tmp_path):
    python, site_packages = empty_venv(tmp_path / "venv", borrowed())
    pip("--no-deps", "--no-build-isolation", distributions[kind], python=python)
    cache = {} if kind == "wheel" else cache_of_the_tests()
    step_from_read_only(python, [site_packages], tmp_path / "home", **cache)


def test_editable_installation_steps(source, tmp_path):
    python, site_packages = empty_venv(tmp_path / "venv", borrowed())
    pip("--no-deps", "--no-build-isolation", "--editable", source, python=python)
    step_from_read_only(python, [source, site_packages], tmp_path / "home", **cache_of_the_tests())


@pytest.mark.full
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installation_with_its_own_dependencies_steps(kind, distributions, tmp_path):
    python, site_packages = empty_venv(tmp_path / "venv")
    pip(distributions[kind], python=python)
    step_from_read_only(python, [site_packages], tmp_path / "home")
    assert "Usage" in run(python, "-m", "fastopt", "--help", cwd=tmp_path)


def child(code, cwd):
    return run(sys.executable, "-W", "error", "-c", code, cwd=cwd)


def test_import_brings_no_framework_and_nothing_that_draws(tmp_path):
    unwanted = ["rich", "typer", "sklearn", "matplotlib", "torch", "keras", "numba.cuda.cudadrv.driver"]
    code = f"import sys, fastopt; print([name for name in {unwanted} if name in sys.modules])"
    assert child(code, tmp_path) == "[]\n"


def test_import_compiles_nothing(tmp_path):
    code = (
        "from numba.core import event\n"
        "with event.install_recorder('numba:compile') as recorder:\n"
        "    import fastopt\n"
        "print(len(recorder.buffer))"
    )
    assert child(code, tmp_path) == "0\n"


def test_a_checkout_can_be_imported_where_nothing_is_installed():
    """Also where another version is: the folder of the checkout comes first."""
    code = (
        "import sys; sys.meta_path = [each for each in sys.meta_path if 'editable' not in str(each).lower()]\n"
        "import fastopt, fastopt.kernels; print(fastopt.kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "__init__.py"


def test_what_is_public_is_listed():
    code = (
        "import fastopt\n"
        "assert all(not name.startswith('_') or name == '__version__' for name in dir(fastopt)), dir(fastopt)\n"
        "import pydoc, sys; print(len(pydoc.render_doc(fastopt)) > 10_000, {'keras', 'torch'} & sys.modules.keys())"
    )
    assert child(code, ROOT) == "True set()\n"


def test_bare_kernels_is_refused():
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "fastopt.kernels" in done.stderr


def test_version_is_that_of_the_distribution(tmp_path):
    code = "import importlib.metadata, fastopt; print(fastopt.__version__, importlib.metadata.version('fastopt'))"
    assert len(set(child(code, tmp_path).split())) == 1


def test_module_runs_the_command_line(tmp_path):
    assert "Usage" in run(sys.executable, "-m", "fastopt", "--help", cwd=tmp_path)
