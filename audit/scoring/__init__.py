"""Run a model over captions and seeds: screening from pure noise, and full generation."""
