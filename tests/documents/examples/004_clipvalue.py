# Document 004. Changed: the import, which the document leaves out.
from fastopt.compat.keras_1_0.optimizers import SGD

# all parameter gradients will be clipped to
# a maximum value of 0.5 and
# a minimum value of -0.5.
sgd = SGD(lr=0.01, clipvalue=0.5)
