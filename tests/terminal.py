"""A terminal of tests: commands run in a pseudo-terminal, and what a person then sees. Imports no fastopt."""

import contextlib
import os
import re
import select
import struct
import sys
import time

import pytest

PTY = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
PIECE = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
ENDS = 120
"""Seconds after which a command that has not ended is killed."""


def run(*arguments, width=80, press=b"", when=None, **environment):
    """Run ``fastopt`` in a terminal; its exit status, and all that it wrote.

    ``press`` is typed as soon as ``when``, a regular expression, is found in the output: the terminal echoes it.
    """
    import fcntl
    import pty
    import termios

    process, terminal = pty.fork()
    if process == 0:
        os.environ.pop("COLUMNS", None)
        os.environ.update({"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment)
        os.execv(sys.executable, [sys.executable, "-m", "fastopt", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    output, ends = b"", time.monotonic() + ENDS
    with contextlib.suppress(OSError):  # what reading raises once nobody has the other end
        while time.monotonic() < ends:
            if not select.select([terminal], [], [], 0.5)[0]:
                continue
            output += os.read(terminal, 65536)
            if press and re.search(when, output.decode(errors="replace")):
                os.write(terminal, press)
                press = b""
    if time.monotonic() >= ends:
        os.kill(process, 9)
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), output.decode()


def screen(output, width=80):
    """The lines that remain visible, of a terminal that scrolls for ever.

    It knows what ECMA-48 calls CR, LF, CUU (A), EL (K); colours and the like change nothing that is seen. A character
    beyond the last column begins a new line.
    """
    lines, row, column = [[]], 0, 0
    for numbers, command, control, text in PIECE.findall(output):
        if control == "\r":
            column = 0
        elif control == "\n":
            row += 1
        elif command == "A":
            row = max(0, row - int(numbers or 1))
        elif command == "K":
            lines[row] = {"": lines[row][:column], "0": lines[row][:column], "2": []}[numbers]
        for character in text:
            if column == width:
                row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = character
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]
