"""examples/resume.py, killed and started again, ends with the bits of a run that nothing ended."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
EXAMPLE = Path(__file__).parents[1] / "examples" / "resume.py"


def begin(path, *options):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(EXAMPLE), str(path), "--epochs=5", "--every=1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    whole, errors = begin(tmp_path / "whole").communicate(timeout=180)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", whole)]
    assert len(losses) == 5 and losses[-1] < losses[0] / 2, errors
    rng, kills, went_on = random.Random(0), 0, set()
    while True:
        child = begin(tmp_path / "run")
        if kills < 2:
            end = time.monotonic() + 120
            before = (tmp_path / "run").stat().st_ino if (tmp_path / "run").exists() else None
            while child.poll() is None and time.monotonic() < end:
                if (tmp_path / "run").exists() and (tmp_path / "run").stat().st_ino != before:
                    break  # it trains, and saves
                time.sleep(0.005)
            time.sleep(rng.random() * 0.2)
            child.kill()
            kills += 1
        output, errors = child.communicate(timeout=180)
        went_on |= set(re.findall(r"going on at (.*)", output))
        assert "Error" not in errors, errors
        if "bits" in output:
            break
    assert re.search("bits (.*)", output)[1] == re.search("bits (.*)", whole)[1]
    assert went_on and np.all([file.name.startswith(("run", "whole")) for file in tmp_path.iterdir()])
