"""Have `fastopt.kernels` found in a checkout, where kernels/ lies beside fastopt/, however fastopt is installed."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent
if not (_PACKAGE / "kernels").exists():
    sys.modules[__package__].__path__.append(str(_PACKAGE.parent))
