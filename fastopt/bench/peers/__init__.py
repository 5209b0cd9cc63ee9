"""Other libraries' sides. Each is imported when it takes part."""

from __future__ import annotations

from .base import Peer
from .deepspeed import DeepSpeed
from .keras import Keras
from .numpy import Numpy
from .optax import Optax
from .torch import Foreach, Fused, Loop

PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in (Fused, DeepSpeed, Optax, Foreach, Loop, Numpy, Keras)}
"""By name; where memory is short the first ones come first."""
