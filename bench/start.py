"""What a new process waits for: the import, and the first step with a cold and with a warm cache.

python bench/start.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from fastopt.bench.result import Result

SCRIPT = """
import time; start = time.perf_counter()
import numba; numba_seconds = time.perf_counter() - start
import fastopt, numpy as np; import_seconds = time.perf_counter() - start - numba_seconds
w = np.ones({size}, np.float32); opt = fastopt.Adam()
start = time.perf_counter(); opt.build([w]); opt.apply([w.copy()])
print(numba_seconds, import_seconds, time.perf_counter() - start)
"""
SIZE = 100_000  # enough for threads to start


def new_process(cache):
    """Seconds: import of numba, of fastopt beyond that, build and first step."""
    command = [sys.executable, "-c", SCRIPT.format(size=SIZE)]
    environment = os.environ | {"FASTOPT_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    return [float(part) for part in done.stdout.split()]


def measured(processes):
    """Medians, as shares of what importing numba takes: that holds on any machine."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (new_process(cache) for _ in range(1 + processes))
    numba, own, step = (statistics.median(column) for column in zip(*warm, strict=True))
    return {"import": own / numba, "first_step_warm": step / numba, "first_step_cold": cold[2] / numba}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--results", metavar="FILE", help="add the figures to this JSON file")
    arguments = parser.parse_args()
    found = measured(arguments.processes)
    for name, share in found.items():
        print(f"{name.replace('_', ' ')}: {share:.2f} of the time that `import numba` takes")
    if arguments.results:
        Result(arguments.results).update(start=found)


if __name__ == "__main__":
    main()
