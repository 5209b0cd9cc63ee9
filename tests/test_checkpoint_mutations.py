"""Thousands of damaged and forged checkpoints: each is refused, or loads and says nothing false.

    python tests/test_checkpoint_mutations.py --count 20000 --seed 1

Two kinds. Damage: bytes of a file are changed as disks, networks and crashes change them; such a file loads only if it
is one of the originals. Forgery: a header is changed and sealed with the right checksum; such a file loads only as what
the safetensors library, too, finds in it. Memory is limited meanwhile, and a file that takes long is a failure.
"""

import argparse
import collections
import contextlib
import copy
import json
import random
import resource
import signal
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import fastopt

MEMORY, PATIENCE = 500_000_000, 60
"""Bytes above what the process has when it begins; seconds after which a file counts as one that hangs."""

SIZES = [-1, 0, 1, 2, 3, 7, 64, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, True, None, "1", [], {}]
TEXTS = ["", "F32", "F64", "BF16", "U8", "state/w/momentum", "params/w", "0", "\ud800", "x" * 5000, "$", "SGD", "Muon"]
DEEP = ["[" * 50_000 + "]" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000]


def built(number, **options):
    params = {"w": np.full((9, 5), number, np.float32), "b": np.full(7, number, np.float32)}
    optimizer = fastopt.SGD(0.125, momentum=0.875, **options)
    optimizer.build(params)
    for array in optimizer.slots["momentum"]:
        array[...] = number
    return optimizer, params


def held(optimizer, params):
    state = {name: np.asarray(value).tobytes() for name, value in sorted(optimizer.state_dict().items())}
    return state | {name: array.tobytes() for name, array in params.items()}


class Mutator:
    """Makes files like some originals; everything follows from the seed."""

    def __init__(self, originals, seed):
        self.originals, self.rng = originals, random.Random(seed)

    def damaged(self):
        """Bytes of an original, changed here and there."""
        whole = bytearray(self.rng.choice(self.originals))
        way = self.rng.randrange(8)
        if way == 0:
            for _ in range(self.rng.choice([1, 1, 1, 2, 5, 50])):
                whole[self.rng.randrange(len(whole))] ^= 1 << self.rng.randrange(8)
        elif way == 1:
            del whole[self._place(whole) :]
        elif way == 2:
            whole += bytes(self.rng.choice([1, 8, 64, 4096]))
        elif way == 3:
            whole[:8] = (self.rng.choice([0, 1, 7, 2**31, 2**32, 2**63, 2**64 - 1, len(whole)])).to_bytes(8, "little")
        elif way == 4:
            start = self._place(whole)
            length = self.rng.choice([1, 8, 512, 4096])
            whole[start : start + length] = bytes(len(whole[start : start + length]))
        elif way == 5:
            other = self.rng.choice(self.originals)
            place = self.rng.choice([8, self._place(whole), 8 + int.from_bytes(whole[:8], "little")])
            whole = bytearray(other[:place] + whole[place:])
        elif way == 6:
            start, length = self._place(whole), self.rng.choice([1, 4, 64])
            del whole[start : start + length]
        else:
            start = self._place(whole)
            whole[start:start] = self.rng.randbytes(self.rng.choice([1, 4, 64]))
        return bytes(whole)

    def _place(self, whole):
        return self.rng.choice([self.rng.randrange(len(whole)), self.rng.randrange(min(200, len(whole)))])

    def forged(self):
        """An original with another header, of the right checksum."""
        whole = self.rng.choice(self.originals)
        end = 8 + int.from_bytes(whole[:8], "little")
        content = json.loads(whole[8:end])
        text = None
        for _ in range(self.rng.choice([1, 1, 2, 4])):
            if self.rng.random() < 0.5:
                inner = json.loads(content["__metadata__"]["fastopt"])
                self._change(inner)
                content["__metadata__"]["fastopt"] = json.dumps(inner)
            else:
                metadata = content.pop("__metadata__")
                self._change(content)
                content = {"__metadata__": metadata, **content}
        if self.rng.random() < 0.02:
            content["__metadata__"]["fastopt"] = self.rng.choice(DEEP)
        if self.rng.random() < 0.02:
            text = json.dumps(content, separators=(",", ":"))[:-1] + f',"a":{self.rng.choice(DEEP)}}}'
        return sealed(text or json.dumps(content, separators=(",", ":"))) + whole[end:]

    def _change(self, content):
        """Change one thing somewhere in JSON."""
        places = list(_places(content))
        node, key = self.rng.choice(places)
        way = self.rng.randrange(6)
        if way == 0:
            node[key] = self.rng.choice(SIZES)
        elif way == 1:
            node[key] = self.rng.choice(TEXTS)
        elif way == 2:
            del node[key]
        elif way == 3:
            other, its = self.rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                node[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(node[key])
        elif way == 4 and isinstance(node, dict):
            node[self.rng.choice(TEXTS)] = node.pop(key)
        elif isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = node[key] + self.rng.choice([-1, 1, 0.5, 2**63, -(2**63)])
        else:
            node[key] = [node[key]] * self.rng.choice([1, 2, 100])


def _places(node):
    """Every container in JSON with each of its keys."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(child, dict | list):
            yield from _places(child)


def sealed(text):
    """A header's bytes with the right checksum."""
    begin = '{"__metadata__":{"crc32":"'
    content = text.encode()
    content += b" " * (-(len(content) + 8) % 64)
    whole = len(content).to_bytes(8, "little") + content
    place = 8 + len(begin)
    blank = whole[:place] + b"0" * 8 + whole[place + 8 :]
    return blank[:place] + f"{zlib.crc32(blank):08x}".encode() + blank[place + 8 :]


def originals(folder):
    """Small files of several kinds."""
    made = [built(1.0), built(2.0, use_ema=True), built(3.0, gradient_accumulation_steps=2)]
    found = []
    for k, (optimizer, _) in enumerate(made):
        for params, extra in ((True, {"epoch": 3, "rng": (1, np.arange(5))}), (False, None)):
            optimizer.save(folder / f"{k}", params=params, extra=extra)
            found.append((folder / f"{k}").read_bytes())
    return found


def attempt(whole, path, is_forged, known, optimizer, params):
    """Load a file into an optimizer, and as one; what came of it. Raises AssertionError where that may not be."""
    path.write_bytes(whole)
    before = held(optimizer, params)
    try:
        optimizer.load(path)
    except fastopt.CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error)) < 10_000
        assert held(optimizer, params) == before, "refused, and changed all the same"
        outcome = "refused"
    else:
        assert is_forged or whole in known, "damaged, and loaded all the same"
        _compare(whole, optimizer, params)
        outcome = "loaded"
    try:
        loaded = fastopt.load(path)
    except fastopt.CheckpointError:
        return outcome
    assert is_forged or whole in known, "damaged, and made an optimizer all the same"
    _compare(whole, loaded.optimizer, loaded.params)
    return "loaded"


