"""Make a processor's file in bench/baselines from whole runs of the benchmarks on it: of each ratio the median.

python bench/baseline.py RESULTS...
"""

import argparse
import datetime
import json
from pathlib import Path

from fastopt.bench.cases import TABLE
from fastopt.bench.gates import baseline_of, baseline_path
from fastopt.bench.outcome import read_outcome
from fastopt.bench.result import Result


def read_run(path):
    """Return the processor with its number of threads, and the outcomes, of a whole run."""
    content = Result(path).read()
    outcomes = [read_outcome(case) for case in content.get("cases", [])]
    if {outcome.case.id for outcome in outcomes} != TABLE.keys():
        busy = ": the machine was busy" if content.get("not_measured") else ""
        raise SystemExit(f"{path} is no whole run{busy}; its cases are not the {len(TABLE)} of the table")
    return {name: content["surroundings"][name] for name in ("processor", "threads")}, outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="written by bench/test_cases.py --results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "baselines", metavar="FOLDER")
    arguments = parser.parse_args()
    (facts, *others), runs = zip(*map(read_run, arguments.results), strict=True)
    if any(other != facts for other in others):
        raise SystemExit("these runs are of several processors or numbers of threads: a baseline is of one")
    content = facts | {"date": datetime.date.today().isoformat(), "runs": len(runs), "cases": baseline_of(runs)}
    path = baseline_path(arguments.out, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
