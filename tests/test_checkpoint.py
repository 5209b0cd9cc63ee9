"""Checkpoints: what goes on from one goes on bit for bit; what does not fit is refused with nothing changed."""

import json
import random
import re
import threading
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from children import peak_memory, run
from rows import rows
from table import OWN

import fastopt
from fastopt import schedules
from fastopt.checkpoint.header import Header, decoded, encoded
from fastopt.compat import keras_1_0, keras_2_2, keras_2_3

SHAPES = {"kernel": (7, 5), "table": (80, 64), "bias": (33,), "scale": (), "none": (0, 3)}


def arrays(seed=0, dtype=np.float32, order="C", shapes=SHAPES):
    rng = np.random.default_rng(seed)
    drawn = {name: np.asarray(rng.normal(size=shape)).astype(dtype, order=order) for name, shape in shapes.items()}
    return {**drawn, "wide": rng.normal(size=(5, 3))} if dtype == np.float32 else drawn


def train(optimizer, params, steps, start=0):
    """Steps with gradients that depend on the step's number alone."""
    paths = [(path, array) for path, array in fastopt.flat.FlatBuffer.__iter__(params)] if False else None
    del paths
    for number in range(start, start + steps):
        rng = np.random.default_rng(100 + number)
        optimizer.apply({name: rng.normal(size=array.shape).astype(np.float32) for name, array in params.items()})


def held(optimizer, params):
    """All bits of parameters and state, by name."""
    state = {name: np.asarray(value) for name, value in optimizer.state_dict().items()}
    found = {**{f"params/{name}": array for name, array in params.items()}, **state}
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in found.items()}


def made(name, *args, **options):
    module = options.pop("module", fastopt)
    return lambda: getattr(module, name)(*args, **options)


def scaled():
    return fastopt.LossScaleOptimizer(fastopt.AdamW(1e-2), 4.0, dynamic_growth_steps=3)


class Case(NamedTuple):
    """How an optimizer is made, what `arrays` is given, and overrides."""

    make: object
    arrays: dict = MappingProxyType({})
    overrides: dict | None = None


MID_WINDOW = {"use_ema": True, "gradient_accumulation_steps": 2}
BFLOAT16, FLOAT16 = {"dtype": ml_dtypes.bfloat16}, {"dtype": np.float16}
CASES = {
    **{name: Case(made(name, **options[0], **MID_WINDOW)) for name, options in OWN.items()},
    "schedule": Case(made("SGD", schedules.CosineDecay(0.1, 10), momentum=0.9)),
    "clipped": Case(made("Adam", global_clipnorm=1.0, nonfinite="skip", weight_decay=0.01)),
    "loss scale": Case(scaled),
    "Fortran order": Case(made("Adam", slot_dtype="8bit"), {"order": "F"}),
    "Fortran order, stand-ins": Case(made("Muon"), {"order": "F"}),
    "slots in 8 bits": Case(made("AdamW", slot_dtype="8bit", seed=5)),
    "slots in 16 bits": Case(made("Adam", slot_dtype={"momentum": "bfloat16", "velocity": "float16"}, seed=3)),
    "average in 16 bits": Case(made("Adam", use_ema=True, slot_dtype={"average": "float16"})),
    "bfloat16, at random": Case(made("Adam", stochastic_rounding=True, seed=11), BFLOAT16),
    "bfloat16, split": Case(made("AdamW", master_weights="split", slot_dtype="bfloat16"), BFLOAT16),
    "bfloat16, Kahan": Case(made("AdamW", compensation="kahan"), BFLOAT16),
    "float16, masters": Case(made("AdamW", master_weights="float32"), FLOAT16),
    "overrides": Case(
        made("AdamW"), {}, {"^bias$": {"trainable": False}, "kernel": {"weight_decay": None, "slot_dtype": "bfloat16"}}
    ),
    "Keras 1.0": Case(made("SGD", lr=0.1, momentum=0.9, decay=0.1, module=keras_1_0)),
    "Keras 2.2": Case(made("Nadam", clipnorm=1.0, module=keras_2_2)),
    "Keras 2.3": Case(made("Adam", amsgrad=True, decay=0.01, module=keras_2_3)),
}


