"""What the memory allows: kernels that read and write as many arrays as a rule does, with next to no arithmetic."""

import functools

from numba import njit, prange


@functools.cache
def plain_kernel(arrays, threads):
    """A function ``(grad, *state)`` that adds ``grad`` to each of so many state arrays, in place."""
    names = [f"a{k}" for k in range(arrays)]
    lines = [f"def plain(grad, {', '.join(names)}):"]
    lines += ["    n = grad.size", "    for b in prange(THREADS):"]
    lines += [
        "        part(" + ", ".join(f"{a}[b * n // THREADS : (b + 1) * n // THREADS]" for a in ["grad", *names]) + ")"
    ]
    lines += [f"def part(grad, {', '.join(names)}):", "    for i in range(grad.size):", "        g = grad[i]"]
    lines += [f"        {name}[i] += g" for name in names]
    namespace = {"prange": prange, "THREADS": threads}
    exec("\n".join(lines), namespace)
    namespace["part"] = njit(namespace["part"])
    return njit(parallel=True)(namespace["plain"])
