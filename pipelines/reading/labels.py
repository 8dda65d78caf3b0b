"""Read which captions are known to be memorized, from the label files that papers publish.

Plain text has one prompt per line (Ren et al.), JSON lines have `caption`, `index` and `url` (Wen et al.), CSV with
semicolons has `Caption` and `type` (Hintersdorf et al.), and Parquet has `caption` and `overfit_type` (Webster).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from audit.errors import AuditError, UsageError
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading.files import file_at

# Worst first. `memorized` is the label of files that only list captions.
LABELS = ("verbatim", "partial", "memorized", "near", "ordinary", "none")
# What the published files call them: matching, retrieved and template verbatim (Webster, arXiv 2305.08694); verbatim
# and template memorization (Hintersdorf et al., arXiv 2406.02366).
SYNONYMS = {"mv": "verbatim", "rv": "verbatim", "vm": "verbatim", "tv": "partial", "tm": "partial", "n": "none"}
CAPTION_COLUMNS = ("caption", "text", "prompt")
LABEL_COLUMNS = ("label", "overfit_type", "type")
# Rows without a caption or without a label. Any other malformed row is refused.
_EMPTY = ("empty_line", "missing_caption")


@dataclass(frozen=True)
class Labels:
    """The labels of a file.

    Attributes:
        label_of: The label of each caption. If a caption has several, the worst.
        rows: Number of rows.
        empty: Rows without a caption.
        unlabelled: Rows without a label, in a file that has labels. Their captions count as not in the file.
        repeated: Rows whose caption occurs in an earlier row.
        conflicting: Captions with more than one label.
    """

    label_of: dict[str, str]
    rows: int
    empty: int
    unlabelled: int
    repeated: int
    conflicting: int


def read_labels(path: str, all_are: str | None = None) -> Labels:
    """Read the captions of a file and their labels.

    Args:
        path: The path or URI of a text, JSON lines, CSV, TSV or Parquet file.
        all_are: The label of every caption, whatever the file says (default: the label in the file, or `memorized` if
            the file has none).

    Raises:
        UsageError: The format or a label is unknown, or no column holds captions.
        AuditError: A row is malformed.
    """
    rows, empty = _rows(path, all_are)
    labels: dict[str, set[str]] = {}
    for caption, label in rows:
        if label is not None:
            labels.setdefault(caption, set()).add(label)
    labelled = sum(label is not None for _, label in rows)
    return Labels(
        label_of={caption: min(found, key=LABELS.index) for caption, found in labels.items()},
        rows=len(rows) + empty,
        empty=empty,
        unlabelled=len(rows) - labelled,
        repeated=labelled - len(labels),
        conflicting=sum(len(found) > 1 for found in labels.values()),
    )


def _rows(path: str, all_are: str | None) -> tuple[list[tuple[str, str | None]], int]:
    """Return (caption, label) of each row, and the number of rows without a caption."""
    file = file_at(path)
    reader = captions_of.module_of(file)
    # The readers need a caption column to tell the delimiter of CSV; the names do not depend on which.
    names: list[str] = reader.columns(file, Captions(path=path))
    caption, label = (_first(names, known) for known in (CAPTION_COLUMNS, LABEL_COLUMNS))
    if names and caption is None:
        hint = f"Call it {' or '.join(CAPTION_COLUMNS)}; the columns are {', '.join(filter(None, names))}."
        raise UsageError("no column holds captions", where=path, hint=hint)
    # The readers pass the column `url` on as text, unchanged: this is how the label is read.
    options = Captions(path=path, caption=caption or CAPTION_COLUMNS[0], url=label)
    slices, problems = captions_of.plan(file, options)
    rows: list[tuple[str, str | None]] = []
    for part in slices:
        table, errors = captions_of.read(part, 0, part.rows, options)
        problems += errors
        words = table["url"].to_pylist() if label and all_are is None else [all_are or "memorized"] * len(table)
        places = table["row"].to_pylist()
        rows += [
            (text, _label(word, path, row))
            for text, word, row in zip(table["caption"].to_pylist(), words, places, strict=True)
        ]
    wrong = [problem for problem in problems if problem["kind"] not in _EMPTY]
    if wrong:
        row = wrong[0]["row"]
        what = wrong[0]["message"] if row is None else f"row {row}: {wrong[0]['message']}"
        raise AuditError(f"a label cannot be read: {what}", where=path, hint="Correct or remove it.")
    return rows, Counter(problem["kind"] in _EMPTY for problem in problems)[True]


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    """Return the first name that is known, ignoring case."""
    return next((name for word in known for name in names if name.lower() == word), None)


def _label(word: str | None, path: str, row: int) -> str | None:
    if word is None or not word.strip():
        return None
    lower = word.strip().lower()
    found = SYNONYMS.get(lower, lower)
    if found not in LABELS:
        known = ", ".join([*LABELS, *(synonym.upper() for synonym in SYNONYMS)])
        raise UsageError(f"row {row}: unknown label {word!r}", where=path, hint=f"Known: {known}.")
    return found
