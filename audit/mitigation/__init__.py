"""Keep a model from reproducing what it memorized, while serving and while training."""
