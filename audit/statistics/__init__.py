"""Intervals, conformal p-values, false-discovery rates, and the claims that rest on them."""
