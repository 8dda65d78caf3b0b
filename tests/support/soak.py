"""Leave the tests marked `soak` to `make soak`: a plugin of pytest."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked `soak`, except with `--hypothesis-profile soak`."""
    if config.getoption("--hypothesis-profile") == "soak":
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
