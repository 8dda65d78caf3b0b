"""Write captions in the formats that people keep them in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path


def write_lines(path: Path, lines: list[bytes], end: bytes = b"\n") -> None:
    """Write lines, compressed if the file is called .gz."""
    content = b"".join(line + end for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def as_csv(texts: list[str], delimiter: str) -> bytes:
    """Return a CSV file of captions with keys and URLs."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["url", "caption", "key"], *(["u", text, f"k{row}"] for row, text in enumerate(texts))])
    return file.getvalue().encode()


def as_json(texts: list[str]) -> list[bytes]:
    """Return a line of JSON for each caption."""
    return [json.dumps({"caption": text, "key": f"k{row}", "url": "u"}).encode() for row, text in enumerate(texts)]


def sample(texts: list[str], suffix: str) -> list[tuple[str, bytes]]:
    """Return the members of a tar in which each caption lies beside an image."""
    content = [text.encode() for text in texts] if suffix == "txt" else as_json(texts)
    return [
        member for row, one in enumerate(content) for member in ((f"k{row}.jpg", b"image"), (f"k{row}.{suffix}", one))
    ]
