"""Find nearest neighbours among image vectors, exactly or with an inverted file."""
