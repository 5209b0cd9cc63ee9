"""One file per optimizer: its scalars, worked out once per step in float64, and its rule, a function of scalars."""
