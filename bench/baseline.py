"""Make bench/baseline.json from whole runs of the benchmarks: of each ratio the median.

python bench/baseline.py RESULTS...
"""

import argparse
import datetime
import json
from pathlib import Path

from fastopt.bench.cases import TABLE
from fastopt.bench.gates import baseline_of
from fastopt.bench.outcome import read_outcome
from fastopt.bench.result import Result


def outcomes_of(path):
    """What a whole run has found."""
    outcomes = [read_outcome(content) for content in Result(path).read().get("cases", [])]
    found = {outcome.case.id for outcome in outcomes}
    if found != TABLE.keys():
        raise SystemExit(f"{path} is no whole run: its cases are not the {len(TABLE)} of the table")
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="written by bench/test_cases.py --results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "baseline.json", metavar="FILE")
    arguments = parser.parse_args()
    runs = [outcomes_of(path) for path in arguments.results]
    content = {"date": datetime.date.today().isoformat(), "runs": len(runs), "cases": baseline_of(runs)}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
