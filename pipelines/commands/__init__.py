"""The commands of `crossaudit`, one file per command."""
