"""The command line: what it prints, draws and refuses, and the network that it trains."""

import json
import os
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import table
from rows import rows
from typer.testing import CliRunner

import fastopt
from fastopt import schedules
from fastopt.cli import app
from fastopt.cli.data import load_digits
from fastopt.cli.info import _cuda, collect
from fastopt.cli.mlp import Perceptron
from fastopt.cli.objective import Objective
from fastopt.cli.runs import UsageError, offered, plan_comparison, plan_run, read_flags, read_value
from fastopt.cli.training import Settings, Training, Watch
from fastopt.cli.warmup import variants

LAST_LINE = re.compile(r"test accuracy (\d\.\d{4})")
CONTROL_CODE = re.compile(r"\x1b\[[0-9;]*m")
EVERY_OPTIMIZER = list(table.RATES)


def run(*arguments):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


def accuracy(result):
    """The figure in the last line of a command that went well."""
    assert result.exit_code == 0, result.output
    last = LAST_LINE.fullmatch(result.stdout.splitlines()[-1])
    assert last, result.stdout
    return float(last[1])


def refusal(result):
    """The message of a command that was refused, without the frame around it."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(re.sub(r"[│╭╮╰╯─|+]", " ", CONTROL_CODE.sub("", result.output)).split())


def child(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **options).stdout


@pytest.fixture(scope="module")
def digits():
    return load_digits(np.dtype(np.float32))


@pytest.fixture
def fit(digits):
    """Train by the functions behind the command."""

    def fit(name, stopped=lambda: False, typed=None, **settings):
        training = Training(plan_run(name, typed or {}), Settings(**settings), digits)
        training.prepare()
        training.fit(Watch(), stopped)
        return training

    return fit


# -- fastopt train -----------------------------------------------------------------------------------------------------


def test_defaults_train_well():
    result = run("train")
    assert accuracy(result) >= 0.96
    assert "\x1b" not in result.stdout, "control codes where there is no terminal"
    assert "Adam learning_rate=0.001" in result.stdout
    assert "17,226" in result.stdout


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_trains_well(seed, fit):
    assert fit("adam", seed=seed).history[-1].test_accuracy >= 0.96


def test_every_optimizer_is_offered():
    assert set(EVERY_OPTIMIZER) <= set(offered())
    assert "LossScaleOptimizer" not in offered()


@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_every_optimizer_learns(name, fit):
    training = fit(name.lower(), epochs=2)
    before, *_, after = training.history
    assert after.train_loss < 0.9 * before.train_loss
    assert training.steps == 2 * 45
    assert 0 < training.optimizer_share < 1


@pytest.mark.parametrize(("batch_size", "epochs", "least"), [("full", 60, 0.85), ("1", 2, 0.93), ("100000", 1, 0)])
def test_batch_sizes(batch_size, epochs, least):
    assert accuracy(run("train", "--batch-size", batch_size, "--epochs", epochs, "--learning-rate", 0.003)) >= least


@pytest.mark.parametrize(("activation", "loss"), [("gelu", "mse"), ("tanh", "KLDivergence"), ("selu", "hinge")])
def test_any_activation_and_loss_train(activation, loss):
    flags = ("--activation", activation, "--loss", loss, "--learning-rate", 0.003)
    assert accuracy(run("train", "--epochs", 5, *flags)) > 0.9


def test_rates_of_epochs_follow_a_schedule(fit):
    training = fit("sgd", epochs=3, epoch_schedule=schedules.StepDecay(0.1, 0.5, 2))
    assert training.optimizer.learning_rate == 0.05


def test_the_rate_falls_on_a_plateau(fit):
    training = fit("sgd", epochs=4, patience=2, typed={"learning_rate": "1e-9"})
    assert training.optimizer.learning_rate == pytest.approx(1e-10)


def test_no_hidden_layer():
    assert accuracy(run("train", "--hidden", "none", "--epochs", 5)) > 0.7


@pytest.mark.full
@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_double_precision(name):
    assert accuracy(run("train", "--optimizer", name, "--dtype", "float64")) > 0.96


def test_same_seed_same_bits(fit):
    first, again, other = (fit("adam", seed=seed, epochs=2).model.params.flat.tobytes() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_digest_tells_of_the_parameters(fit):
    printed = run("train", "--epochs", 1, "--digest", "--quiet").stdout.splitlines()
    assert printed[0].split()[0] == fit("adam", epochs=1).digest()


def test_threads_do_not_change_bits():
    before = fastopt.get_num_threads()
    try:
        wide = ("train", "--epochs", 1, "--hidden", "512", "--digest", "--quiet", "--threads")
        assert run(*wide, 1).stdout == run(*wide, 2).stdout
    finally:
        fastopt.set_num_threads(before)


def test_quiet_prints_one_line():
    result = run("train", "--quiet", "--epochs", 1)
    assert accuracy(result) > 0
    assert len(result.stdout.splitlines()) == 1


def test_flags_reach_the_optimizer():
    flags = ("--learning-rate", "CosineDecay(0.1, 45)", "--momentum=.9", "--nesterov", "--weight_decay", "1e-4")
    result = run("train", "--optimizer", "SGD", "--epochs", 1, *flags)
    assert accuracy(result) > 0.5
    assert "learning_rate=CosineDecay(0.1, 45) momentum=0.9 nesterov=True weight_decay=0.0001" in result.stdout


def test_loss_scale_changes_nothing(fit):
    plain, scaled = (fit("sgd", epochs=1, typed=typed) for typed in ({}, {"loss_scale_factor": "128"}))
    assert plain.digest() == scaled.digest()


@pytest.mark.parametrize(("name", "typed"), [("adam", {"use_ema": None}), ("schedulefreeadamw", {})])
def test_evaluates_averaged_weights(name, typed, fit):
    training = fit(name, epochs=1, typed=typed)
    now = training.model.evaluate(*training.digits.test)
    with training.optimizer.evaluation_weights():
        averaged = training.model.evaluate(*training.digits.test)
    assert averaged == pytest.approx(training.history[-1][3:])
    assert now[0] != averaged[0]


def test_stops_when_told_to(fit):
    answers = iter([False] * 50 + [True])
    training = fit("adam", stopped=lambda: next(answers), epochs=9)
    assert training.interrupted
    assert training.steps == 50
    assert training.history[-1].epoch == pytest.approx(50 / 45)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one child alone")
def test_ctrl_c_ends_with_a_result():
    command = [sys.executable, "-m", "fastopt", "train", "--epochs", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        began = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert began.startswith("Adam")
    assert process.returncode == 130
    assert errors == ""
    assert "optimizer share" in output
    assert LAST_LINE.fullmatch(output.splitlines()[-1])


def test_divergence_is_no_error():
    result = run("train", "--optimizer", "sgd", "--learning-rate", "1e30", "--epochs", 1)
    assert accuracy(result) < 0.2
    assert "nan" in result.stdout


def test_problem_on_the_way_is_told():
    result = run("train", "--optimizer", "sgd", "--learning-rate", "1e30", "--nonfinite", "raise")
    assert result.exit_code == 1
    assert "is not finite" in result.output
    assert LAST_LINE.search(result.stdout)


@rows(
    ("arguments", "message"),
    [
        (["--optimizer", "adm"], "unknown optimizer 'adm', did you mean Adam? The names are SGD, AdaBelief"),
        (["--optimizer", "LossScaleOptimizer"], "not offered here"),
        (["--momentum", ".9"], "Adam has no --momentum, did you mean --ema-momentum? It has --learning-rate, --beta-1"),
        (["--lr=.1"], "Adam has no --lr, did you mean --learning-rate?"),
        (["--lr"], "Adam has no --lr, did you mean --learning-rate?"),
        (["--learning-rate"], "--learning-rate needs a value"),
        (["--learning-rate", ""], "--learning-rate takes a number or a schedule"),
        (["--learning-rate", "-1"], "--learning-rate must not be negative"),
        (["--learning-rate", "PolynomialDecay(0.1, 60, -1)", "--epochs", "2"], "has a negative rate at step 6"),
        (["--learning-rate", "CosineDecay(0.1"], "CosineDecay(0.1: '(' was never closed"),
        (["--learning-rate", "CosineDecay(0.1, 5))"], "CosineDecay(0.1, 5)): ')' closes nothing"),
        (["--learning-rate", "[0.1"], "[0.1: '[' was never closed"),
        (["--epoch-schedule", "StepDecay(0.1"], "StepDecay(0.1: '(' was never closed"),
        (["--epoch-schedule", "CosineDecay(-0.1, 5)"], "has a negative rate at step 0, -0.1"),
        (["--compare", "sgd:learning_rate=CosineDecay(0.1,adam"], "'(' was never closed"),
        (["--threads", "99999"], "--threads 99999: there are"),
        (["--hidden", "9" * 19], "is too large"),
        (["--beta-1", "1.5"], "beta_1 must be in [0, 1), got 1.5"),
        (["--beta-1", "-0.5"], "beta_1 must be in [0, 1), got -0.5"),
        (["--beta-1"], "--beta-1 needs a value"),
        (["--amsgrad", "maybe"], "--amsgrad is true or false, got 'maybe'"),
        (
            ["--learning-rate", "fast"],
            "--learning-rate takes a number or a schedule, as 0.01 or CosineDecay(0.01, 500), got",
        ),
        (["--learning-rate", "1e300"], "does not fit float32"),
        (["--learning-rate", "CosineDecay(0.1)"], "'decay_steps'"),
        (["--learning-rate", "CosineDecay(0.1, -5)"], "decay_steps must be > 0"),
        (["--learning-rate", "Decay(0.1, 5)"], "unknown learning rate schedule 'Decay'"),
        (["--optimizer", "ftrl", "--learning-rate", "0"], "must be positive"),
        (["--clipnorm", "1", "--clipvalue", "1"], "choose one way to clip"),
        (["stray"], "belongs to no flag"),
        (["--batch-size", "0"], "a whole number above 0, or full"),
        (["--hidden", "10,x"], "whole numbers above 0, or none"),
        (["--epochs", "0"], "--epochs"),
        (["--dtype", "float16"], "--dtype"),
        (["--plot", "picture.txt"], "ends in .png"),
        (["--activation", "relo"], "unknown activation 'relo'"),
        (["--loss", "mean"], "unknown loss"),
        (["--epoch-schedule", "StepDecay(-1)"], "StepDecay"),
        (["--epoch-schedule", "0.1"], "0.1: expected a schedule"),
        (["--plateau", "2", "--learning-rate", "CosineDecay(0.1, 5)"], "a schedule rules that of Adam"),
        (["--compare", "sgd:momentum"], "--momentum needs a value"),
        (["--compare", ","], "no run to compare"),
        (["--compare", "adam", "--optimizer", "sgd"], "exclude each other"),
    ],
)
def test_refusals_explain_themselves(arguments, message):
    assert message in refusal(run("train", *arguments))


def test_schedules_are_not_evaluated_as_code():
    for text in ("CosineDecay(__import__('os').getpid(), 5)", "CosineDecay(*[1, 2])", "CosineDecay(**{'alpha': 1})"):
        with pytest.raises(UsageError):
            read_value(text)


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_says_how_to_get_what_is_missing(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    result = run("train", "--plot", tmp_path / "plot.png")
    assert result.exit_code == 1
    assert result.output.splitlines() == ['This needs scikit-learn and matplotlib: pip install "fastopt[demo]"']


# -- pictures and comparisons ------------------------------------------------------------------------------------------


def check_picture(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 < width < 4000
    assert 500 < height < 3000
    assert 15_000 < len(content) < 2_000_000


def test_picture_of_one_run(tmp_path):
    path = tmp_path / "made" / "adam.png"
    assert accuracy(run("train", "--epochs", 2, "--plot", path)) > 0
    check_picture(path)


def test_picture_of_a_run_that_diverges(tmp_path):
    diverging = ("--optimizer", "sgd", "--learning-rate", "1e30")
    assert accuracy(run("train", *diverging, "--epochs", 1, "--plot", tmp_path / "nan.png")) > 0
    check_picture(tmp_path / "nan.png")


def test_comparison(tmp_path):
    runs = "sgd:learning_rate=.001,sgd:learning-rate=CosineDecay(.1, 90):momentum=.9,adam"
    result = run("train", "--epochs", 2, "--compare", runs, "--plot", tmp_path / "runs.png", "--weight-decay", "1e-4")
    best = accuracy(result)
    table = result.stdout[result.stdout.rindex("optimizer") :]
    rows = ["SGD learning_rate=0.001", "SGD learning_rate=CosineDecay(0.1, 90)", "Adam learning_rate=0.001"]
    assert [row for row in rows if row in table] == rows
    assert best == max(float(figure) for figure in re.findall(r"(?<= )\d\.\d{4}(?= +\d+\.\d\d )", table))
    check_picture(tmp_path / "runs.png")


def test_specifications_of_runs():
    runs = plan_comparison("sgd:learning_rate=.1:momentum=.9, muon:exclude_layers=['0','1']:no-nesterov", {})
    assert [run.kind for run in runs] == [fastopt.SGD, fastopt.Muon]
    assert runs[0].arguments == {"learning_rate": 0.1, "momentum": 0.9}
    assert runs[1].arguments == {"learning_rate": 0.001, "exclude_layers": ["0", "1"], "nesterov": False}


def test_shared_flags_yield_to_those_of_a_run():
    first, second = plan_comparison("sgd:momentum=.5,sgd", {"momentum": "0.9"})
    assert (first.arguments["momentum"], second.arguments["momentum"]) == (0.5, 0.9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".9", 0.9),
        ("1e-3", 0.001),
        ("-5", -5),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("inf", float("inf")),
        ("skip", "skip"),
        ("CosineDecay(0.1, decay_steps=5)", schedules.CosineDecay(0.1, 5)),
        ("piecewiseconstantdecay([5, 9], [.1, .2, .3])", schedules.PiecewiseConstantDecay([5, 9], [0.1, 0.2, 0.3])),
    ],
)
def test_values(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_flags():
    tokens = ["--beta-1", ".9", "--beta_2=.99", "--amsgrad", "--epsilon", "-1"]
    assert read_flags(tokens) == {"beta_1": ".9", "beta_2": ".99", "amsgrad": None, "epsilon": "-1"}


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("relu", "sparse_categorical_crossentropy"),
        ("gelu", "mse"),
        ("tanh", "kld"),
        ("elu", "SparseCategoricalCrossentropy"),
    ],
)
def test_gradients_are_those_of_the_loss(activation, loss):
    rng = np.random.default_rng(0)
    model = Perceptron((5, 7, 6, 3), np.dtype(np.float64), rng, activation, Objective(loss))
    inputs, labels = rng.normal(size=(11, 5)), rng.integers(3, size=11)
    model.loss_and_gradients(inputs, labels)
    for params, grads in zip(model.params.arrays, model.grads.arrays, strict=True):
        for index in np.ndindex(params.shape):
            kept, step = params[index], 1e-6
            losses = []
            for params[index] in (kept + step, kept - step):
                losses.append(model.evaluate(inputs, labels)[0])
            params[index] = kept
            assert grads[index] == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-8)


def test_gradients_lie_in_one_buffer():
    model = Perceptron((4, 3, 2), np.dtype(np.float32), np.random.default_rng(0))
    model.loss_and_gradients(np.ones((2, 4), np.float32), np.array([0, 1]))
    assert model.parameter_count == 4 * 3 + 3 + 3 * 2 + 2
    assert all(np.shares_memory(array, model.grads.flat) for array in model.grads.arrays)
    assert all(array.any() for array in model.grads.arrays)


def test_data_are_split_evenly(digits):
    assert [len(split.labels) for split in digits] == [1437, 360]
    for split in digits:
        assert np.ptp(np.bincount(split.labels)) <= 0.05 * len(split.labels)
        assert split.inputs.shape[1] == 64
        assert np.abs(split.inputs).max() <= 1


# -- the other commands ------------------------------------------------------------------------------------------------


def test_warm_up_leaves_nothing_to_compile(tmp_path):
    warm_up = ("-m", "fastopt", "warmup", "lion", "--dtype", "float32")
    child(*warm_up)
    counts = re.match(r"0 kernels compiled, (\d+) loaded from the cache", child(*warm_up))
    assert counts
    assert int(counts[1]) > 4
    step = (
        "import numpy as np, fastopt; from fastopt.kernels.compile import _jit\n"
        "optimizer = fastopt.Lion(global_clipnorm=1.0, gradient_accumulation_steps=2)\n"
        "w = np.ones(3, np.float32)\n"
        "for _ in range(2): optimizer.apply([w], [w])\n"
        "print(_jit.compilations)"
    )
    assert child("-c", step) == "0\n"


def test_warm_up_knows_all_variants():
    assert {"momentum": 0.9, "nesterov": True} in list(variants(fastopt.SGD))
    assert {"momentum": 0.9, "centered": True} in list(variants(fastopt.RMSprop))
    assert {"amsgrad": True} in list(variants(fastopt.AdamW))
    assert len(list(variants(fastopt.Ftrl))) == 2
    assert list(variants(fastopt.Lion)) == [{}]


def test_warm_up_refuses_unknown_names():
    assert "did you mean Muon?" in refusal(run("warmup", "muonn"))


def test_info_as_json():
    result = run("info", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert {
        "versions", "operating_system", "processor", "simd_bits", "numba_threads", "threading_layer", "thread_cap",
        "reading", "cache", "devices", "optional_packages",
    } == facts.keys()  # fmt: skip
    assert facts["reading"]["NumPy"] == "compiled"
    assert facts["versions"]["fastopt"] == fastopt.__version__
    assert facts["cache"]["folder"] == os.environ["FASTOPT_CACHE_DIR"]
    assert facts["threading_layer"] in ("openmp", "omp", "tbb", "workqueue") or facts["numba_threads"] == 1
    assert not any("unknown" in str(fact) for fact in facts.values())


def test_info_tells_of_cuda_what_was_seen(monkeypatch):
    """The fake driver's functions and constants are those of NVIDIA's bindings: 12080 is how CUDA 12.8 calls itself."""
    pytest.importorskip("cuda.bindings", reason="numba-cuda has no package for this platform")
    from fake_driver import FakeDriver
    from fastopt.kernels.cuda import driver

    monkeypatch.setattr(driver, "bindings", FakeDriver)
    assert _cuda() == (
        "found, not tried: driver for CUDA 12.8, GPU 0: Fake GPU (compute capability 9.0), "
        "GPU 1: Fake GPU (compute capability 9.0)"
    )


def test_info_without_a_driver_says_why(monkeypatch):
    from fastopt.kernels.cuda import driver
    from fastopt.kernels.cuda.errors import CudaUnavailable

    def bindings():
        raise CudaUnavailable("CUDA needs the package numba-cuda, which is not installed")

    monkeypatch.setattr(driver, "bindings", bindings)
    devices = collect()["devices"]
    assert devices == {"CPU": "yes", "CUDA": "not found: CUDA needs the package numba-cuda, which is not installed"}


def test_info_as_a_table():
    result = run("info")
    assert result.exit_code == 0
    assert "threading layer" in result.stdout


def test_version():
    assert run("--version").stdout == f"fastopt {fastopt.__version__}\n"


def test_help_brings_nothing_heavy():
    """Beyond what `import fastopt` itself brings."""
    code = (
        "import sys, fastopt\n"
        "before = set(sys.modules)\n"
        "from fastopt.cli import main\n"
        "sys.argv = ['fastopt', 'train', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    brought = child("-c", code).splitlines()[-1]
    assert "typer" in brought
    assert not any(heavy in brought for heavy in ("'numba'", "'sklearn'", "'matplotlib'", "'scipy'", "'torch'"))
