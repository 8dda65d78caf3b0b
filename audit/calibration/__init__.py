"""Turn features into distances from control captions and p-values."""
