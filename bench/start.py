"""What a new process waits for: the import, and the first step with a cold and with a warm cache.

python bench/start.py
"""

import os
import statistics
import subprocess
import sys
import tempfile

from program import Report, parser_of

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
    arguments = parser_of(__doc__, processes=7).parse_args()
    found, report = measured(arguments.processes), Report("what", "in times that `import numba` takes")
    for name, share in found.items():
        report.add(name, name.replace("_", " "), f"{share:.2f}")
    report.finish(arguments.results, "start", found)


if __name__ == "__main__":
    main()
