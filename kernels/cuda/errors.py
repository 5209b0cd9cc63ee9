"""What goes wrong with CUDA, in one sentence each."""

INSTALL = "pip install 'fastopt[cuda13]', or 'fastopt[cuda12]' for a driver older than release 580"
"""What brings everything but the driver."""


class CudaUnavailable(RuntimeError):
    """CUDA cannot be used here: a package, a part of the toolkit, the driver or a GPU is missing or does not fit."""


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; ``code`` is the number of its error."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code
