# Document 003. Changed: where `optimizers` comes from.
from fastopt.compat.keras_2_3 import optimizers

# All parameter gradients will be clipped to
# a maximum value of 0.5 and
# a minimum value of -0.5.
sgd = optimizers.SGD(lr=0.01, clipvalue=0.5)