@rows("name", CASES)
def test_what_goes_on_from_a_file_goes_on_bit_for_bit(name, tmp_path):
    case, path = CASES[name], tmp_path / f"{name}.safetensors"
    params, optimizer = arrays(**case.arrays), case.make()
    optimizer.build(params, case.overrides)
    optimizer.exclude_from_weight_decay(var_names=["table"])
    train(optimizer, params, 5)
    before = held(optimizer, params)
    assert optimizer.save(path, params=True, extra={"epoch": 3}).done()
    assert held(optimizer, params) == before
    loaded = fastopt.load(path)
    assert loaded.extra == {"epoch": 3}
    assert type(loaded.optimizer) is type(optimizer)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    assert held(loaded.optimizer, loaded.params) == before

    other, mine = case.make(), arrays(seed=9, **case.arrays)
    other.build(mine, case.overrides)
    other.exclude_from_weight_decay(var_names=["table"])
    assert other.load(path) == {"epoch": 3}
    given = arrays(seed=8, **case.arrays)
    third = fastopt.load(path, given)
    assert third.params is given
    train(optimizer, params, 5, start=5)
    for each, its in ((loaded.optimizer, loaded.params), (other, mine), (third.optimizer, given)):
        train(each, its, 5, start=5)
        assert held(each, its) == held(optimizer, params)
    assert held(optimizer, params) != before
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def built(make=None, seed=0, steps=3, **options):
    optimizer, params = (make or fastopt.Adam)(), arrays(seed, **options)
    optimizer.build(params)
    train(optimizer, params, steps)
    return optimizer, params


def test_without_parameters(tmp_path):
    optimizer, params = built()
    optimizer.save(tmp_path / "state")
    other, mine = built(seed=1)
    before = {name: array.copy() for name, array in mine.items()}
    assert other.load(tmp_path / "state") is None
    assert held(other, {}) == held(optimizer, {})
    assert all(np.array_equal(mine[name], before[name]) for name in before)
    with pytest.raises(fastopt.CheckpointError, match="holds no parameters: pass params, or save"):
        fastopt.load(tmp_path / "state")
    assert held(fastopt.load(tmp_path / "state", params).optimizer, {}) == held(optimizer, {})


def test_a_packed_buffer(tmp_path):
    packed = fastopt.pack({"dense": {"kernel": np.ones((8, 3), np.float32), "bias": np.zeros(3, np.float32)}})
    optimizer = fastopt.Adam()
    optimizer.build(packed)
    optimizer.apply(packed.like())
    packed.flat[:] += 1
    optimizer.save(tmp_path / "packed", params=True)
    loaded = fastopt.load(tmp_path / "packed")
    assert set(loaded.params) == {"dense/kernel", "dense/bias"}
    assert np.array_equal(loaded.params["dense/kernel"], np.full((8, 3), 2, np.float32))
    copy = packed.like()
    assert fastopt.load(tmp_path / "packed", copy).params is copy
    assert np.array_equal(copy.views["dense"]["kernel"], packed.views["dense"]["kernel"])


def test_a_bfloat16_of_nobody_in_particular(tmp_path):
    bits, overrides = np.full(9, 0x3F80, np.uint16), {"": {"dtype": "bfloat16"}}
    optimizer = fastopt.SGD()
    optimizer.build([bits], overrides)
    optimizer.save(tmp_path / "file", params=True)
    assert fastopt.load(tmp_path / "file").params["0"].dtype == np.uint16
    float16 = fastopt.SGD()
    float16.build([bits.copy()], {"": {"dtype": "float16"}})
    with pytest.raises(fastopt.CheckpointError, match="parameter 0: is uint16 there"):
        float16.load(tmp_path / "file")


