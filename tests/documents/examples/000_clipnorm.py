# Document 000. Changed: where `optimizers` comes from.
from fastopt.compat.keras_2_2 import optimizers

# 所有参数梯度将被裁剪,让其l2范数最大为1:g * 1 / max(1, l2_norm)
sgd = optimizers.SGD(lr=0.01, clipnorm=1.)  # fmt: skip
