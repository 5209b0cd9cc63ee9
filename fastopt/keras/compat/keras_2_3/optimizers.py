"""The optimizers of Keras 2.3.1 for Keras 3, registered as ``fastopt.keras_2_3>SGD`` and so on."""

from __future__ import annotations

from ....compat.keras_2_3 import optimizers as legacy
from ...adapter import adapt, getter

_PACKAGE = "fastopt.keras_2_3"

SGD = adapt(legacy.SGD, _PACKAGE, __name__)
RMSprop = adapt(legacy.RMSprop, _PACKAGE, __name__)
Adagrad = adapt(legacy.Adagrad, _PACKAGE, __name__)
Adadelta = adapt(legacy.Adadelta, _PACKAGE, __name__)
Adam = adapt(legacy.Adam, _PACKAGE, __name__)
Adamax = adapt(legacy.Adamax, _PACKAGE, __name__)
Nadam = adapt(legacy.Nadam, _PACKAGE, __name__)

get = getter(legacy.get, SGD, RMSprop, Adagrad, Adadelta, Adam, Adamax, Nadam)
