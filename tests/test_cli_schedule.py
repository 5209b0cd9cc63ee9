"""`fastopt schedule`: what it reads, shows, draws and refuses."""

import csv
import io
import json
import re
import struct
import subprocess
import sys

import pytest
from rows import rows
from typer.testing import CliRunner

from fastopt import schedules
from fastopt.cli import app
from fastopt.cli.curves import MOST_STEPS, examples, natural_steps, spread, telling_steps
from fastopt.cli.runs import UsageError, plan_schedules, read_value, shown_schedule

CONTROL_CODE = re.compile(r"\x1b\[[0-9;]*m")
EVERY_SCHEDULE = [name for name in schedules.__all__ if name[0].isupper() and name != "LearningRateSchedule"]


def run(*arguments):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["schedule", *map(str, arguments)])


def output(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(re.sub(r"[│╭╮╰╯─|+]", " ", CONTROL_CODE.sub("", result.output)).split())


def planned(text, **shared):
    (schedule,) = plan_schedules([text], shared, examples(100))
    return schedule


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_every_schedule_can_be_shown_by_its_name(name):
    shown = output(name.lower())
    assert f"{name}(" in shown
    assert "\x1b" not in shown, "control codes where there is no terminal"
    assert re.search("[▁-█]{8}", shown)
    assert natural_steps(planned(name)) == pytest.approx(100, abs=100)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
@rows("steps", [1, 2, 7, 5000])
def test_the_examples_fit_any_number_of_steps(name, steps):
    (row,) = csv.reader(io.StringIO(output(name, "--steps", steps, "--csv").splitlines()[-1]))
    assert int(row[0]) == steps
    assert 0 <= float(row[1]) <= 0.1


def test_calls_and_names_in_one_table():
    shown = output(
        "CosineDecay(0.01, 1000)", "stepdecay:variant=code", "--epochs-drop=10", "--initial-learning-rate", 0.1
    )
    assert "CosineDecay(0.01, 1000)" in shown
    assert "StepDecay(0.1, 0.5, 10, variant=code)" in shown
    assert "steps 0 to 1,000" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if re.match(r"\s*[\d,]+  +[\d.]", line)}
    assert rows["0"] == ["0.01", "0.1"]
    assert rows["1,000"][0] == "0"


def test_both_variants_of_step_decay_differ_where_they_drop():
    both = [planned(f"stepdecay:variant={variant}", epochs_drop="10") for variant in ("formula", "code")]
    assert telling_steps(both, 25) == [0, 9, 10, 19, 20, 25]
    shown = output("stepdecay:variant=formula", "stepdecay:variant=code", "--epochs-drop", 10)
    assert re.search(r"^ +9 +0\.1 +0\.05 *$", shown, re.MULTILINE)


def test_a_schedule_that_always_changes_is_shown_at_even_steps():
    assert telling_steps([planned("CosineDecay(0.1, 1000)")], 1000) == list(range(0, 1001, 100))
    assert spread(3, 11) == [0, 1, 2, 3]
    assert len(spread(10**12, 4000)) == 4000


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("CosineDecay(0.01, 1000)", 1000),
        ("WarmupStableDecay(0.1, 10, 20, 30)", 60),
        ("LinearWarmup(CosineDecay(0.1, 90), 10)", 100),
        ("Chain([0.1, CosineDecay(0.1, 50)], [10])", 60),
        ("PiecewiseConstantDecay([30], [0.1, 0.2])", 40),
        ("CosineDecayRestarts(0.1, 10, t_mul=2.0)", 70),
        ("StepDecay(0.1, 0.5, 10, steps_per_epoch=5)", 200),
        ("TimeBasedDecay(0.1, 0.5)", 0),
    ],
)
def test_natural_length(text, steps):
    assert natural_steps(planned(text)) == steps


def test_csv_holds_every_step():
    rows = list(csv.reader(io.StringIO(output("OneCycle(0.1, 40)", "CosineDecay(0.1, 40)", "--csv"))))
    assert rows[0] == ["step", "OneCycle(0.1, 40)", "CosineDecay(0.1, 40)"]
    for step, row in enumerate(rows[1:]):
        assert row[0] == str(step)
        assert float(row[1]) == schedules.OneCycle(0.1, 40)(step)
    assert len(rows) == 42


def test_json_describes_the_schedules():
    found = json.loads(output("Chain([LinearWarmup(0.1, 5), 0.05], [9])", "--steps", 20, "--json"))
    assert found["steps"] == 21
    (described,) = found["schedules"]
    schedule = schedules.deserialize(described)
    assert schedule == schedules.Chain([schedules.LinearWarmup(0.1, 5), 0.05], [9])
    assert described["rates"] == [schedule(step) for step in range(21)]


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.LinearWarmup(schedules.CosineDecay(0.1, 1000, alpha=0.5), 10),
        schedules.Chain([0.1, schedules.PiecewiseConstantDecay([5], [0.5, 0.25])], [7]),
        schedules.OneCycle(0.1, 50, three_phase=True),
    ],
)
def test_what_is_shown_can_be_typed(schedule):
    assert planned(shown_schedule(schedule)) == schedule


