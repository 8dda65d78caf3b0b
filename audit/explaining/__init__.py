"""Explain scores: a caption by token and step, layers by timestep, captions compared with their variants."""
