"""crossaudit errors: what it prints about the failures of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.record.ledger import Ledger, errors_table
from tests.support.called import crossaudit
from tests.support.toy import judged

TRACEBACK = 'Traceback (most recent call last):\n  File "/x/a.py", line 7, in f\nValueError: 1 is \x1b[31mbad'


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with three errors of two causes."""
    uri = judged(str(tmp_path / "run"), {"a": "one", "b": "two"}, 1.5)
    error = {"stage": "screen", "kind": "raised", "message": "ValueError: 1 is bad", "traceback": TRACEBACK}
    captions = [error | {"caption_id": "a"}, error | {"caption_id": "b", "message": "ValueError: 2 is bad"}]
    file = {"stage": "ingest", "file": "0.tar", "row": 3, "rows": 40, "kind": "truncated", "message": "cut off"}
    Ledger(uri).write("errors", "screen-00000", errors_table([*captions, file]))
    return uri


def test_each_cause_has_its_count_an_example_and_the_escaped_traceback(run: str) -> None:
    code, output, _ = crossaudit("errors", run)
    assert code == 0
    assert output == (
        "2 x screen, raised: ValueError: # is bad\n"
        "  Example: caption_id a, ValueError: 1 is bad\n"
        "    Traceback (most recent call last):\n"
        '      File "/x/a.py", line 7, in f\n'
        "    ValueError: 1 is \\x1b[31mbad\n"
        "\n"
        "1 x ingest, truncated: cut off (40 rows)\n"
        "  Example: file 0.tar, row 3, cut off\n"
        "\n"
        "3 errors with 2 causes\n"
    )


def test_json_is_one_document(run: str) -> None:
    code, output, _ = crossaudit("errors", run, "--json")
    found = json.loads(output)
    assert (code, found["run"], found["errors"], len(found["causes"])) == (0, run, 3, 2)
    assert found["causes"][0]["traceback"] == TRACEBACK
    assert (found["causes"][1]["file"], found["causes"][1]["rows"]) == ("0.tar", 40)


def test_a_run_without_errors_says_so(tmp_path: Path) -> None:
    uri = judged(str(tmp_path / "run"), {"a": "one"}, 1.5)
    assert crossaudit("errors", uri) == (0, "no errors\n", "")
