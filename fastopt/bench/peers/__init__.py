"""Other libraries' sides. Each is imported when it takes part."""

from __future__ import annotations

from .base import Peer
from .deepspeed import DeepSpeed
from .keras import Keras
from .numpy import Numpy
from .optax import Optax
from .torch import Compiled, Foreach, Fused, Loop

_KINDS = Fused, DeepSpeed, Optax, Numpy, Foreach, Loop, Keras, Compiled
PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in _KINDS}
"""By name, the fastest of large models first: where memory or time is short, those take part."""
