"""Keep Python's garbage collector away from what tests import: a plugin of pytest.

The modules of torch, diffusers and transformers are 700,000 objects that live as long as the process. The collector
would visit them while they are imported, and again in each full collection.
"""

from __future__ import annotations

import gc


def pytest_collection() -> None:
    """Pause the collector while test files are imported."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Resume the collector, for what is created from now on."""
    gc.freeze()
    gc.enable()
