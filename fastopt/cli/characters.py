"""Characters that a terminal or file cannot show: something else takes their place, and nothing fails."""

from __future__ import annotations

import codecs
import io
import sys

STAND_INS = str.maketrans("…–—−‐×‘’“”", "~----x''\"\"")
"""As wide as what they stand in for, or tables would lose their shape."""

HORIZONTAL, VERTICAL = "─━┄┅┈┉╌╍═╴╶╸╺╼╾", "│┃┆┇┊┋╎╏║╵╷╹╻╽╿"


def degrade_gracefully() -> None:
    """Have standard output and error write what they have instead of characters that their encoding lacks."""
    codecs.register_error("fastopt", _stand_ins)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fastopt")


def _stand_ins(error: UnicodeError) -> tuple[str, int]:
    """See `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(character: str) -> str:
    if ord(character) in STAND_INS:
        return character.translate(STAND_INS)
    if "\u2500" <= character <= "\u257f":  # lines of boxes
        return "-" if character in HORIZONTAL else "|" if character in VERTICAL else "+"
    if "\u2580" <= character <= "\u259f" or "\u2800" <= character <= "\u28ff":  # blocks, braille
        return "#"
    return character.encode("ascii", "backslashreplace").decode("ascii")
