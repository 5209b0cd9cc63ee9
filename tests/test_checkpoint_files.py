"""Checkpoints where things go wrong: disks, permissions, other processes, signals, memory, files of strangers."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from children import FORK, finish, in_fork, run, start
from rows import rows
from test_checkpoint_mutations import sealed

import fastopt
import fastopt.checkpoint.tensors as tensors
from fastopt.checkpoint import files
from fastopt.checkpoint.header import encoded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its conditions are made with Linux's means")


def built(number=0.0, size=1000):
    """An optimizer, its parameters, all of whose state is one number."""
    params = {"w": np.full(size, number, np.float32)}
    optimizer = fastopt.SGD(momentum=0.9)
    optimizer.build(params)
    optimizer.slots["momentum"][0][...] = number
    return optimizer, params


def number_in(path):
    """The number that a checkpoint of `built` holds: in all of it."""
    optimizer, params, _ = fastopt.load(path)
    return number_of(optimizer, params)


def number_of(optimizer, params):
    """The number that everything is."""
    number = params["w"][0]
    assert np.all(params["w"] == number) and np.all(optimizer.slots["momentum"][0] == number)
    return float(number)


def names(folder):
    return sorted(file.name for file in Path(folder).iterdir())


@pytest.fixture
def saved(tmp_path):
    """A folder with a checkpoint of 1.0, ``old``."""
    built(1.0)[0].save(tmp_path / "old", params=True)
    return tmp_path


# -- one file after the other ------------------------------------------------------------------------------------------


def test_the_last_ones_are_kept(tmp_path):
    for number in range(5):
        built(float(number))[0].save(tmp_path / "run", params=True, keep=3)
    assert names(tmp_path) == ["run", "run.1", "run.2"]
    assert [number_in(tmp_path / name) for name in names(tmp_path)] == [4.0, 3.0, 2.0]
    built(5.0)[0].save(tmp_path / "run", params=True, keep=2)
    assert [number_in(tmp_path / name) for name in names(tmp_path)] == [5.0, 4.0, 2.0]
    built(6.0)[0].save(tmp_path / "run", params=True)
    assert [number_in(tmp_path / name) for name in names(tmp_path)] == [6.0, 4.0, 2.0]


def test_a_kill_between_keeping_and_replacing_keeps_nothing_twice(tmp_path):
    for number in (0.0, 1.0, 2.0):
        built(number)[0].save(tmp_path / "run", params=True, keep=3)
    os.unlink(tmp_path / "run.2")
    os.rename(tmp_path / "run.1", tmp_path / "run.2")
    os.link(tmp_path / "run", tmp_path / "run.1")  # as a process leaves it that is killed just before it replaces
    built(3.0)[0].save(tmp_path / "run", params=True, keep=3)
    assert [number_in(tmp_path / name) for name in ("run", "run.1", "run.2")] == [3.0, 2.0, 1.0]


def test_the_new_file_is_on_the_disk_before_it_takes_the_place(saved, monkeypatch):
    order = []
    for name in ("fsync", "replace", "link"):
        call = getattr(os, name)

        def noted(*arguments, name=name, call=call):
            kind = ""
            if name == "fsync":
                kind = " of a folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else " of a file"
            assert number_in(saved / "old") == (2.0 if kind == " of a folder" else 1.0)
            order.append(name + kind)
            return call(*arguments)

        monkeypatch.setattr(os, name, noted)
    built(2.0)[0].save(saved / "old", params=True, keep=2)
    assert order == ["fsync of a file", "link", "replace", "replace", "fsync of a folder"]


def test_permissions_and_links_stay(saved):
    os.chmod(saved / "old", 0o640)
    (saved / "elsewhere").mkdir()
    os.symlink("../old", saved / "elsewhere" / "link")
    before = (saved / "old").stat().st_ino
    built(2.0)[0].save(saved / "elsewhere" / "link", params=True)
    assert names(saved / "elsewhere") == ["link"] and (saved / "elsewhere" / "link").is_symlink()
    assert number_in(saved / "old") == 2.0 and (saved / "old").stat().st_ino != before
    assert stat.S_IMODE((saved / "old").stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        built()[0].save(saved / "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((saved / "new").stat().st_mode) == 0o640


def test_what_is_no_regular_file_stays(tmp_path):
    optimizer, _ = built()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.symlink("loop", tmp_path / "loop")
    for name in ("pipe", "folder", "loop"):
        with pytest.raises(OSError, match=name):
            optimizer.save(tmp_path / name)
        with pytest.raises((OSError, fastopt.CheckpointError), match=name):
            optimizer.load(tmp_path / name)  # and does not wait for who might write to the pipe
    with pytest.raises(OSError, match="/dev/null"):
        optimizer.save("/dev/null")
    assert names(tmp_path) == ["folder", "loop", "pipe"] and Path("/dev/null").is_char_device()


def test_a_relative_path(saved, monkeypatch):
    monkeypatch.chdir(saved)
    built(2.0)[0].save("old", params=True, keep=2)
    assert (number_in("old"), number_in("old.1")) == (2.0, 1.0)


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(saved):
    left, foreign = f".old.{'0' * 16}.tmp", ".old.tmp"
    (saved / left).write_bytes(b"half")
    (saved / foreign).write_bytes(b"not ours")
    writing, may_end = threading.Event(), threading.Event()

    def wait(done, total):
        writing.set()
        may_end.wait(60)

    saving = built(2.0)[0].save(saved / "old", params=True, background=True, progress=wait)
    writing.wait(60)
    found = in_fork(lambda: built(3.0)[0].save(saved / "old", params=True).done())
    assert found is True and number_in(saved / "old") == 3.0
    assert left not in names(saved) and foreign in names(saved) and len(names(saved)) == 3
    may_end.set()
    saving.wait()
    assert number_in(saved / "old") == 2.0 and names(saved) == [foreign, "old"]


@rows("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links(code, tmp_path, monkeypatch):
    built(1.0)[0].save(tmp_path / "run", params=True)
    (tmp_path / "run.1").write_bytes(b"older")

    def link(*arguments):
        raise OSError(code, "no")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="keep=3 needs hard links, which cannot be made here: use keep=1"):
        built(2.0)[0].save(tmp_path / "run", params=True, keep=3)
    assert number_in(tmp_path / "run") == 1.0 and names(tmp_path) == ["run", "run.1"]
    built(2.0)[0].save(tmp_path / "run", params=True)
    assert number_in(tmp_path / "run") == 2.0


def test_without_locks(saved, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    (saved / f".old.{'0' * 16}.tmp").write_bytes(b"whose?")
    built(2.0)[0].save(saved / "old", params=True, keep=2)
    assert (number_in(saved / "old"), number_in(saved / "old.1")) == (2.0, 1.0) and len(names(saved)) == 3


# -- what the system refuses -------------------------------------------------------------------------------------------


@rows("call, code", [("fsync", errno.EIO), ("replace", errno.EROFS), ("fchmod", errno.EACCES), ("link", errno.ENOSPC)])
def test_any_call_that_fails_leaves_the_old_file_and_nothing_else(call, code, tmp_path, monkeypatch):
    built(1.0)[0].save(tmp_path / "old", params=True)

    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "old"))) as caught:
            built(2.0)[0].save(tmp_path / "old", params=True, keep=2)
    assert caught.value.errno == code
    assert number_in(tmp_path / "old") == 1.0 and names(tmp_path) == ["old"]


def test_a_limit_on_the_size_of_files(saved):
    found = run(f"""
        import resource
        from children import report
        from test_checkpoint_files import built
        optimizer, _ = built(2.0, 100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            optimizer.save({str(saved / "old")!r}, params=True)
        except OSError as error:
            report(errno=error.errno, name=error.filename)
        """)
    assert (found["errno"], found["name"]) == (errno.EFBIG, str(saved / "old"))
    assert number_in(saved / "old") == 1.0 and names(saved) == ["old"]


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system; how to mount it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        return folder

    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount file systems")
    yield mount
    while os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(mounted):
    folder = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    built(1.0)[0].save(folder / "old", params=True)
    with pytest.raises(OSError, match="old") as caught:
        built(2.0, 1_000_000)[0].save(folder / "old", params=True)
    assert caught.value.errno == errno.ENOSPC
    assert number_in(folder / "old") == 1.0 and names(folder) == ["old"]
    built(3.0)[0].save(folder / "old", params=True)  # and there is room again
    assert number_in(folder / "old") == 3.0


def test_a_read_only_disk(mounted):
    folder = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    built(1.0)[0].save(folder / "old", params=True)
    mounted("-o", "remount,ro")
    with pytest.raises(OSError, match="old") as caught:
        built(2.0)[0].save(folder / "old", params=True)
    assert caught.value.errno == errno.EROFS
    assert number_in(folder / "old") == 1.0 and names(folder) == ["old"]


def as_nobody(function):
    """Call a function in a child that is no longer root."""

    def call():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        return function()

    return in_fork(call)


@FORK
def test_a_folder_and_a_file_that_one_may_not_touch(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    optimizer, _ = built(2.0)
    optimizer.save(folder / "old", params=True)
    for parent in (folder, *folder.parents[:-1]):
        if os.access(parent, os.W_OK) and parent.is_relative_to(tmp_path.parents[1]):
            os.chmod(parent, 0o755)
    os.chmod(folder / "old", 0o600 if os.geteuid() == 0 else 0)
    os.chmod(folder, 0o555)

    def attempt():
        found = []
        for call in (optimizer.save, optimizer.load):
            try:
                call(folder / "old")
            except OSError as error:
                found.append(error.errno)
        return found

    try:
        assert as_nobody(attempt) == [errno.EACCES, errno.EACCES]
    finally:
        os.chmod(folder, 0o755)
        os.chmod(folder / "old", 0o600)
    assert number_in(folder / "old") == 2.0 and names(folder) == ["old"]


def test_too_little_memory_to_load(tmp_path):
    """For the extra, which is read first; a state of any size takes some megabytes."""
    optimizer, _ = built(1.0, 2_000_000)
    optimizer.save(tmp_path / "large", params=True, extra=np.zeros(100_000_000, np.uint8))
    optimizer.save(tmp_path / "state", params=True)
    found = run(f"""
        import resource
        from pathlib import Path
        from children import report
        from test_checkpoint_files import built, number_of
        optimizer, params = built(2.0, 2_000_000)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 80_000_000, size + 80_000_000))
        try:
            optimizer.load({str(tmp_path / "large")!r})
        except MemoryError as error:
            told, number = str(error), number_of(optimizer, params)
        optimizer.load({str(tmp_path / "state")!r})
        report(told=told, before=number, after=number_of(optimizer, params))
        """)
    assert "Unable to allocate" in found["told"] and (found["before"], found["after"]) == (2.0, 1.0)


# -- others at work ----------------------------------------------------------------------------------------------------


def test_processes_and_threads_that_save_to_one_path(tmp_path):
    """Whoever reads meanwhile finds a whole file, always."""
    code = """
    from children import report
    from test_checkpoint_files import built
    optimizer, _ = built({number}, 300_000)
    for _ in range(10):
        optimizer.save({path!r}, params=True, keep=3)
    report()
    """
    path = tmp_path / "run"
    built(1.0, 300_000)[0].save(path, params=True)
    children = [start(code.format(number=float(number), path=str(path))) for number in (1, 2)]
    seen, ended = [], threading.Event()
    threads = [threading.Thread(target=_save_until, args=(ended, path, float(number))) for number in (3, 4)]
    for thread in threads:
        thread.start()
    while any(child.poll() is None for child in children):
        seen.append(number_in(path))
    ended.set()
    for each in (*map(finish, children), *[thread.join() for thread in threads]):
        assert each is None or each["compilations"] >= 0
    assert set(seen) <= {1.0, 2.0, 3.0, 4.0} and len(seen) > 3
    assert names(tmp_path) == ["run", "run.1", "run.2"]
    assert {number_in(tmp_path / name) for name in names(tmp_path)} <= {1.0, 2.0, 3.0, 4.0}


def _save_until(ended, path, number):
    optimizer, _ = built(number, 300_000)
    while not ended.is_set():
        optimizer.save(path, params=True, keep=3)


def test_who_changes_parameters_meanwhile_gets_a_file_that_loads(tmp_path):
    optimizer, params = built(1.0, 3_000_000)
    ended = threading.Event()

    def scribble():
        while not ended.is_set():
            params["w"][...] += 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(5):
            optimizer.save(tmp_path / "file", params=True)
            fastopt.load(tmp_path / "file")
    finally:
        ended.set()
        thread.join()


@FORK
def test_a_fork_saves_and_loads(saved):
    optimizer, params = built(2.0)
    optimizer.save(saved / "background", background=True).wait()
    optimizer.save(saved / "background", background=True)

    def in_child():
        optimizer.save(saved / "child", params=True, background=True).wait()
        optimizer.load(saved / "old")
        return [number_in(saved / "child"), float(params["w"][0])]

    assert in_fork(in_child) == [2.0, 1.0]
    assert params["w"][0] == 2.0


class Interrupted(BaseException):
    """What a handler raises."""


# What a handler raises within a callback of a weak reference, Python itself can only report.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["save", "load"])
def test_signals_find_it_done_or_not_begun(what, tmp_path):
    one, two = built(1.0, 400_000)[0], built(2.0, 400_000)[0]
    one.save(tmp_path / "one", params=True)
    two.save(tmp_path / "two", params=True)
    optimizer, params = built(1.0, 400_000)
    rng, happened, armed = np.random.default_rng(0), 0, [False]

    def handle(*_):
        if armed[0]:
            armed[0] = False
            raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    began = time.perf_counter()
    optimizer.load(tmp_path / "one")
    duration = time.perf_counter() - began
    try:
        for attempt in range(150):
            source = tmp_path / ("one", "two")[attempt % 2]
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + rng.random() * 1.5 * duration)
                if what == "load":
                    optimizer.load(source)
                else:
                    (one, two)[attempt % 2].save(tmp_path / "run", params=True, keep=2)
                armed[0] = False
            except Interrupted:
                happened += 1
            armed[0] = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            if what == "load":
                assert number_of(optimizer, params) in (1.0, 2.0)
            elif "run" in names(tmp_path):
                assert number_in(tmp_path / "run") in (1.0, 2.0)
                assert set(names(tmp_path)) <= {"one", "two", "run", "run.1"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert happened > 20


# -- files of strangers ------------------------------------------------------------------------------------------------


def forged(path, change_header=None, change_text=None, data=None):
    """Write the file at ``path`` anew with another header, whose checksum is right."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    content = json.loads(whole[8:end])
    if change_text is not None:
        told = json.loads(content["__metadata__"]["fastopt"])
        content["__metadata__"]["fastopt"] = change_text(told) or json.dumps(told)
    text = (change_header(content) if change_header else None) or json.dumps(content, separators=(",", ":"))
    path.write_bytes(sealed(text) + (whole[end:] if data is None else data))


