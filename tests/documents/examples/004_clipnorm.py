# Document 004. Changed: the import, which the document leaves out.
from fastopt.compat.keras_1_0.optimizers import SGD

# all parameter gradients will be clipped to
# a maximum norm of 1.
sgd = SGD(lr=0.01, clipnorm=1.)  # fmt: skip
