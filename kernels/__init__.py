"""The arithmetic of fastopt: rules, loops and reductions. Installed and imported as ``fastopt.kernels``.

Nothing here checks its input. Whoever calls a kernel guarantees what its docstring *requires*; the front end in
``fastopt/`` is the safe shell that does so.
"""

if __name__ == "kernels":
    raise ImportError(
        "import fastopt.kernels instead: fastopt installs this folder under that name, "
        "and a bare 'kernels' belongs to another distribution"
    )
