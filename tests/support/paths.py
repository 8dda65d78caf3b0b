"""Locate the checkout and the test data."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
TOKENIZER = DATA / "tiny-sd1/tokenizer"  # of CLIP
TINY_MODELS = ("tiny-sd1", "tiny-sd2")
BUNDLE = ROOT / "pipelines/demo/bundle"
