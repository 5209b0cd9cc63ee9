"""Everything that needs a GPU, in one go: environment, tests, compute-sanitizer, benchmark. One JSON file comes out.

    make gpu                                  # within 8 minutes, with this machine's own Python, without a network
    python bench/gpu/gpu.py --device cpu --out /tmp    # tries the program out without a GPU

Nothing is installed: the package is laid out in build/gpu as an installation would. A run that is cut short leaves what
it has. Exit status: 0 if every test and every comparison of the benchmark held.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gpu_sanitizer

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
BENCHMARK_SECONDS = 150
"""Kept for the benchmark, whatever the tests take."""

EXECUTED = "executed on the CPU: no figure is a GPU's"
"""What a run without a GPU says of itself."""

TESTS_AT_MOST = 210
WORKERS = 8
SECONDS_PER_TEST = 120


def lay_out(folder):
    """Copy fastopt as it is installed, so that kernels/ is found as fastopt.kernels; the folder for PYTHONPATH."""
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__")
    for source, target in (("fastopt", "fastopt"), ("kernels", "fastopt/kernels")):
        shutil.copytree(ROOT / source, folder / target, ignore=unwanted)
    return folder


def environment(build):
    """Of every process that a run starts."""
    paths = [str(lay_out(build / "package")), str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "FASTOPT_CACHE_DIR": os.environ.get("FASTOPT_CACHE_DIR") or str(build / "cache"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX would take three quarters of the memory
        "PYTHONUNBUFFERED": "1",
    }


class Run:
    """The steps of one run, its result file and its deadline."""

    def __init__(self, device, result, seconds, settings, only):
        self.device, self.result, self.only = device, result, only
        self.settings = settings | {"FASTOPT_GPU_RESULT": str(result.path)}
        self._deadline = time.monotonic() + seconds
        self.commands = []

    def left(self):
        """Seconds until everything has to be over."""
        return max(1.0, self._deadline - time.monotonic())

    def start(self, *arguments, seconds):
        """Run Python on arguments, its output on this terminal; the exit status, None if time ran out."""
        command = [sys.executable, *map(str, arguments)]
        self.note(command)
        try:
            return subprocess.run(command, cwd=ROOT, env=self.settings, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return None

    def note(self, command):
        """Keep a command line for the result."""
        self.commands.append(gpu_sanitizer.shown(command))
        self.result.update(commands=self.commands)


# -- the steps ---------------------------------------------------------------------------------------------------------


def tests(run):
    """tests/gpu; whether all of them passed."""
    arguments = ["-P", "-m", "pytest", "tests/gpu", "-q", "-p", "gpu_report", "-p", "no:cacheprovider"]
    arguments += ["-m", "not full"]
    if importlib.util.find_spec("xdist"):
        workers = min(WORKERS, os.cpu_count() or 1) if run.device == "cuda" else 1  # without a GPU all are skipped
        arguments += ["-n", str(workers), "--dist", "loadgroup"]
    if importlib.util.find_spec("pytest_timeout"):
        arguments += [f"--timeout={SECONDS_PER_TEST}"]
    started = time.monotonic()
    status = run.start(*arguments, seconds=min(TESTS_AT_MOST, max(1.0, run.left() - BENCHMARK_SECONDS)))
    counted = run.result.read().get("tests", {})
    seconds = round(time.monotonic() - started, 1)
    run.result.update(tests=counted | {"exit_status": status, "seconds": seconds})
    nothing_to_run = 5  # pytest's exit status where every module was skipped: right on a CPU, a failure on a GPU
    return status == 0 or (status == nothing_to_run and run.device == "cpu")


def sanitizer(run):
    """compute-sanitizer; whether it found nothing. Where it is missing or refuses, that is noted and no failure."""
    if gpu_sanitizer.program() is None and run.device == "cuda":
        print("compute-sanitizer: not installed", flush=True)
        run.result.update(sanitizer={"status": "not installed"})
        return True
    # First without it: what has to be compiled is compiled then, at full speed.
    plain = run.start(gpu_sanitizer.SMALL, "--device", run.device, seconds=max(1.0, run.left() - BENCHMARK_SECONDS))
    found = {"without": {"exit_status": plain}}
    if run.device == "cpu":  # whose accesses tests/ptx looks at
        run.result.update(sanitizer=found)
        return plain == 0
    for tool, seconds in gpu_sanitizer.SECONDS.items():
        in_time = plain == 0 and run.left() - BENCHMARK_SECONDS > seconds
        found[tool] = gpu_sanitizer.run(tool, seconds, run.settings) if in_time else {"status": "out of time"}
        print(f"compute-sanitizer {tool}: {found[tool]['status']}", flush=True)
        run.result.update(sanitizer=found)
    return plain in (0, None) and all(found[tool]["status"] != "errors" for tool in gpu_sanitizer.SECONDS)


def benchmark(run):
    """The comparison with torch; whether every case that ran computed the same on all sides."""
    script = [BENCH / "gpu_benchmark.py", "--result", run.result.path, "--device", run.device, "--only", run.only]
    if run.device == "cpu":
        script += ["--rounds", "2"]
    seconds = run.left()
    status = run.start(*script, "--seconds", f"{max(1.0, seconds - 30):.0f}", seconds=seconds)
    for target in run.result.read().get("benchmark", {}).get("targets", []):
        print(_verdict(target), flush=True)
    return status == 0


def _verdict(target):
    aim = f"at least {target['at_least']}" if target["below"] is None else f"below {target['below']}"
    if target["met"] is None:
        return f"not measured: {target['target']} ({aim})"
    return f"{'met' if target['met'] else 'NOT MET'}: {target['target']}: {target['measured']:.3g} ({aim})"


STEPS = {"tests": tests, "sanitizer": sanitizer, "benchmark": benchmark}


# -- the run -----------------------------------------------------------------------------------------------------------


def surroundings(device, settings):
    """`gpu_environment`'s report. Ends the program with its sentence where the machine cannot do a step."""
    command = [sys.executable, str(BENCH / "gpu_environment.py"), "--device", device]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        sys.exit(f"make gpu: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def commit():
    """The checkout's commit, or None where there is no repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def new_file(folder, gpu, date):
    """A path that no earlier run has taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", (gpu or "no-gpu").lower()).strip("-")
    names = [f"gpu-{date}-{slug}.json", *(f"gpu-{date}-{slug}-{k}.json" for k in range(2, 100))]
    return next(path for path in (folder / name for name in names) if not path.exists())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BENCH.parent / "results", help="folder of the JSON file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=460, help="for everything")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--only", default="", help="a regular expression: cases of the benchmark")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", help="where the package is laid out")
    arguments = parser.parse_args()
    began = time.monotonic()
    date = datetime.date.today().isoformat()
    settings = environment(arguments.build.resolve())
    sys.path.insert(0, settings["PYTHONPATH"].partition(os.pathsep)[0])
    from fastopt.bench.result import Result  # where nothing is installed, it is there only now

    found = surroundings(arguments.device, settings)
    gpu = found["gpu"] and found["gpu"]["name"]
    result = Result(new_file(arguments.out.resolve(), gpu, date))
    result.update(format=1, date=date, device=arguments.device, commit=commit(), environment=found, finished=False)
    print(f"{gpu or EXECUTED}; results go to {result.path}", flush=True)
    seconds = arguments.seconds - (time.monotonic() - began)
    run = Run(arguments.device, result, seconds, settings, arguments.only)
    held = {step: STEPS[step](run) for step in STEPS if step in arguments.steps}
    seconds = round(time.monotonic() - began, 1)
    result.update(held=held, seconds=seconds, finished=True)
    outcome = ", ".join(f"{step} {'passed' if well else 'FAILED'}" for step, well in held.items())
    print(f"{f'{seconds:.0f} s' if gpu else EXECUTED}; {outcome}")
    sys.exit(not all(held.values()))


if __name__ == "__main__":
    main()
