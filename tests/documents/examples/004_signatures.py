# Document 004. Changed: which module is called `keras`.
from fastopt.compat import keras_1_0 as keras

keras.optimizers.SGD(lr=0.01, momentum=0.0, decay=0.0, nesterov=False)
keras.optimizers.RMSprop(lr=0.001, rho=0.9, epsilon=1e-06)
keras.optimizers.Adagrad(lr=0.01, epsilon=1e-06)
keras.optimizers.Adadelta(lr=1.0, rho=0.95, epsilon=1e-06)
keras.optimizers.Adam(lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-08)
