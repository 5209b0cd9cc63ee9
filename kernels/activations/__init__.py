"""Activations: their formulas, pairs of scalar functions, and the loops around them."""
