# Document 000. Changed: where `optimizers` comes from.
from fastopt.compat.keras_2_2 import optimizers

# 所有参数d 梯度将被裁剪到数值范围内:
# 最大值0.5
# 最小值-0.5
sgd = optimizers.SGD(lr=0.01, clipvalue=0.5)
