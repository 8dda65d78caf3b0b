"""One file a command of `crossaudit`."""
