"""What benchmarks show: `fastopt bench`, and docs/performance.md."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastopt.bench import measurement
from fastopt.bench.cases import Case
from fastopt.bench.measurement import ENOUGH, Measurement
from fastopt.bench.outcome import BUSY_STATUS, BusyError, Outcome, read_outcome
from fastopt.bench.peers import PEERS
from fastopt.bench.ratios import Ratio
from fastopt.bench.recipes import RECIPES
from fastopt.cli import app
from fastopt.cli.bench_report import show
from fastopt.cli.report import make_console

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.xdist_group("bench")


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(autouse=True)
def busy(monkeypatch):
    """Whatever else runs on this machine, figures are shown; ``busy(reasons)``: as if others disturbed cases so."""
    found = iter([])
    monkeypatch.setattr(measurement, "disturbance", lambda times, share: next(found, None))

    def disturb(*reasons):
        nonlocal found
        found = iter(reasons)

    return disturb


QUICKLY = ("--model", "1e3", "--seconds", "0.1", "--peers", "numpy")

# -- fastopt bench -----------------------------------------------------------------------------------------------------


def test_a_table(tmp_path):
    result = run("adam", "SGD-momentum", *QUICKLY, "--plot", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert re.search(r"adam/float32/1e3/plain +28 ", result.stdout)
    assert re.search(r"sgd-momentum/float32/1e3/plain +20 ", result.stdout)
    assert "NumPy" in result.stdout and "geometric mean" in result.stdout
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_disturbed_has_no_figures_and_a_status_of_its_own(busy):
    busy("somebody sang", None)
    result = run("sgd", "lion", *QUICKLY)
    assert result.exit_code == BUSY_STATUS
    assert "sgd/float32/1e3/plain/cpu: not measured: the machine was busy: somebody sang" in result.stdout
    assert "1 of 2 cases not measured: run them again" in result.stdout
    assert not re.search(r"sgd/float32/1e3/plain +\d", result.stdout)
    assert re.search(r"lion/float32/1e3/plain +20 ", result.stdout)


def test_what_was_disturbed_is_left_out_of_the_mean(capsys):
    calm = outcome(Case("adamw", "gpt2"), 2.0)
    show(make_console(), [calm], {"adam/float32/1e3/plain/cpu": str(BusyError("somebody sang"))})
    assert "geometric mean of the speed-ups over the fastest peer of each case: 2.00" in capsys.readouterr().out


def test_a_failure_counts_for_more_than_a_disturbance(busy):
    busy("somebody sang")
    result = run("sgd", "--model", "1e11", *QUICKLY)
    assert result.exit_code == 1
    assert "GB of memory" in result.output and "somebody sang" in result.output


def test_json_of_what_was_disturbed(busy):
    busy("somebody sang")
    result = run("sgd", *QUICKLY, "--json")
    assert result.exit_code == BUSY_STATUS
    content = json.loads(result.stdout)
    assert content["cases"] == []
    assert content["not_measured"] == {"sgd/float32/1e3/plain/cpu": str(BusyError("somebody sang"))}


def test_json_and_nothing_else():
    result = run("lion", *QUICKLY[:-1], "none", "--stack", "clip-ema", "--dtype", "float64", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    (case,) = content["cases"]
    assert case["id"] == "lion/float64/1e3/clip-ema/cpu"
    assert case["ceiling_fraction"] > 0 and case["peer"] is None and case["speedups"] == {}
    assert content["surroundings"]["versions"]["numpy"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["adamm"], "no case is called 'adamm'; there are sgd"),
        (["--model", "gpt3"], "--model takes a number of elements, or gpt2"),
        (["--model", "nan"], "--model takes"),
        (["--peers", "pytorch"], "no peer is called 'pytorch'; there are torch fused"),
        (["--plot", "out.doc"], "--plot takes a file that ends in"),
    ],
)
def test_what_is_refused(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", result.output).split())


def test_a_case_that_does_not_fit_fails_and_the_others_go_on():
    result = run("sgd", "--model", "1e11", *QUICKLY)
    assert result.exit_code == 1
    assert "GB of memory" in result.output
    assert "sgd/float32/1e3/plain" in result.stdout


# -- docs/performance.md -----------------------------------------------------------------------------------------------


@pytest.fixture
def performance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import performance

    yield performance
    sys.modules.pop("performance")


@pytest.fixture
def readme(tmp_path):
    return Path(shutil.copy(ROOT / "README.md", tmp_path / "README.md"))


def outcome(case, speedup):
    return Outcome(
        case, 1e-3, 28, Ratio(0.9, 0.88, 0.95), {"NumPy": Ratio(speedup, speedup, speedup)}, {"optax": "gone"}
    )


def recorded():
    outcomes = [outcome(Case(recipe, "3.2e7"), 2.0) for recipe in RECIPES]
    outcomes += [outcome(Case("adamw", "gpt2", stack="clip"), 0.5)]
    return {
        "format": 1,
        "date": "2026-01-02",
        "surroundings": {"processor": "a processor", "threads": 2, "versions": {"numpy": "2.0"}},
        "cases": [each.to_json() for each in outcomes],
        "scaling": {
            "size": [{"elements": 10, "cost": 1.0, "ceiling_fraction": 0.5}],
            "tensors": [{"tensors": 1000, "cost": 1.0}],
            "groups": [{"groups": 1, "cost": 1.0}],
        },
        "start": {"import": 0.5, "first_step_warm": 1.0, "first_step_cold": 9.0},
        "keras": [{"optimizer": "Adam", "options": "", "model": "mlp", "speedup": 9.0, "interval": [8.0, 10.0]}],
        "torch": [
            {"case": "adamw/1e6", "peer": "torch fused", "speedups": [1, 1.1, 1.2], "cold_shares": {"flat": 0.5}}
        ],
        "functions": {"gelu/forward": {"out=": [1.5, 1.4, 1.6], "new": [1.25, 1.2, 1.3]}},
    }


def test_outcomes_are_read_as_they_were_written():
    found = outcome(Case("adamw", "gpt2", stack="clip"), 0.5)
    assert read_outcome(json.loads(json.dumps(found.to_json()))) == found


def test_the_page_says_everything(performance, readme, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cpu.json").write_text(json.dumps(recorded()))
    performance.write(tmp_path / "results", tmp_path / "docs", readme)
    page = (tmp_path / "docs" / "performance.md").read_text()
    for said in (
        "a processor",
        "2026-01-02",
        "numpy 2.0",
        "`make bench-results`",
        "`muon/float32/3.2e7/plain`",
        "Without optax",
        "| `gelu/forward` | 1.50 (1.40–1.60) | 1.25 (1.20–1.30) |",
    ):
        assert said in page, said
    for heading in (
        "How it scales",
        "What a new process waits for",
        "Inside Keras",
        "fastopt.torch",
        "Losses",
        "On a GPU",
    ):
        assert f"## {heading}" in page
    assert "- `adamw/float32/gpt2/clip/cpu`: NumPy, 0.50" in page, "it does not say where a peer is faster"
    assert "No GPU figures yet" in page
    for picture in re.findall(r"\]\((performance/.*?)\)", page):
        assert (tmp_path / "docs" / picture).read_bytes().startswith(b"\x89PNG")
    shown = readme.read_text()
    assert "docs/performance/large.png" in shown and "a processor" in shown
    assert "ran at 0.90 to 0.90 of the ceiling" in shown
    assert shown.count(performance.START) == shown.count(performance.END) == 1
    performance.write(tmp_path / "results", tmp_path / "docs", readme)
    assert readme.read_text() == shown, "a second run changes something"


def test_the_peers_that_make_bench_leaves_out_are_not_the_fastest():
    content = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    large = [found for found in map(read_outcome, content["cases"]) if found.case.is_large]
    more = [found for found in large if len(found.speedups) > ENOUGH]
    assert len(more) > 15
    for found in more:
        first = [found.speedups[name].value for name in PEERS if name in found.speedups][:ENOUGH]
        level = 1.1 if found.case.recipe == "sgd" else 1.0  # one addition in place: five peers take as long
        assert min(first) <= level * found.speedup.value, found.case.id


def test_without_results_the_page_says_so_and_the_readme_stays(performance, readme, tmp_path):
    (tmp_path / "results").mkdir()
    performance.write(tmp_path / "results", tmp_path / "docs", readme)
    assert "No CPU figures yet" in (tmp_path / "docs" / "performance.md").read_text()
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_gpu_runs_are_shown(performance, readme, tmp_path):
    side = {"kernel_us": 1.0, "wall_us": 2.0}
    ratios = {"torch fused": {"kernel": 1.5, "wall": 1.25}}
    case = {"sides": {"fastopt": side, "torch fused": side}, "ratios": ratios, "fraction_of_copy": 0.93}
    run = {
        "date": "2026-01-02",
        "environment": {"gpu": {"name": "a GPU"}, "versions": {"torch": "2.13.0"}},
        "benchmark": {"cases": {"Adam, 1e6": case, "Adam, 1e9": {"skipped": "out of time"}}},
    }
    (tmp_path / "gpu-2026-01-02-a-gpu.json").write_text(json.dumps(run))
    performance.write(tmp_path, tmp_path / "docs", readme)
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "a GPU, 2026-01-02, torch 2.13.0" in page
    assert "| Adam, 1e6 | 0.93 | torch fused 1.50 / 1.25 |" in page
    assert "1e9" not in page


def test_the_page_in_the_repository_is_made_from_its_results(performance, readme, tmp_path):
    performance.write(ROOT / "bench" / "results", tmp_path / "docs", readme)
    assert (tmp_path / "docs" / "performance.md").read_text() == (ROOT / "docs" / "performance.md").read_text()
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_a_measurement_can_be_repeated():
    measurement = Measurement(Case("adam", "1e3"), [])
    for _ in range(2):
        contest = measurement.contest(0.05)
        contest.play()
        assert measurement.outcome(contest).ceiling_fraction.value > 0
