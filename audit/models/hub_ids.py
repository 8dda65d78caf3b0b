"""Ids of models on a hub: `organisation/name`."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether `text` has the shape of a hub id; a relative path of two parts has it too."""
    return _HUB_ID.fullmatch(text) is not None
