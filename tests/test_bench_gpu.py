"""`make gpu` where there is no GPU: compiled kernels are executed on the CPU, at small sizes."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_driver import remove

from fastopt.bench.cases import Case
from fastopt.bench.result import Result

BENCH = Path(__file__).parent.parent / "bench" / "gpu"
CASES = "/1e4/|(adam|adamw)/.*gpt2"
EXECUTED = "executed on the CPU: no figure is a GPU's"

pytestmark = [
    pytest.mark.xdist_group("bench gpu"),
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package here"),
]


def run(*arguments, **environment):
    """bench/gpu/gpu.py in a process of its own."""
    command = [sys.executable, BENCH / "gpu.py", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What a run on the CPU leaves, and the terminal's output."""
    folder = tmp_path_factory.mktemp("gpu")
    steps = "--steps", "tests", "benchmark"
    done = run("--device", "cpu", "--out", folder, "--build", folder / "build", "--only", CASES, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.json")
    assert path.name.endswith("-no-gpu.json")
    return json.loads(path.read_text()) | {"output": done.stdout}


def test_says_what_it_ran_on(result):
    assert result["finished"]
    assert result["format"] == 1
    assert result["environment"]["gpu"] is None
    assert {"python", "numpy", "numba", "torch", "fastopt"} <= result["environment"]["versions"].keys()
    for program in ("-m pytest tests/gpu", "bench/gpu/gpu_benchmark.py --result"):
        assert sum(program in command for command in result["commands"]) == 1


def test_counts_the_tests(result):
    counted = result["tests"]
    assert counted["finished"]
    assert counted["failed"] == 0
    assert counted["skipped"] + counted["passed"] > 0
    assert counted["passed"] or all("GPU" in reason for reason in counted["reasons"])


def test_compares_every_recipe_with_its_peers(result):
    cases = result["benchmark"]["cases"]
    assert {name.split("/")[0] for name in cases} == {"adam", "adamw", "sgd-momentum", "lion", "lamb"}
    for name, case in cases.items():
        assert case["sides"].keys() - {"fastopt"} == case["ratios"].keys() == expected_peers(name), name
        assert case["fraction_of_copy"] > 0, name
        for side in case["sides"].values():
            assert side["kernel_us"] > 0 and side["wall_us"] > 0, name


def expected_peers(name):
    if name.startswith(("lion", "lamb")):
        return set()
    return {"torch fused", "torch, flat copies"} if "gpt2" in name else {"torch fused"}


def test_nothing_is_said_of_a_gpu(result):
    *_, last = lines = result["output"].splitlines()
    assert EXECUTED in lines[0] and last == f"{EXECUTED}; tests passed, benchmark passed"
    assert result["benchmark"]["note"] == EXECUTED
    assert sum(f"all sides agree; {EXECUTED}" in line for line in lines) == len(result["benchmark"]["cases"])
    assert not any("µs" in line or " bandwidth; " in line for line in lines)
    assert [target["met"] for target in result["benchmark"]["targets"]] == [None] * 4


def test_judges_every_target(result, bench):
    """As if they had been measured on a GPU."""
    cases = result["benchmark"]["cases"]
    cases["adam/float32/1e9/plain/cuda"] = cases["adam/float32/gpt2/plain/cuda"]
    targets = bench.benchmark.targets(cases)
    assert [target["at_least"] or target["below"] for target in targets] == [0.92, 1.0, 1.5, 15.0]
    assert all(isinstance(target["met"], bool) for target in targets)


def test_without_a_gpu_one_sentence(tmp_path):
    done = run("--out", tmp_path / "out", "--build", tmp_path / "build", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("make gpu: ")
    assert "GPU" in sentence
    assert not (tmp_path / "out").exists()


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    import gpu_benchmark
    import gpu_executor
    import gpu_sanitizer

    class Modules:
        program, benchmark, executor, sanitizer = gpu, gpu_benchmark, gpu_executor, gpu_sanitizer

    return Modules


@pytest.fixture
def machine(bench, monkeypatch):
    """The executor."""
    executor = bench.executor.Executor(monkeypatch)
    yield executor
    remove(executor.driver)


def attempt(bench, machine, seconds=60.0, captured=False):
    return bench.benchmark.attempt(machine, Case("adam", "1e3"), captured, 1, time.monotonic() + seconds)


def wrong(monkeypatch, bench, name):
    """Let one function of torch's side do nothing."""
    monkeypatch.setattr(bench.benchmark.Fused, name, lambda *arguments: None)


def test_sides_that_disagree_are_not_timed(bench, machine, monkeypatch):
    wrong(monkeypatch, bench, "step")
    assert "disagree" in attempt(bench, machine)["error"]


def test_graphs_that_disagree_are_not_timed(bench, machine, monkeypatch):
    monkeypatch.setattr(bench.benchmark, "check", lambda problem, sides: None)
    wrong(monkeypatch, bench, "step")
    assert "captured graphs of fastopt and torch disagree" in attempt(bench, machine, captured=True)["error"]


def test_a_case_after_the_deadline_is_skipped(bench, machine):
    assert attempt(bench, machine, seconds=-1)["skipped"] == "out of time"


def test_a_case_that_does_not_fit_is_skipped(bench, machine, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda: 1000)
    assert "memory" in attempt(bench, machine)["skipped"]


def test_targets_without_figures_are_open(bench):
    assert {target["met"] for target in bench.benchmark.targets({"adam/float32/1e9/plain/cuda": {"error": "…"}})} == {
        None
    }


def test_bytes_of_the_largest_case_fit_the_gpus_they_are_meant_for(bench):
    needed = [
        bench.benchmark.bytes_needed(case) for name, case, _ in bench.benchmark.listed(small=False) if "1e9" in name
    ]
    assert 36e9 <= needed[0] <= max(needed) < 80e9


def test_results_are_kept_section_by_section(tmp_path):
    kept = Result(tmp_path / "folder" / "result.json")
    kept.update(one=1, two=2)
    kept.update(two=3)
    assert kept.read() == {"one": 1, "two": 3}
    assert [path.name for path in kept.path.parent.iterdir()] == ["result.json"]


def test_no_run_overwrites_another(bench, tmp_path):
    first = bench.program.new_file(tmp_path, "NVIDIA H200", "2026-11-21")
    assert first.name == "gpu-2026-11-21-nvidia-h200.json"
    first.touch()
    assert bench.program.new_file(tmp_path, "NVIDIA H200", "2026-11-21").name == "gpu-2026-11-21-nvidia-h200-2.json"


SANITIZER = """#!/bin/sh
case "$*" in *--probe*) echo "$PROBE_SAYS"; exit $PROBE_STATUS;; esac
echo "========= ERROR SUMMARY: $ERRORS errors"
exit $STATUS
"""


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    "settings, status",
    [
        ({"PROBE_STATUS": "1", "PROBE_SAYS": "Device not supported"}, "refused"),
        ({"PROBE_STATUS": "0", "ERRORS": "0", "STATUS": "0"}, "clean"),
        ({"PROBE_STATUS": "0", "ERRORS": "3", "STATUS": "86"}, "errors"),
    ],
)
def test_what_a_sanitizer_says(bench, monkeypatch, tmp_path, settings, status):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setattr(bench.sanitizer, "program", lambda: str(tool))
    found = bench.sanitizer.run("memcheck", 20, os.environ | settings)
    assert found["status"] == status
    assert found["output"].strip()


OTHERS_THAN_ADAM = ["SGD", "Lamb", "Adafactor", "Muon"]


@pytest.mark.parametrize("without", [OTHERS_THAN_ADAM, pytest.param([], marks=pytest.mark.full)], ids=["Adam", "all"])
def test_what_the_sanitizer_runs_is_right_itself(without, tmp_path):
    command = [sys.executable, BENCH / "gpu_small.py", "--device", "cpu"]
    command += [f"--without={name}" for name in without]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as on the CPU" in done.stdout
