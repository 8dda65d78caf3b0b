"""Choose the column of the captions when the configuration names none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from audit.errors import AuditError
from pipelines.configuration.config import Config
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading.caption_choice import choose_caption_files
from pipelines.reading.files import File, file_at
from pipelines.reading.slices import UNREADABLE

# This column is taken if it exists. Otherwise, a column in OTHERS is taken if it is the only one of them.
DEFAULT = "caption"
OTHERS = ("text", "prompt", "TEXT", "Prompt")


def resolved(config: Config) -> Config:
    """Set `captions.caption` and `calibration.column` to the columns that the files have, unless they are configured.

    If the files have no such column, or more than one, the default `caption` is set. Reading the files then fails with
    an error that lists their columns. Calling this function on its own result changes nothing.
    """
    changes: dict[str, Any] = {}
    captions, calibration = config.captions, config.calibration
    if "caption" not in captions.model_fields_set:
        column = _column_or_default(lambda: choose_caption_files(captions, config.images), captions)
        changes["captions"] = captions.model_copy(update={"caption": column})
    if "column" not in calibration.model_fields_set:
        options = Captions(path=calibration.captions)
        column = _column_or_default(lambda: [file_at(calibration.captions)], options)
        changes["calibration"] = calibration.model_copy(update={"column": column})
    return config.model_copy(update=changes)


def column_of(files: Sequence[File], captions: Captions) -> str | None:
    """Return the caption column among the columns of all files, or None. The order of files does not matter."""
    with ThreadPoolExecutor(16) as threads:
        names = threads.map(lambda file: _names(file, captions), files)
        return column_among({name for of_file in names for name in of_file})


def column_among(names: set[str]) -> str | None:
    """Return the caption column among names, or None if there is none or if several are possible."""
    if DEFAULT in names:
        return DEFAULT
    found = [name for name in OTHERS if name in names]
    return found[0] if len(found) == 1 else None


def _column_or_default(files: Callable[[], list[File]], captions: Captions) -> str:
    """Return the caption column of files, or the default. A missing file raises an error later, when it is read."""
    try:
        return column_of(files(), captions) or DEFAULT
    except (*UNREADABLE, AuditError):
        return DEFAULT


def _names(file: File, captions: Captions) -> list[str]:
    """Return the columns of a file, or an empty list if it cannot be read."""
    try:
        names: list[str] = captions_of.module_of(file).columns(file, captions)
    except (*UNREADABLE, AuditError):
        return []
    return names
