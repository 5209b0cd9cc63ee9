"""The loops on a GPU: the rules of ``kernels/rules`` in one pass over its memory. Imported on first use."""
