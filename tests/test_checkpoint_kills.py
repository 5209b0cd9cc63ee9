"""`torture_checkpoints` for a while; `make torture` does it with 300 kills."""

import sys

import pytest
import torture_checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


def test_kills_at_random_moments_lose_nothing(tmp_path):
    tally = torture_checkpoints.torture(8, 60, tmp_path, steps=60)
    assert tally.kills > 1 and tally.wrong == 0 and tally.is_equal


def test_torture_notices_a_file_that_is_written_in_place(tmp_path, monkeypatch):
    """As every other writer does it: then a kill leaves half of one."""
    monkeypatch.setattr(torture_checkpoints, "__file__", str(tmp_path / "child.py"))
    (tmp_path / "child.py").write_text(
        "import contextlib, sys, time\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import torture_checkpoints\n"
        "from fastopt.checkpoint import contents\n"
        "@contextlib.contextmanager\n"
        "def in_place(path, keep):\n"
        "    with open(path, 'wb', buffering=0) as file:\n"
        "        yield file\n"
        "        file.truncate(1000)\n"
        "        time.sleep(5)\n"
        "contents.replacing = in_place\n"
        "sys.exit(torture_checkpoints.main())\n"
    )
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(ValueError, match="was cut off"):
        torture_checkpoints.torture(5, 60, folder, steps=3)
