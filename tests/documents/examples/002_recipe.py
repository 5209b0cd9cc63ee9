# Document 002. Changed: the import, which the document leaves out; the placeholders `learning_rate` and `nb_epoch`
# filled.
from fastopt.compat.keras_2_2.optimizers import SGD

learning_rate, nb_epoch = 0.1, 50

sgd = SGD(lr=learning_rate, decay=learning_rate/nb_epoch, momentum=0.9, nesterov=True)  # fmt: skip