def test_picture(tmp_path):
    path = tmp_path / "made" / "rates.png"
    output("CosineDecay(0.1, 100000)", "stepdecay", "--plot", path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 < width < 4000
    assert 500 < height < 3000
    assert 10_000 < len(content) < 1_000_000


@rows(
    ("arguments", "message"),
    [
        ([], "name a schedule, before any flags: ExponentialDecay, PiecewiseConstantDecay"),
        (["--decay-steps", "5"], "name a schedule, before any flags"),
        (["cosine"], "unknown learning rate schedule 'cosine'; known are Chain, CosineDecay"),
        (["Cosine(0.1, 5)"], "unknown learning rate schedule 'Cosine'"),
        (["CosineDecay(0.1)"], "'decay_steps'"),
        (["CosineDecay(0.1, 5"], "CosineDecay(0.1, 5: '(' was never closed"),
        (["CosineDecay[0.1, 5"], "CosineDecay[0.1, 5: '[' was never closed"),
        (["Chain([CosineDecay(0.1, 5], [3])"], "']' closes nothing"),
        (["stepdecay:variant=(code"], "stepdecay:variant=(code: '(' was never closed"),
        (["CosineDecay(0.1, 5) junk"], "invalid syntax"),
        (["CosineDecay(-0.1, 5)"], "CosineDecay(-0.1, 5) has a negative rate at step 0, -0.1"),
        (["PolynomialDecay(0.1, 50, -0.1)"], "has a negative rate at step 26"),
        (["cosinedecay", "--lr"], "CosineDecay has no --lr, did you mean --initial-learning-rate?"),
        (["cosinedecay", "--initial-learning-rate"], "--initial-learning-rate needs a value"),
        (["cosinedecay", "--initial-learning-rate", "-1"], "--initial-learning-rate must not be negative"),
        ([f"CosineDecay(0.1, {10**400})"], "int too large to convert to float"),
        (["CosineDecay(0.1, 1e12)", "--csv"], "choose --steps of at most 10,000,000"),
        (["CosineDecay(0.1, 0)"], "decay_steps must be > 0"),
        (["CosineDecay(open('x'), 5)"], "unknown learning rate schedule 'open'"),
        (["cosinedecay", "--decay-steps", "0"], "CosineDecay: decay_steps must be > 0, got 0"),
        (["cosinedecay", "--decay-step", "5"], "CosineDecay has no --decay-step, did you mean --decay-steps?"),
        (["cosinedecay", "--decay-steps"], "--decay-steps needs a value"),
        (["stepdecay:variant=Code"], "variant must be 'formula' or 'code', got 'Code'"),
        (["CosineDecay(0.1, 5)", "--alpha", "0.5"], "--alpha goes to schedules given by name, and there is none"),
        (["cosinedecay", "--alpha", "0.5", "stray"], "'stray' belongs to no flag"),
        (["ExponentialDecay(1.0, 1, 1e10)", "--steps", "99"], "has no rate at step 31"),
        (["onecycle", "--steps", "0"], "--steps"),
        (["onecycle", "--csv", "--json"], "exclude each other"),
        (["onecycle", "--plot", "rates.txt"], "ends in .png"),
    ],
)
def test_refusals_explain_themselves(arguments, message):
    assert message in refusal(*arguments)


def test_schedules_that_take_for_ever_can_be_shown():
    for text in ("CosineDecay(0.1, 1e300)", "cosinedecayrestarts:t_mul=1e200"):
        assert natural_steps(planned(text)) == MOST_STEPS
    assert "1.000e+15" in output("CosineDecay(0.1, 1e300)")


def test_brackets_in_quotes_do_not_count():
    """As Python reads a list."""
    assert read_value("['a(', \"b]\"]") == ["a(", "b]"]
    assert read_value("it's") == "it's"


def test_says_how_to_get_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("onecycle", "--plot", tmp_path / "rates.png")
    assert result.exit_code == 1
    assert result.output.splitlines() == ['This needs matplotlib: pip install "fastopt[demo]"']
    output("onecycle")


def test_needs_matplotlib_for_pictures_only():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = sys.modules['sklearn'] = None\n"
        "sys.argv = ['fastopt', 'schedule', 'onecycle', '--csv']\n"
        "from fastopt.cli import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith('step,"OneCycle(0.1, 100)"\n0,0.004')


def test_arguments_of_one_schedule_come_before_those_of_all():
    first, second = plan_schedules(["cosinedecay:alpha=0.5", "CosineDecay"], {"alpha": "0.25"}, examples(100))
    assert (first.alpha, second.alpha) == (0.5, 0.25)
    with pytest.raises(UsageError, match="no --variant"):
        plan_schedules(["stepdecay", "cosinedecay"], {"variant": "code"}, examples(100))
