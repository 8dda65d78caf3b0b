"""Recognise ids of models on a hub: `organisation/name`."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Tell whether `text` has the form of a hub id. A relative path with two parts has this form too."""
    return _HUB_ID.fullmatch(text) is not None
