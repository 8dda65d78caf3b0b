"""Embed images as unit vectors: SSCD, CLIP, and a small copy descriptor."""
