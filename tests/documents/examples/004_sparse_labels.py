# Document 004. Changed: the import, which the document leaves out; the typo `sparse_categorical_crossentrop`; `y` and
# the predictions made up.
import numpy as np

from fastopt.compat.keras_1_0.objectives import sparse_categorical_crossentropy

y = np.array([1, 0])
predictions = np.array([[0.25, 0.5, 0.25], [0.125, 0.5, 0.375]])

values = sparse_categorical_crossentropy(np.expand_dims(y,-1), predictions)  # fmt: skip
