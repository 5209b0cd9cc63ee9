"""What fastopt uses of CuPy that it does not document."""

import contextlib
import os

import numpy as np


@contextlib.contextmanager
def full_float32(cupy):
    """Products of float32 without TensorFloat-32 inside. The public setting is the environment's alone, ``CUPY_TF32``.

    Raises
    ------
    RuntimeError
        If that is set, and this version of CuPy does not let it be left out.
    """
    try:
        core = cupy._core
        before, full = core.get_compute_type(np.float32), core._routines_linalg.COMPUTE_TYPE_DEFAULT
        set_compute_type = core.set_compute_type
    except AttributeError as error:
        if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
            raise RuntimeError(
                f"CuPy {cupy.__version__} multiplies as CUPY_TF32 says, with the precision of TensorFloat-32: unset it"
            ) from error
        yield
        return
    set_compute_type(np.float32, full)
    try:
        yield
    finally:
        set_compute_type(np.float32, before)
