"""Decode and encode pictures."""
