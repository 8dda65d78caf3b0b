"""Read audit.yaml: its models, overrides, paths, and errors that name the nearest key."""
