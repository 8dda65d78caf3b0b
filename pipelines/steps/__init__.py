"""Parts of stages, each one a piece of work over shards that a stage puts together."""
