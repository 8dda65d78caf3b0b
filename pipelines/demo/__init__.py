"""A bundled model that has memorized training images, and its audit."""
