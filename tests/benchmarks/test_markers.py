"""Tables stand between markers of a page, and only they change."""

from __future__ import annotations

import pytest

from benchmarks.markers import insert

PAGE = "# Title\n\n<!-- table: half -->\nold\n| x |\n<!-- end of table -->\n\nText.\n"


def test_a_marked_table_is_replaced_and_nothing_else() -> None:
    found = insert(PAGE, {"half": "| new |"})
    assert found == "# Title\n\n<!-- table: half -->\n| new |\n<!-- end of table -->\n\nText.\n"
    assert insert(found, {"half": "| new |"}) == found


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="half"):
        insert(PAGE, {})