def test_the_library_reads_our_files_and_finds_numbers_as_what_they_are(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.numpy import load_file

    make = made("AdamW", master_weights="split", slot_dtype={"momentum": "float16", "velocity": "8bit"})
    optimizer, params = built(make, dtype=ml_dtypes.bfloat16)
    optimizer.save(tmp_path / "file", params=True, extra={"seen": np.arange(3, dtype=np.int16)})
    with safetensors.safe_open(tmp_path / "file", "numpy") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes["params/table"] == "BF16" and dtypes["state/table/remainder"] == "U16"
    assert dtypes["state/table/momentum"] == "F16" and dtypes["state/table/velocity"] == "U8"
    assert dtypes["state/table/velocity/scale"] == "F32" and dtypes["extra/0"] == "I16"
    state = optimizer.state_dict()
    found = load_file(tmp_path / "file")
    for name in (name for name in found if name.startswith("state/")):
        expected = state[name.removeprefix("state/")]
        assert found[name].tobytes() == expected.tobytes(), name
    assert found["params/table"].tobytes() == params["table"].tobytes()


def test_we_read_what_the_library_writes(tmp_path):
    """Its header, with our texts, is ours but for checksums of what it cannot know."""
    numpy = pytest.importorskip("safetensors.numpy")
    optimizer, params = built()
    optimizer.save(tmp_path / "ours", params=True)
    numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "theirs", metadata={"format": "pt"})
    with pytest.raises(fastopt.CheckpointError, match="was not written by fastopt"):
        optimizer.load(tmp_path / "theirs")
    whole = (tmp_path / "ours").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    header = decoded(whole[:length], len(whole))
    content = numpy.load(whole)
    ordered = {name: content[name] for name in header.entries}
    theirs = numpy.save(ordered)
    start = 8 + int.from_bytes(theirs[:8], "little")
    entries = json.loads(theirs[8:start])
    places = {name: entry["data_offsets"] for name, entry in entries.items()}
    mixed = {
        name: entry._replace(begin=places[name][0], end=places[name][1])
        for name, entry in sorted(header.entries.items(), key=lambda each: places[each[0]])
    }
    sums = dict(zip(header.entries, header.sums, strict=True))
    rewritten = encoded(Header(mixed, [sums[name] for name in mixed], header.text)) + theirs[start:]
    (tmp_path / "mixed").write_bytes(rewritten)
    assert held(*fastopt.load(tmp_path / "mixed")[:2]) == held(optimizer, params)


