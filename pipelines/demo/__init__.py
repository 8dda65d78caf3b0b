"""A model that really memorizes, and its audit."""
