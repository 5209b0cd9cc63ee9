# Document 004. Changed: the backend module, which Keras 3 calls `ops`; the other imports, which the document leaves
# out, and the model added; a missing bracket in the last line.
from keras import Input, Sequential
from keras import ops as K
from keras.layers import Activation, Dense

model = Sequential([Input((10,))])


# fmt: off
def tanh(x):
    return K.tanh(x)

model.add(Dense(64, activation=tanh))
model.add(Activation(tanh))