EXTRAS = {
    "nothing": None,
    "numbers": {"epoch": 3, "loss": 0.1, "best": float("inf"), "done": False, "big": 2**200, "none": None},
    "NumPy's generator": np.random.default_rng(7).bit_generator.state,
    "another": np.random.Generator(np.random.MT19937(7)).bit_generator.state,
    "Python's generator": random.Random(3).getstate(),
    "nested": [(), (1, [2, (3,)]), {"a": {"$": 1}}, {1: "one", (2, 3): b"two", None: []}, "ü\ud800", b"\x00\xff"],
    "arrays": [np.arange(6).reshape(2, 3), np.float32(0.1), np.array(True), np.zeros((0, 2), "u4"), np.int8(-3)],
    "bfloat16": {"a": np.ones(3, ml_dtypes.bfloat16), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
}


def same(one, other):
    if isinstance(one, np.ndarray | np.generic):
        assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        return one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@rows("name", EXTRAS)
def test_extra_comes_back_with_its_types(name, tmp_path):
    optimizer, _ = built()
    optimizer.save(tmp_path / "file", extra=EXTRAS[name])
    assert same(EXTRAS[name], optimizer.load(tmp_path / "file"))


def test_a_generator_goes_on(tmp_path):
    optimizer, _ = built()
    rng, python = np.random.default_rng(3), random.Random(3)
    optimizer.save(tmp_path / "file", extra=(rng.bit_generator.state, python.getstate()))
    state, python_state = optimizer.load(tmp_path / "file")
    again, python_again = np.random.default_rng(), random.Random()
    again.bit_generator.state = state
    python_again.setstate(python_state)
    assert np.array_equal(again.normal(size=9), rng.normal(size=9)) and python.random() == python_again.random()


def endless():
    found = []
    found.append(found)
    return found


@rows(
    "options, error, message",
    [
        ({"extra": {"a": [object()]}}, TypeError, r"extra\['a'\]\[0\] is a builtins.object: a checkpoint holds"),
        ({"extra": {1, 2}}, TypeError, "extra is a builtins.set"),
        ({"extra": np.array(["a"])}, TypeError, "extra is a numpy.ndarray"),
        ({"extra": endless()}, ValueError, "nested too deeply, or holds itself"),
        ({"keep": 0}, ValueError, "keep must be at least 1"),
        ({"keep": 1.0}, TypeError, "keep must be an int"),
        ({"params": 1}, TypeError, "params must be a bool"),
        ({"background": "yes"}, TypeError, "background must be a bool"),
        ({"progress": 3}, TypeError, "progress must be a function"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(options, error, message, tmp_path):
    optimizer, _ = built()
    with pytest.raises(error, match=message):
        optimizer.save(tmp_path / "file", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_path_must_be_one():
    optimizer, _ = built()
    for call in (optimizer.save, optimizer.load, fastopt.load):
        with pytest.raises(TypeError, match="path must be a str or a path, got int"):
            call(1)


def test_what_is_not_built(tmp_path):
    for call in ("save", "load"):
        with pytest.raises(RuntimeError, match=rf"{call}\(\): the optimizer is not built"):
            getattr(fastopt.Adam(), call)(tmp_path / "file")
        with pytest.raises(RuntimeError, match=rf"{call}\(\): the optimizer is not built"):
            getattr(scaled(), call)(tmp_path / "file")


def test_averages_are_no_parameters(tmp_path):
    optimizer, _ = built(made("Adam", use_ema=True))
    optimizer.save(tmp_path / "file", params=True)
    with optimizer.evaluation_weights():
        with pytest.raises(RuntimeError, match="leave it, then save"):
            optimizer.save(tmp_path / "other", params=True)
        with pytest.raises(RuntimeError, match="leave it, then load"):
            optimizer.load(tmp_path / "file")
        optimizer.save(tmp_path / "state")
        optimizer.load(tmp_path / "state")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "state"]


def test_within_a_step_nothing_is_saved(tmp_path):
    errors = []

    def rate():
        for call in (optimizer.save, optimizer.load):
            try:
                call(tmp_path / "file")
            except RuntimeError as error:
                errors.append(str(error))
        return 0.1

    optimizer, params = fastopt.SGD(rate), arrays()
    optimizer.build(params)
    optimizer.save(tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    train(optimizer, params, 1)
    assert errors and all("a step of this optimizer is under way" in error for error in errors)
    assert (tmp_path / "file").read_bytes() == before


@rows(
    "make, message",
    [
        (made("SGD", lambda: 0.1, momentum=0.9), "learning_rate is a function, which a config cannot hold"),
        (
            lambda: type("Adam", (fastopt.Adam,), {"__module__": "mine"})(),
            "its class Adam is not one that fastopt kno",
        ),
    ],
    ids=["a function", "a class of one's own"],
)
def test_an_optimizer_that_cannot_be_told(make, message, tmp_path):
    optimizer, params = built(make)
    optimizer.save(tmp_path / "file", params=True)
    with pytest.raises(fastopt.CheckpointError, match=rf"{message}.*: make it yourself, build it, and call its load"):
        fastopt.load(tmp_path / "file")
    other, mine = built(make, seed=4, steps=0)
    other.load(tmp_path / "file")
    assert held(other, mine) == held(optimizer, params)


def misfits():
    other_shape = {**SHAPES, "bias": (34,)}
    return {
        "other shapes": (made("Adam"), {"shapes": other_shape}, r"parameter bias: expected shape \(34,\), got \(33,\)"),
        "other names": (made("Adam"), {"shapes": {"gamma": (3,)}}, r"of other parameters: missing \['gamma'\]"),
        "another class": (made("Adagrad"), {}, "the state does not fit: missing"),
        "other formats": (made("Adam", slot_dtype="8bit"), {}, "kept in other formats"),
        "another dtype": (made("Adam"), {"dtype": np.float64}, "wide"),
        "bfloat16": (made("Adam"), {"dtype": ml_dtypes.bfloat16}, "wide"),
        "a scale": (scaled, {}, "missing dynamic_scale"),
    }


@rows("name", misfits())
def test_what_does_not_fit_changes_nothing(name, tmp_path):
    make, options, message = misfits()[name]
    optimizer, _ = built()
    optimizer.save(tmp_path / "file", params=True)
    other, mine = built(make, seed=5, **options)
    before = held(other, mine)
    with pytest.raises(fastopt.CheckpointError, match=rf"^{re.escape(str(tmp_path / 'file'))}: .*{message}"):
        other.load(tmp_path / "file")
    assert held(other, mine) == before


def test_another_seed_is_refused_where_numbers_are_rounded_at_random(tmp_path):
    optimizer, _ = built(made("Adam", slot_dtype="bfloat16", seed=5))
    optimizer.save(tmp_path / "file")
    other, _ = built(made("Adam", slot_dtype="bfloat16", seed=6))
    with pytest.raises(fastopt.CheckpointError, match="seed=5, and this optimizer has seed=6"):
        other.load(tmp_path / "file")
    other.load(tmp_path / "file", strict=False)
    assert held(other, {}) == held(optimizer, {})


def test_formats_are_converted_on_request(tmp_path):
    optimizer, params = built()
    optimizer.save(tmp_path / "file", params=True)
    other, mine = built(made("Adam", slot_dtype="bfloat16"), seed=4)
    other.load(tmp_path / "file", convert=True)
    expected = fastopt.Adam(slot_dtype="bfloat16")
    expected.build({name: array.copy() for name, array in params.items()})
    expected.load_state_dict(optimizer.state_dict(), convert=True)
    assert held(other, mine) == held(expected, params)


def test_parameters_that_cannot_be_written_are_found_first(tmp_path):
    optimizer, params = built()
    optimizer.save(tmp_path / "file", params=True)
    train(optimizer, params, 1)
    before = held(optimizer, params)
    params["wide"].flags.writeable = False
    with pytest.raises(fastopt.CheckpointError, match="wide"):
        optimizer.load(tmp_path / "file")
    assert held(optimizer, params) == before


def test_progress_counts_to_the_end(tmp_path):
    optimizer, seen = fastopt.SGD(momentum=0.9), []
    optimizer.build([np.zeros(3_000_000, np.float32)])
    optimizer.save(tmp_path / "file", params=True, progress=lambda *numbers: seen.append(numbers))
    done, totals = zip(*seen, strict=True)
    assert len(done) > 5 and list(done) == sorted(done)
    assert set(totals) == {(tmp_path / "file").stat().st_size} == {done[-1]}


def test_what_progress_raises_ends_the_saving(tmp_path):
    optimizer, params = built()
    optimizer.save(tmp_path / "file", params=True)
    before = (tmp_path / "file").read_bytes()
    train(optimizer, params, 1)

    def stop(done, total):
        raise KeyError("enough")

    for background in (False, True):
        with pytest.raises(KeyError, match="enough"):
            optimizer.save(tmp_path / "file", params=True, progress=stop, background=background).wait()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def test_in_the_background_training_goes_on(tmp_path):
    optimizer, params = built()
    before, goes_on = held(optimizer, params), threading.Event()
    saving = optimizer.save(
        tmp_path / "file", params=True, background=True, progress=lambda done, total: goes_on.wait(60)
    )
    assert not saving.done()
    with pytest.raises(TimeoutError, match="still being written"):
        saving.wait(0.01)
    train(optimizer, params, 3, start=3)
    assert list(tmp_path.glob("file")) == []
    goes_on.set()
    saving.wait()
    assert saving.done()
    assert held(*fastopt.load(tmp_path / "file")[:2]) == before != held(optimizer, params)


def test_a_second_save_waits_for_the_first(tmp_path):
    optimizer, params = built()
    order, started = [], threading.Event()

    def first(done, total):
        started.set()
        threading.Event().wait(0.02)
        order.append("first")

    optimizer.save(tmp_path / "file", background=True, progress=first)
    started.wait()
    train(optimizer, params, 1)
    optimizer.save(tmp_path / "file", progress=lambda done, total: order.append("second"))
    assert order == sorted(order) and {*order} == {"first", "second"}
    optimizer.load(tmp_path / "file")
    assert optimizer.iterations == 4


def test_a_save_in_the_background_that_fails_is_told(tmp_path):
    optimizer, _ = built()
    saving = optimizer.save(tmp_path / "missing" / "file", background=True)
    with pytest.raises(FileNotFoundError):
        saving.wait()
    with pytest.raises(FileNotFoundError):
        saving.done()
    saving = optimizer.save(tmp_path / "missing" / "file", background=True)
    saving._thread.join()
    with pytest.warns(RuntimeWarning, match="was not written, and nobody asked"):
        del saving


def test_the_interpreter_waits_and_a_fork_forgets(tmp_path):
    code = """
    import os, sys, time
    import numpy as np, fastopt
    from children import report, waited
    optimizer = fastopt.SGD(momentum=0.9)
    optimizer.build([np.zeros(2_000_000, np.float32)])
    saving = optimizer.save({0!r}, background=True, progress=lambda done, total: time.sleep(0.2))
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    report(status=waited(pid), done=saving.done())
    """
    found = run(code.format(str(tmp_path / "file")), PYTHONWARNINGS="ignore")
    assert found["status"] == 0 and not found["done"]
    optimizer = fastopt.SGD(momentum=0.9)
    optimizer.build([np.ones(2_000_000, np.float32)])
    optimizer.load(tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_neither_saving_nor_loading_copies_the_state(tmp_path):
    optimizer = fastopt.Adam()
    optimizer.build([np.ones(4_000_000, np.float32) for _ in range(4)])
    optimizer.apply([np.ones(4_000_000, np.float32)] * 4)  # the state's memory is there once it is written to
    optimizer.save(tmp_path / "file", params=True)
    size = (tmp_path / "file").stat().st_size
    assert size > 190e6
    assert peak_memory(lambda: optimizer.save(tmp_path / "file", params=True)) < 30e6
    assert peak_memory(lambda: optimizer.load(tmp_path / "file")) < 30e6


def test_arrays_on_a_gpu(gpus, tmp_path):
    gpu_arrays = pytest.importorskip("gpu_arrays")
    assert gpu_arrays
