"""Explain scores: one caption by token and step, layers by timestep, captions beside perturbations."""
