"""What a person sees of the command line, whatever the terminal: its width, its characters, and Ctrl-C."""

import os
import re
import subprocess
import sys

import pytest
from terminal import PTY, run, screen
from typer.testing import CliRunner

from fastopt.bench.cases import Case
from fastopt.bench.outcome import Outcome
from fastopt.bench.peers import PEERS
from fastopt.bench.ratios import Ratio
from fastopt.cli import app
from fastopt.cli.bench_report import show
from fastopt.cli.characters import STAND_INS, _stand_in
from fastopt.cli.report import make_console
from fastopt.cli.runs import read_schedule

SCHEDULES = ["WarmupStableDecay(0.1, 10, 20, 30)", "CosineDecay(0.01, 1000)", "OneCycle(0.01, 1000)"]


def shown(width, *arguments):
    """What a command prints where there is so much room."""
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


# -- width -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_schedules_keep_their_names_and_figures(width):
    """The figures are those of the schedules' own calls, to four digits."""
    output = shown(width, "schedule", *SCHEDULES)
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= width
    words = set(output.replace("(", " ").replace(")", " ").replace(",", " ").split())
    for text in SCHEDULES:
        schedule = read_schedule(text)
        assert {f"{schedule(step):.4g}" for step in range(0, 1001, 100)} <= words
        assert {f"{max(map(schedule, range(1001))):.4g}", f"{min(map(schedule, range(1001))):.4g}"} <= words
        assert set(re.findall(r"[\w.]+", text)) <= words


def test_more_schedules_than_there_is_room_for_take_more_tables():
    output = shown(40, "schedule", *SCHEDULES, *SCHEDULES)
    heads = [line.split() for line in output.splitlines() if line.split()[:1] == ["step"]]
    assert len(heads) > 1
    assert [number for head in heads for number in head[1:]] == list("123456")
    assert max(map(len, output.splitlines())) <= 40


def test_a_pipe_is_as_wide_as_the_table():
    command = [sys.executable, "-m", "fastopt", "schedule", *SCHEDULES, "Chain([0.1, CosineDecay(0.1, 50)], [10])"]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONIOENCODING": "utf-8"}
    output = subprocess.run(command, capture_output=True, check=True, env=environment).stdout.decode()
    for text in SCHEDULES:
        assert len(re.findall(re.escape(text), output)) == 2, "not one row and one column"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_comparisons_keep_their_figures(width):
    output = shown(width, "train", "--epochs", 1, "--hidden", "none", "--compare", "sgd:learning_rate=0.0123,adam")
    table = output[output.index("steps/s", output.rindex("epoch 1/1")) + len("steps/s") :]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width
    reached = re.findall(r"loss (\S+)  accuracy (\S+) train (\S+) test", output)
    assert len(reached) == 2
    assert {figure for figures in reached for figure in figures} <= set(table.split())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_benchmarks_keep_their_figures(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    speedups = {name: Ratio(1.25 + k, 1.0, 9.0) for k, name in enumerate(PEERS)}
    found = [Outcome(Case("adamw", "gpt2"), 1.0, 28, Ratio(0.97, 0.9, 1.0), speedups, {})]
    show(make_console(), found, {})
    output = capsys.readouterr().out
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= width
    assert {"28", "3.48", "0.97", *(f"{ratio.value:.3g}" for ratio in speedups.values())} <= set(output.split())


# -- characters --------------------------------------------------------------------------------------------------------

COMMANDS = (
    ["info"], ["schedule", "onecycle"], ["schedule", "cosinedecay:name=é", "--csv", "--steps", "2"], ["schedule", "é…"],
    ["train", "--help"], ["train", "--lr"], ["train", "--epochs", "1", "--hidden", "none"],
    ["bench", "sgd", "--model", "1e3", "--peers", "none", "--seconds", "0.1"],
)  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "koi8-r", "utf-8", None])
def test_every_command_degrades(encoding):
    """Python's codec of the encoding judges. None: the locale C, without Python's ways around it."""
    code = (
        "import sys; from fastopt.bench import measurement; measurement.disturbance = lambda *rounds: None\n"
        "from fastopt.cli import main\n"
        f"for arguments in {COMMANDS!a}:\n"
        "    sys.argv = ['fastopt', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: print('status', end.code)"
    )
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = os.environ | (plain if encoding is None else {"PYTHONIOENCODING": encoding})
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    output, errors = (stream.decode(encoding or "ascii") for stream in (result.stdout, result.stderr))
    assert result.returncode == 0, errors
    assert "Traceback" not in errors
    assert re.findall(r"^status (\d)", output, re.MULTILINE) == list("00020200")
    assert bool(re.search("[▁-█]{8}", output)) == (encoding == "utf-8")
    assert bool(re.search("[_.:=+*#-]{20}", output.partition("steps 0 to 100")[2][:500])) == (encoding != "utf-8")


def test_stand_ins_are_ascii_and_as_wide():
    for character in [*map(chr, STAND_INS), *"─│┌━╸┃╭█▁⠋"]:
        assert len(_stand_in(character)) == 1
        assert _stand_in(character).isascii()
    assert _stand_in("é") == r"\xe9"


# -- terminals ---------------------------------------------------------------------------------------------------------


@PTY
@pytest.mark.parametrize("width", [40, 80, 120])
def test_ctrl_c_leaves_the_live_line_once(width):
    """A terminal echoes ^C where the cursor is: at the end of the line, which must not overflow."""
    status, output = run("train", "--epochs", "100000", width=width, press=b"\x03", when="accuracy")
    assert status == 130, output
    assert "^C" in output
    seen = screen(output, width)
    assert sum("━" in line for line in seen) == 1, seen
    assert not any("^C" in line or "…" in line[9:] for line in seen), seen
    assert re.fullmatch(r"test accuracy \d\.\d{4}", [line for line in seen if line][-1])


@PTY
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}])
def test_terminals_that_can_do_less(environment):
    """NO_COLOR takes colours (no-color.org), TERM=dumb all control codes."""
    status, output = run("train", "--epochs", "2", "--hidden", "none", **environment)
    assert status == 0, output
    codes = re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]", output)
    if "TERM" in environment:
        assert codes == []
    if "NO_COLOR" in environment:
        assert not any(re.fullmatch(r"\x1b\[(?:[\d;]*;)?[349][0-7](;[\d;]*)?m", code) for code in codes)
    if "PYTHONIOENCODING" in environment:
        assert output.isascii()
    assert "test accuracy" in output


def test_the_screen_of_these_tests_is_a_terminal():
    """By hand: the two ways of erasing, a line that overflows, a line that is written over."""
    assert screen("ab\r\x1b[2Kc\r\nd^C\r\x1b[1Ax", 80) == ["x", "d^C"]
    assert screen("abcd^C\r\x1b[2Ke", 4) == ["abcd", "e"]
    assert screen("abc\rd\x1b[K", 80) == ["d"]


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["train"], ["schedule"], ["warmup"], ["bench"], ["info"]])
def test_flags_take_nothing_and_look_so(command):
    output = CliRunner(env={"COLUMNS": "120"}).invoke(app, [*command, "--help"]).stdout
    assert "<bool>" not in output and "BOOLEAN" not in output
    assert re.search(r"--help +Show this message", output)
