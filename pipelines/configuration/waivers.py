"""Read a file of waivers."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import ValidationError

from audit.errors import UsageError
from pipelines.configuration.yaml_mapping import read_yaml
from reports.waivers import Waiver

_HINT = "Each entry has one of caption_id, family and image_id, and a reason, an owner and a date `expires`."


def read_waivers(path: str | Path, today: date | None = None) -> list[Waiver]:
    """Read a YAML list of waivers.

    Args:
        path: The file.
        today: The date on which the waivers must hold (default: today, UTC).

    Returns:
        The waivers in the order of the file.

    Raises:
        UsageError: The file cannot be read, or entries are malformed or expired. The message names each such entry.
    """
    where = str(path)
    try:
        content, _ = read_yaml(Path(path).read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot be read: {what}", where=where, hint="Pass a YAML file.") from error
    if not isinstance(content, list):
        raise UsageError("is not a list of waivers", where=where, hint=_HINT)
    today = today or datetime.now(UTC).date()
    waivers, problems = [], []
    for number, entry in enumerate(content, 1):
        try:
            waiver = Waiver.model_validate(entry)
        except ValidationError as error:
            problems.append(f"entry {number}: {_explained(error)}")
            continue
        if waiver.expires < today:
            problems.append(f"entry {number}: the waiver for {waiver.covers} expired on {waiver.expires}")
        waivers.append(waiver)
    if problems:
        raise UsageError("; ".join(problems), where=where, hint=f"Correct, renew or remove them. {_HINT}")
    return waivers


def _explained(error: ValidationError) -> str:
    """Return what is wrong with an entry, in one line."""
    found: list[str] = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        what = {"missing": "is missing", "extra_forbidden": "is not a known key"}.get(problem["type"], what)
        found.append(f"{place}: {what}" if place and what[:3] != "is " else f"{place} {what}".strip())
    return ", ".join(found)
