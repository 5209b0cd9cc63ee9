# Document 002. Changed: which module is called `keras`.
from fastopt.compat import keras_2_2 as keras

keras.optimizers.SGD(lr=0.01, momentum=0.0, decay=0.0, nesterov=False)
