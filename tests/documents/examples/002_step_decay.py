# Document 002. Changed: `import math` and the import of SGD, which it leaves out, added; the placeholders `model`, `X`,
# `Y` and the two `...` filled; the history kept.
import math

import keras
import numpy as np
from keras.callbacks import LearningRateScheduler

from fastopt.keras.compat.keras_2_2.optimizers import SGD

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3)).astype("float32")
Y = np.eye(2, dtype="float32")[(X[:, 0] > 0).astype(int)]
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])


# fmt: off
# learning rate schedule
def step_decay(epoch):
 initial_lrate = 0.1
 drop = 0.5
 epochs_drop = 10.0
 lrate = initial_lrate * math.pow(drop, math.floor((1+epoch)/epochs_drop))
 return lrate

lrate = LearningRateScheduler(step_decay)

# Compile model
sgd = SGD(lr=0.0, momentum=0.9, decay=0.0, nesterov=False)
model.compile(loss='categorical_crossentropy', optimizer=sgd, metrics=['accuracy'])

# Fit the model
history = model.fit(X, Y, epochs=20, batch_size=10, verbose=0, callbacks=[lrate]).history