def _compare(whole, optimizer, params):
    """What was loaded is what the file's own library finds in the file."""
    numpy = pytest.importorskip("safetensors.numpy")
    state = optimizer.state_dict()
    for name, array in numpy.load(whole).items():
        kind, _, rest = name.partition("/")
        if kind != "extra":
            found = (state if kind == "state" else params)[rest]
            assert found.shape == array.shape
            assert np.array_equal(found, array.astype(found.dtype), equal_nan=True), f"{name} is another"


def mutate(count, seed, folder):
    """How many files of each kind came to which end."""
    known = originals(folder)
    mutator, ends, subject = Mutator(known, seed), collections.Counter(), built(7.0)
    for number in range(count):
        is_forged = bool(number % 2)
        whole = mutator.forged() if is_forged else mutator.damaged()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            end = attempt(whole, folder / "file", is_forged, known, *subject)
        except BaseException as error:
            (Path(tempfile.gettempdir()) / "mutated.safetensors").write_bytes(whole)
            raise AssertionError(f"file {number} of seed {seed}, forged: {is_forged}: {error!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        ends["forged" if is_forged else "damaged", end] += 1
    return ends


def _hangs(*_):
    raise TimeoutError(f"a file takes more than {PATIENCE} s")


@contextlib.contextmanager
def limits():
    """Context in which a file that hangs, or takes much memory, fails."""
    before = signal.signal(signal.SIGALRM, _hangs)
    kept = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited with Linux's means")
def test_mutated_files(tmp_path, request):
    pytest.importorskip("safetensors")
    built(0.0)
    with limits():
        ends = mutate(2000, 1, tmp_path)
    assert ends["damaged", "refused"] > 900 and ends["forged", "refused"] > 700 and ends["forged", "loaded"] > 10


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited with Linux's means")
def test_many_mutated_files(tmp_path):
    pytest.importorskip("safetensors")
    with limits():
        assert sum(mutate(20_000, 2, tmp_path).values()) == 20_000


def test_the_mutator_is_not_idle(tmp_path):
    """Without checksums, damage would load: it is the checksums that find it."""
    known = originals(tmp_path)
    mutator = Mutator(known, 0)
    data = [whole for whole in (mutator.damaged() for _ in range(600)) if any(len(whole) == len(k) for k in known)]
    headers = {whole[: 8 + int.from_bytes(whole[:8], "little")] for whole in known}
    same_header = [whole for whole in data if whole[: 8 + int.from_bytes(whole[:8], "little")] in headers]
    assert sum(whole not in known for whole in same_header) > 20


def main():
    """Mutate as many files as are asked for, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, limits():
        for (kind, end), count in sorted(mutate(options.count, options.seed, Path(folder)).items()):
            print(f"{kind}: {count} {end}")


if __name__ == "__main__":
    main()
