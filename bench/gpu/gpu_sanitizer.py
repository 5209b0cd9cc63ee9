"""compute-sanitizer over a small run of every kind of kernel, where the tool is there and works."""

import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
SMALL = str(Path(__file__).with_name("gpu_small.py"))
TOOLS = {"memcheck": [], "racecheck": ["--without", "Muon"]}
"""Tool → arguments of the small run: races within cuBLAS, which multiplies Muon's matrices, are none of ours."""

SECONDS = {"memcheck": 70, "racecheck": 60}
FOUND = 86  # the exit status that the tool is to give where it found something
TAIL = 2000


def shown(command):
    """A command line, without where this machine keeps Python and the checkout."""
    parts = ("python3" if part == sys.executable else str(part) for part in command)
    return " ".join(parts).replace(ROOT + os.sep, "")


def program():
    """Path of the tool, or None."""
    installed = sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (installed[-1] if installed else None)


def command(tool, *arguments):
    """Of one run. Calls that torch makes and expects to fail are none of our errors."""
    options = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", str(FOUND)]
    return [program(), *options, sys.executable, SMALL, *arguments]


def run(tool, seconds, environment):
    """What one tool, which is installed, found: status "clean", "errors", "out of time"; or "refused": no use here."""
    # Every tensor an allocation of its own: within torch's pools no access would be out of bounds.
    environment = environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        probe = _output(command(tool, "--probe"), seconds / 3, environment)
        if probe.returncode != 0:
            return {"status": "refused", "output": probe.stdout[-TAIL:]}
        started = command(tool, *TOOLS[tool])
        done = _output(started, seconds * 2 / 3, environment)
    except subprocess.TimeoutExpired:
        return {"status": "out of time", "seconds": seconds}
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", done.stdout)
    return {
        "status": "errors" if done.returncode else "clean",
        "command": shown(started),
        "summary": summary,
        "output": done.stdout[-TAIL:],
    }


def _output(arguments, seconds, environment):
    return subprocess.run(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )
