"""torch's names of state beside fastopt's: the one table."""

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
