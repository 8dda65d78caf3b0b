"""Run a model on captions and seeds: screen from pure noise, or generate in full."""
