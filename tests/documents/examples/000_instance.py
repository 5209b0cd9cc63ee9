# Document 000. Changed: where `optimizers` comes from; the imports of the layers, which the document leaves out, added.
from keras import Sequential
from keras.layers import Activation, Dense

from fastopt.keras.compat.keras_2_2 import optimizers

# fmt: off
model = Sequential()
model.add(Dense(64, kernel_initializer='uniform', input_shape=(10,)))
model.add(Activation('softmax'))

sgd = optimizers.SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True)
model.compile(loss='mean_squared_error', optimizer=sgd)
