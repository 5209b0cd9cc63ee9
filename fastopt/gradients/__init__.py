"""Gradients as they arrive: matched to the parameters, checked, and found in memory. Nothing is copied."""

from __future__ import annotations

from ..device import Place
from .base import ABSENT, BaseGradients
from .cuda import CudaGradients
from .host import Gradients, HostGradients

__all__ = ["ABSENT", "BaseGradients", "CudaGradients", "Gradients", "HostGradients", "gradients_of"]


def gradients_of(place: Place) -> type[BaseGradients]:
    """The class that reads gradients which live in a place."""
    return CudaGradients if place.on_gpu else Gradients
