"""Run compiled CUDA kernels on the CPU: the PTX that fastopt's kernels become, executed exactly and checked.

`parse` reads the text of a kernel, `operations` says what each operation works out, `translate` makes LLVM IR of the
kernel: a function of one thread that returns at every barrier, fence and atomic. `machine` runs all threads of a grid
in turn, `memory` and `races` look at every access. `kernel` puts them together: ``Kernel(ptx).launch(...)``.
``tests/running_driver.py`` is a CUDA driver made of it, for all of fastopt at once.

Addresses are the host's own. Arithmetic is IEEE's, each operation rounded by itself.
"""
