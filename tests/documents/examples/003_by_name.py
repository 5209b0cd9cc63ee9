# Document 003. Changed: nothing; the model of the document's first example added.
from keras import Sequential
from keras.layers import Activation, Dense

# fmt: off
model = Sequential()
model.add(Dense(64, kernel_initializer='uniform', input_shape=(10,)))
model.add(Activation('softmax'))

# pass optimizer by name: default parameters will be used
model.compile(loss='mean_squared_error', optimizer='sgd')