def setting(*keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def entry_of(name="params/w", **changes):
    return {"change_header": lambda content: content[name].update(changes)}


def told(*keys, to):
    return {"change_text": setting(*keys, to=to)}


def with_another(content):
    content["other"] = {"dtype": "F32", "shape": [0], "data_offsets": [8000, 8000]}
    content["__metadata__"]["sums"] += "0" * 8


DEEP = "[" * 200_000 + "]" * 200_000
TWICE = '{"format":1,"format":1}'
FORGERIES = {
    "a shape of 2**63": (entry_of(shape=[2**63]), "no shape"),
    "a shape of a product over 2**64": (entry_of(shape=[2**40, 2**40]), "no shape"),
    "nothing of much": (entry_of(shape=[0, 2**62, 2**62]), "no shape"),
    "a negative shape": (entry_of(shape=[-1000]), "no shape"),
    "a shape of floats": (entry_of(shape=[1000.0]), "no shape"),
    "a shape of bools": (entry_of(shape=[True] * 2 + [1000]), "no shape"),
    "a shape that is none": (entry_of(shape="1000"), "no shape"),
    "many axes": (entry_of(shape=[1] * 40 + [1000]), "no shape"),
    "another shape": (entry_of(shape=[999]), "shape and place differ"),
    "another dtype": (entry_of(dtype="F64"), "shape and place differ"),
    "a dtype of as many bytes": (entry_of(dtype="I32"), "does not hold parameter w as it says"),
    "a dtype that nobody has": (entry_of(dtype="F3"), "a dtype that fastopt does not know"),
    "a dtype that is a list": (entry_of(dtype=["F32"]), "a dtype that fastopt does not know"),
    "places that overlap": (entry_of(data_offsets=[0, 4000]), "does not begin where"),
    "places beyond the file": (entry_of(data_offsets=[4000, 2**62]), "shape and place differ"),
    "places backwards": (entry_of(data_offsets=[8000, 4000]), "no place in the file"),
    "places of three": (entry_of(data_offsets=[4000, 8000, 8000]), "no place in the file"),
    "one entry more": ({"change_header": setting("state/x", to=[])}, "says nonsense of the array"),
    "one array more": ({"change_header": lambda content: with_another(content)}, "which is no part of a checkpoint"),
    "one array fewer": (
        {"change_header": lambda content: content.pop("params/w") and None},
        "it was cut off, or added",
    ),
    "data cut off": ({"data": b""}, "was cut off, or added to"),
    "no texts": ({"change_header": lambda content: content["__metadata__"].pop("fastopt") and None}, "lacks fastopt's"),
    "texts that are none": ({"change_header": setting("__metadata__", "fastopt", to=3)}, "other things than texts"),
    "no checksums": ({"change_header": setting("__metadata__", "sums", to="")}, "checksum for each array"),
    "checksums of nonsense": ({"change_header": setting("__metadata__", "sums", to="x" * 16)}, "checksum for each"),
    "wrong checksums": ({"change_header": setting("__metadata__", "sums", to="0" * 16)}, "the array .* is damaged"),
    "a key twice": (
        {"change_header": lambda content: json.dumps(content, separators=(",", ":"))[:-1] + ',"params/w":{}}'},
        "a key is there twice",
    ),
    "deep JSON": (
        {"change_header": lambda content: json.dumps(content, separators=(",", ":"))[:-1] + f',"a":{DEEP}}}'},
        "nested too deeply",
    ),
    "deep JSON within": ({"change_text": lambda told: DEEP}, "nested too deeply"),
    "no JSON within": ({"change_text": lambda told: "{'a'"}, "cannot be read"),
    "a list within": ({"change_text": lambda told: "[]"}, "is no JSON object"),
    "a key twice within": ({"change_text": lambda told: TWICE}, "a key is there twice"),
    "no version": (told("format", to="1"), "which version"),
    "version 0": (told("format", to=0), "which version"),
    "a newer version": (
        {"change_text": lambda told: told.update(format=2, needs="0.7.3")},
        "of a newer version, 2, than this fastopt reads: install fastopt 0.7.3 or newer",
    ),
    "something more": (told("more", to=1), "not complete"),
    "parameters that are none": (told("parameters", to={"w": 1}), "nonsense of parameters"),
    "axes": (told("parameters", 0, "axes", to=[1]), "nonsense of the parameter 'w'"),
    "another parameter": (told("parameters", 0, "path", to="v"), "does not hold the parameters that it names"),
    "its shape": (told("parameters", 0, "shape", to=[3]), "does not hold parameter w as it says"),
    "its dtype": (told("parameters", 0, "dtype", to="float64"), "does not hold parameter w as it says"),
    "a dtype of parameters": (told("parameters", 0, "dtype", to={}), "nonsense of the parameter 'w'"),
    "a count of 2**63": (told("state", "iterations", to=2**63), "iterations: expected a count"),
    "a count below zero": (told("state", "iterations", to=-1), "iterations: expected a count"),
    "a count of text": (told("state", "iterations", to="many"), "iterations: expected a number"),
    "a rate of infinity": (told("state", "learning_rate", to=float("inf")), "makes no sense"),
    "a counter more": (told("state", "more", to=1), "unexpected"),
    "an array among counters": (told("state", "w/momentum", to=1.0), "makes no sense"),
    "a seed of text": (told("seed", to="0"), "makes no sense"),
    "extra of nonsense": (told("extra", to={"$": "array", "of": 0}), "its extra cannot be read"),
    "formats": (told("state", "formats", to=DEEP), "formats: expected what"),
}


@rows("name", FORGERIES)
def test_forged_files_are_refused_with_nothing_changed(name, tmp_path):
    changes, message = FORGERIES[name]
    path = tmp_path / "file"
    built(1.0)[0].save(path, params=True)
    forged(path, **changes)
    optimizer, params = built(2.0)
    with pytest.raises(fastopt.CheckpointError, match=rf"^{re.escape(str(path))}: .*{message}"):
        optimizer.load(path)
    assert number_of(optimizer, params) == 2.0
    with pytest.raises(fastopt.CheckpointError, match=re.escape(str(path))):
        fastopt.load(path)


UNMAKEABLE = {
    "no class": told("optimizer", "class_name", to="Nonesuch"),
    "no text": told("optimizer", "class_name", to=[1]),
    "a module of the system": told("optimizer", "module", to="os"),
    "a function": {"change_text": lambda t: t["optimizer"].update(module="fastopt.compat.base", class_name="read")},
    "a module that is not there": told("optimizer", "module", to="fastopt.compat.nonesuch"),
    "no config": told("optimizer", to={}),
    "a config that is none": told("optimizer", "config", to=5),
    "a rate of nonsense": told("optimizer", "config", "learning_rate", to={"class_name": "X", "config": {}}),
    "an argument more": told("optimizer", "config", "rm", to="-rf"),
    "a rate below": told("optimizer", "config", "momentum", to=-3),
    "exclusions": told("excluded", to={"names": 3}),
    "no regular expression": told("excluded", to={"names": ["("], "paths": []}),
    "overrides": told("overrides", to={"w": {"trainable": 3}}),
    "a seed below zero": told("seed", to=-1),
}


@rows("name", UNMAKEABLE)
def test_forged_optimizers_are_not_made(name, tmp_path):
    path = tmp_path / "file"
    built(1.0)[0].save(path, params=True)
    forged(path, **UNMAKEABLE[name])
    if name == "a module of the system":  # what is no module of old releases is not imported: SGD is fastopt's
        assert type(fastopt.load(path).optimizer) is fastopt.SGD
        return
    with pytest.raises(fastopt.CheckpointError, match=re.escape(str(path))):
        fastopt.load(path)


def test_forging_without_a_change_is_no_forgery(saved):
    forged(saved / "old")
    assert number_in(saved / "old") == 1.0
    whole = (saved / "old").read_bytes()
    assert whole.startswith(encoded(tensors.decoded(whole[: 8 + int.from_bytes(whole[:8], "little")], len(whole))))


@rows(
    "content",
    [b"", b"\x00" * 7, b"\xff" * 100, b"PK\x03\x04" + b"\x00" * 60, (2**63 - 1).to_bytes(8, "little") + b"{}"],
    ids=["empty", "short", "all ones", "an npz", "a length of 2**63"],
)
def test_what_is_no_checkpoint(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    for call in (fastopt.load, built()[0].load):
        with pytest.raises(
            fastopt.CheckpointError, match="file: it is no safetensors file, or was cut off: load another"
        ):
            call(tmp_path / "file")


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastopt.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        built()[0].save(tmp_path / "missing" / "file")


def test_a_file_that_becomes_shorter_while_it_is_read(saved, monkeypatch):
    optimizer, params = built(2.0)
    checksum = tensors.Stored.checksum

    def cut(stored):
        os.truncate(saved / "old", 2000)
        return checksum(stored)

    monkeypatch.setattr(tensors.Stored, "checksum", cut)
    with pytest.raises(fastopt.CheckpointError, match="it became shorter while it was read"):
        optimizer.load(saved / "old")
    assert number_of(optimizer, params) == 2.0


@pytest.mark.full
def test_places_beyond_4_gib(tmp_path):
    arrays = {"a": np.zeros(1_100_000_000, np.float32), "b": np.arange(3, dtype=np.float32)}
    items = [tensors.Item(name, "F32", array.shape, lambda array=array: array) for name, array in arrays.items()]
    with files.replacing(str(tmp_path / "file")) as file:
        tensors.write(file, items, "text")
    with tensors.opened(str(tmp_path / "file")) as (found, text):
        assert text == "text" and np.array_equal(np.asarray(found["b"]), arrays["b"])
    os.unlink(tmp_path / "file")
