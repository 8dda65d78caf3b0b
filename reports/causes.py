"""Group the failures of a run by cause: rows of `errors` with the same stage, kind, place in the code and message."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from reports.query import query

SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("cause", pa.string()),  # the message, with # and … for what differs from row to row
        ("errors", pa.int64()),
        ("rows", pa.int64()),  # rows of the dataset that they concern; null if unknown
        ("caption_id", pa.string()),  # from here on, of one example
        ("file", pa.string()),
        ("row", pa.int64()),
        ("message", pa.string()),
        ("traceback", pa.string()),
    ]
)

# Quoted text, paths and hexadecimal numbers first: they contain digits.
_VARYING = (
    (r"(^|\W)('[^'\n]*'|\"[^\"\n]*\")", r"\1…"),  # not the apostrophe of "can't"
    (r"\S*/\S+", "…"),
    (r"\b(0x[0-9a-f]+|[0-9a-f]{16,})\b", "#"),
    (r"\d+([.,]\d+)*", "#"),
)
# The innermost frame of the exception that ended the attempt, which a traceback shows last.
_FRAME = r'File "([^"]+", line \d+)'


def causes(run: str | Path) -> pa.Table:
    """Group the failures of a run by cause.

    Failures have the same cause if they have the same stage and kind, the same message apart from numbers, quoted text
    and paths, and, where there is a traceback, the same innermost frame.

    Args:
        run: The directory or URI of a run.

    Returns:
        One row per cause (SCHEMA), the most frequent cause first. The example is the first failure by caption, file and
        row.

    Raises:
        AuditError: There is no run, or it is damaged.
    """
    return query(run, causes_sql()).select(SCHEMA.names).cast(SCHEMA)


def causes_sql() -> str:
    """Return the SELECT statement that groups the failures of a run by cause, with the columns of SCHEMA."""
    cause = "message"
    for pattern, sign in _VARYING:
        cause = f"regexp_replace({cause}, '{pattern.replace(chr(39), chr(39) * 2)}', '{sign}', 'g')"
    example = ", ".join(
        f'first("{name}" order by caption_id, file, "row", message) as "{name}"' for name in SCHEMA.names[5:]
    )
    return f"""
        select stage, kind, {cause} as cause, count(*) as errors, sum("rows")::bigint as "rows", {example}
        from errors
        group by stage, kind, cause, regexp_extract_all(traceback, '{_FRAME}', 1)[-1]
        order by errors desc, stage, kind, cause
    """
