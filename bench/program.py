"""What the programs beside `make bench` share: arguments, a table, results, and a word where the machine is busy."""

import argparse

from rich.console import Console
from rich.table import Table

from fastopt.bench.outcome import BUSY_STATUS, BusyError
from fastopt.bench.result import Result


def parser_of(doc, **numbers):
    """A parser with ``--results`` and options of the given defaults."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--results", metavar="FILE", help="add the figures to this JSON file")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser


class Report:
    """The lines of a table, and what could not be measured for other programs."""

    def __init__(self, *columns, title=None):
        self.table, self.rows, self._busy = Table(*columns, title=title), [], 0

    def attempt(self, what, measure, *arguments):
        """What a measurement gives, or None, which is said, where the machine was busy."""
        try:
            return measure(*arguments)
        except BusyError as error:
            print(f"{what}: {error}", flush=True)
            self._busy += 1
            return None

    def add(self, row, *cells):
        """Keep a row of the results, and a line of the table."""
        self.rows.append(row)
        self.table.add_row(*map(str, cells))

    def finish(self, path, section, found=None):
        """Print the table, write a section of the results; end the program if something was not measured."""
        Console(width=120).print(self.table)
        if path and (found or self.rows):
            Result(path).update(**{section: found or self.rows})
        if self._busy:
            print(f"{self._busy} not measured: the machine was busy; run it again when nothing else runs")
            raise SystemExit(BUSY_STATUS)
