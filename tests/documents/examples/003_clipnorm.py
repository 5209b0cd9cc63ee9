# Document 003. Changed: where `optimizers` comes from.
from fastopt.compat.keras_2_3 import optimizers

# All parameter gradients will be clipped to
# a maximum norm of 1.
sgd = optimizers.SGD(lr=0.01, clipnorm=1.)  # fmt: skip
