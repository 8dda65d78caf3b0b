"""Reading a checkpoint from disk: its files, its weights, its architecture, and what is loaded beside it."""
