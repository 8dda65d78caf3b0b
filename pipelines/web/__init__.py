"""Serve pages to browsers of this machine only."""
