"""Losses: their formulas, one scalar function each, and the loops around them."""
