"""The loops on a GPU: the rules of ``kernels/rules`` in one pass over its memory. Imported on first use.

Everything above `driver` is one code for a real GPU and for Numba's simulator, where a device's memory is the host's.
"""
