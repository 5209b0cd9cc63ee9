# Document 000. Changed: nothing; the model of the document's first example added.
from keras import Sequential
from keras.layers import Activation, Dense

# fmt: off
model = Sequential()
model.add(Dense(64, kernel_initializer='uniform', input_shape=(10,)))
model.add(Activation('softmax'))

# 传入优化器名称: 默认参数将被采用
model.compile(loss='mean_squared_error', optimizer='sgd')
