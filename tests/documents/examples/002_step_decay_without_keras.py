# Document 002, in a plain loop. Changed: as in 002_step_decay.py, and where `LearningRateScheduler` comes from; a loop
# over epochs, which calls it, in the place of `fit`.
import math

import numpy as np

from fastopt.compat.keras_2_2.callbacks import LearningRateScheduler
from fastopt.compat.keras_2_2.optimizers import SGD


# fmt: off
# learning rate schedule
def step_decay(epoch):
 initial_lrate = 0.1
 drop = 0.5
 epochs_drop = 10.0
 lrate = initial_lrate * math.pow(drop, math.floor((1+epoch)/epochs_drop))
 return lrate

lrate = LearningRateScheduler(step_decay)

sgd = SGD(lr=0.0, momentum=0.9, decay=0.0, nesterov=False)
# fmt: on

weights = np.zeros(3)
sgd.build([weights])
history = {"learning_rate": []}
for epoch in range(20):
    lrate.on_epoch_begin(epoch, {}, sgd)
    sgd.apply([weights - 1.0])
    history["learning_rate"].append(sgd.learning_rate)
    lrate.on_epoch_end(epoch, {}, sgd)
