"""`fastopt info --model`: what a model takes, against arrays that are built."""

import json
import re

import numpy as np
import pytest
from rows import rows
from test_cli import refusal, run

import fastopt
from fastopt.bench.shapes import MODELS
from fastopt.cli.memory import in_units
from fastopt.cli.shapes import shapes_of


def found(*arguments):
    result = run("info", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_bytes_are_those_of_arrays_that_are_built():
    flags = ("--optimizer", "adamw", "--slot-dtype", "8bit", "--use-ema", "--amsgrad")
    facts = found("--model", "100x50,3*70x80,9", *flags)
    optimizer = fastopt.AdamW(slot_dtype="8bit", use_ema=True, amsgrad=True)
    params = [np.zeros(shape, np.float32) for shape in [(100, 50), *[(70, 80)] * 3, (9,)]]
    optimizer.build(params)
    (choice,) = facts["choices"]
    assert choice["bytes"] == optimizer.memory().bytes
    state = sum(array.nbytes for arrays in optimizer.slots.values() for array in arrays if array is not None)
    assert choice["state"] == state and choice["total"] == state + 2 * sum(array.nbytes for array in params)
    assert (facts["parameters"], facts["arrays"]) == (sum(array.size for array in params), 5)
    assert (choice["dtype"], choice["optimizer"]) == ("float32", "AdamW use_ema=True amsgrad=True slot_dtype=8bit")


@rows("dtype, flags, each", [
    ("float32", [], {"parameters": 4, "gradients": 4, "momentum": 4, "velocity": 4}),
    ("float64", [], {"parameters": 8, "gradients": 8, "momentum": 8, "velocity": 8}),
    ("float64", ["--slot-dtype=float32"], {"parameters": 8, "gradients": 8, "momentum": 4, "velocity": 4}),
    ("float16", [], {"parameters": 2, "gradients": 2, "momentum": 4, "velocity": 4}),
    ("bfloat16", ["--master-weights", "split", "--slot-dtype", "bfloat16"],
     {"parameters": 2, "gradients": 2, "momentum": 2, "velocity": 2, "remainder": 2}),
    ("bfloat16", ["--master-weights", "float32"],
     {"parameters": 2, "gradients": 2, "momentum": 4, "velocity": 4, "master": 4}),
    ("bfloat16", ["--compensation=kahan", "--slot-dtype", "{'velocity': '8bit'}"],
     {"parameters": 2, "gradients": 2, "momentum": 4, "velocity": 1, "velocity/scale": 1 / 64, "compensation": 2}),
])  # fmt: skip
def test_bytes_for_each_parameter(dtype, flags, each):
    (choice,) = found("--model", "1024x1024", "--dtype", dtype, "--optimizer", "adam", *flags)["choices"]
    assert choice["per_element"] == each


def test_without_an_optimizer_common_choices_are_compared():
    choices = found("--model", "1024x1024")["choices"]
    totals = {(each["dtype"], each["optimizer"]): each["total"] / 2**20 for each in choices}
    assert totals == {
        ("float32", "SGD"): 8,
        ("float32", "SGD momentum=0.9"): 12,
        ("float32", "Adam"): 16,
        ("float32", "Adam slot_dtype=bfloat16"): 12,
        ("float32", "Adam slot_dtype=8bit"): 10.03125,
        ("bfloat16", "Adam master_weights=float32"): 16,
        ("bfloat16", "Adam master_weights=split"): 14,
        ("bfloat16", "Adam master_weights=split slot_dtype=bfloat16"): 10,
        ("bfloat16", "Adam master_weights=split slot_dtype=8bit"): 8.03125,
        ("bfloat16", "Adam stochastic_rounding=True slot_dtype=8bit"): 6.03125,
    }
    halves = found("--model", "1024x1024", "--dtype", "float16")["choices"]
    assert [each["optimizer"] for each in halves] == [
        "Adam master_weights=float32", "Adam stochastic_rounding=True slot_dtype=8bit"
    ]  # fmt: skip


def test_a_model_larger_than_any_memory():
    (choice,) = found("--model", "900000B", "--slot-dtype", "8bit")["choices"]
    assert choice["bytes"]["parameters"] == 36 * 10**14
    assert choice["bytes"]["momentum/scale"] == 4 * -(-9 * 10**14 // 256)


def test_tables():
    result = run("info", "--model", "gpt2")
    line = next(line for line in result.stdout.splitlines() if "slot_dtype=8bit" in line)
    assert re.split(r"\s*│\s*", line)[1:-1] == [
        "Adam slot_dtype=8bit", "float32", "497.8 MB", "497.8 MB", "253.5 MB", "1.2 GB", "10.037"
    ]  # fmt: skip
    assert result.stdout.splitlines()[-1] == "124,439,808 parameters in 148 arrays"
    result = run("info", "--model", "5000", "--optimizer", "lion")
    rows_shown = [re.split(r"\s*│\s*", line)[1:-1] for line in result.stdout.splitlines() if "│" in line]
    assert rows_shown[1:] == [
        ["parameters", "4.000", "20.0 kB"], ["gradients", "4.000", "20.0 kB"], ["momentum", "4.000", "20.0 kB"],
        ["state", "4.000", "20.0 kB"], ["total", "12.000", "60.0 kB"],
    ]  # fmt: skip
    assert result.stdout.splitlines()[-1] == "Lion, 5,000 parameters in 1 array of float32"


@rows("size, text", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (36 * 10**17, "3.6 EB")])
def test_units(size, text):
    assert in_units(size) == text


@rows("text, shapes", [
    ("GPT2", MODELS["gpt2"]()),
    ("768", [(768,)]),
    ("1.5e3", [(1500,)]),
    ("7B", [(7 * 10**9,)]),
    ("124m", [(124 * 10**6,)]),
    ("3X4x5, 2*6x7,8", [(3, 4, 5), (6, 7), (6, 7), (8,)]),
    ("0x5,1", [(0, 5), (1,)]),
])  # fmt: skip
def test_shapes_as_typed(text, shapes):
    assert shapes_of(text) == shapes


def safetensors(path, tensors):
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_shapes_in_files(tmp_path):
    tensor = {"shape": [4, 5], "data_offsets": [0, 0]}
    one = safetensors(tmp_path / "1.safetensors", {"w": {"dtype": "F32", **tensor}, "n": {"dtype": "I64", **tensor}})
    assert shapes_of(str(one)) == [(4, 5)]
    safetensors(tmp_path / "2.safetensors", {"b": {"dtype": "BF16", "shape": [], "data_offsets": [0, 0]}})
    assert shapes_of(str(tmp_path)) == [(4, 5), ()]
    np.savez(tmp_path / "m.npz", np.zeros((2, 3), np.float16), np.arange(9), np.ones(()))
    assert shapes_of(str(tmp_path / "m.npz")) == [(2, 3), ()]


def test_a_file_that_safetensors_wrote(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="reads and writes the format")
    numpy.save_file({"w": np.zeros((3, 4), np.float32), "b": np.zeros(3, np.float16)}, tmp_path / "a.safetensors")
    assert sorted(shapes_of(str(tmp_path / "a.safetensors"))) == [(3,), (3, 4)]


@rows("arguments, message", [
    (["--optimizer", "adam"], "--optimizer goes with a model, and none is named: say --model gpt2"),
    (["--dtype", "float32"], "--dtype goes with a model"),
    (["--slot-dtype", "8bit"], "--slot-dtype goes with a model"),
    (["--frob"], "--frob goes with a model"),
    (["gpt2"], "gpt2 goes with a model"),
    (["--model", "gpt3"], "--model takes shapes as 50257x768,12*768x3072,768, a number of elements as 7B"),
    (["--model", "3x-1"], "got '3x-1'"),
    (["--model", "9" * 5000], "--model takes shapes"),
    (["--model", "1e30"], "there is no array of the shape"),
    (["--model", "missing.npz"], "missing.npz: cannot be read"),
    (["--model", "gpt2", "--optimizer", "adm"], "unknown optimizer 'adm', did you mean Adam?"),
    (["--model", "gpt2", "--slot-dtype", "int4"], "slot_dtype must be one of 'float32'"),
    (["--model", "gpt2", "--master-weights", "bfloat16"], "master_weights must be 'float32' or 'split'"),
    (["--model", "gpt2", "--beta-3", "1"], "Adam has no --beta-3"),
    (["--model", "gpt2", "--dtype", "float16", "--master-weights", "split"], "this is float16: choose"),
    (["--model", "gpt2", "--optimizer", "lamb", "--slot-dtype", "8bit"], "leave slot_dtype and copies out"),
    (["--model", "gpt2", "--optimizer", "muon", "--slot-dtype", "8bit"], "Muon has no --slot-dtype"),
    (["--model", "gpt2", "--dtype", "int8"], "int8"),
])  # fmt: skip
def test_refused(arguments, message):
    assert message in refusal(run("info", *arguments))


def test_files_that_are_refused(tmp_path):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "text.npz").write_text("no archive")
    safetensors(tmp_path / "ints.safetensors", {"n": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}})
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "empty.safetensors": "cannot be read",
        "long.safetensors": "its header is cut off",
        "text.npz": "cannot be read",
        "ints.safetensors": "has no arrays of floating-point numbers",
        "list.safetensors": "cannot be read",
        "model.pt": "expected a file of .safetensors or .npz",
        "folder": "or a folder of .safetensors",
    }.items():
        said = refusal(run("info", "--model", tmp_path / name)).replace(" ", "")
        assert message.replace(" ", "") in said, (name, said)
