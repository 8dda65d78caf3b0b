"""Compute intervals, conformal p-values and false-discovery rates, and the claims based on them."""
