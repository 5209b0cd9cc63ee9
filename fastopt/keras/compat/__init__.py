"""The optimizers of Keras 1.0.2, 2.2.4 and 2.3.1 as optimizers of Keras 3.

>>> from fastopt.keras.compat import keras_2_2  # doctest: +SKIP
>>> sgd = keras_2_2.SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True)  # doctest: +SKIP
>>> model.compile(loss="mean_squared_error", optimizer=sgd)  # doctest: +SKIP

Arguments and configs are those of `fastopt.compat`; ``learning_rate``, which Keras 3's callbacks read and set, is the
rate before ``decay``, and so is ``lr``: a Keras variable that also has ``get_value`` and ``set_value``, as
``iterations`` has without an accumulation. Gradients reach an optimizer through Keras 3, which leaves variables without
one out, with a warning, where the releases raised an error.
"""

from . import keras_1_0, keras_2_2, keras_2_3

__all__ = ["keras_1_0", "keras_2_2", "keras_2_3"]
