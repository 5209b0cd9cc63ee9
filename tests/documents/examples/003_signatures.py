# Document 003. Changed: which module is called `keras`.
from fastopt.compat import keras_2_3 as keras

keras.optimizers.SGD(learning_rate=0.01, momentum=0.0, nesterov=False)
keras.optimizers.RMSprop(learning_rate=0.001, rho=0.9)
keras.optimizers.Adagrad(learning_rate=0.01)
keras.optimizers.Adadelta(learning_rate=1.0, rho=0.95)
keras.optimizers.Adam(learning_rate=0.001, beta_1=0.9, beta_2=0.999, amsgrad=False)
keras.optimizers.Adamax(learning_rate=0.002, beta_1=0.9, beta_2=0.999)
keras.optimizers.Nadam(learning_rate=0.002, beta_1=0.9, beta_2=0.999)
