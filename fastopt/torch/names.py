"""torch's names beside those of others."""

ELSEWHERE = {
    "learning_rate": "lr",
    "beta_1": "betas",
    "beta_2": "betas",
    "beta1": "betas",
    "beta2": "betas",
    "b1": "betas",
    "b2": "betas",
    "epsilon": "eps",
    "rho": "alpha",
    "wd": "weight_decay",
    "global_clipnorm": "clip_norm",
    "max_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "clipvalue": "clip_value",
    "use_ema": "ema",
    "ema_momentum": "ema",
}
"""What Keras, optax and others call a hyper-parameter → what it is called here."""
