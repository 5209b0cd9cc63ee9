"""torch's names beside those of others."""

SLOTS = {
    "momentum_buffer": "momentum",
    "square_avg": "velocity",
    "grad_avg": "average_gradient",
    "sum": "accumulator",
    "acc_delta": "accumulated_delta_var",
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_hat",
    "exp_inf": "norm",
    "z": "momentum",
    "row_var": "row",
    "col_var": "column",
    "variance": "velocity",
    "ema": "average",
}
"""torch's name of a state tensor → name of fastopt's slot."""

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
