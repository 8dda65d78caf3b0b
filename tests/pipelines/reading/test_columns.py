"""Where no caption column is configured, it is found by the names of the columns in the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.engine.manifest import Manifest
from pipelines.reading import columns, input_files
from tests.support.toy import settings_of, write_parquet, write_tar


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["url", "caption"], "caption"),
        (["caption", "text"], "caption"),
        (["file_name", "text"], "text"),
        (["URL", "TEXT"], "TEXT"),
        (["prompt"], "prompt"),
        (["Prompt", "seed"], "Prompt"),
        (["text", "prompt"], None),
        (["text", "TEXT"], None),
        (["description"], None),
        ([], None),
    ],
)
def test_caption_comes_first_and_of_the_others_there_must_be_only_one(names: list[str], expected: str | None) -> None:
    assert columns.column_among(set(names)) == expected


def config_of(folder: Path, images: str | None = None, **captions: Any) -> Config:
    settings = settings_of(
        captions={"path": str(folder / "in"), **captions},
        images=images,
        calibration={"captions": str(folder / "controls.csv")},
        out=str(folder / "run"),
    )
    return Config.model_validate(settings)


def write(folder: Path, kind: str, *names: str, stem: str = "0") -> None:
    """Write one row with a caption under each of these names, and control captions whose column is `prompt`."""
    place = folder / "in"
    place.mkdir(exist_ok=True)
    (folder / "controls.csv").write_text("prompt;seed\na river;1\n")
    row = dict.fromkeys(names, "a cat")
    if kind == "parquet":
        write_parquet(place / f"{stem}.parquet", {"key": ["0"]} | {name: [text] for name, text in row.items()})
    elif kind == "tar":
        write_tar(place / f"{stem}.tar", [("0.json", json.dumps(row).encode())])
    elif kind == "jsonl":
        (place / f"{stem}.jsonl").write_text(json.dumps({"seed": 1} | row) + "\n")
    else:
        (place / f"{stem}.csv").write_text(f"seed;{';'.join(row)}\n1;{';'.join(row.values())}\n")


@pytest.mark.parametrize("kind", ["parquet", "tar", "jsonl", "csv"])
def test_every_format_names_its_columns_and_the_choice_is_in_the_configuration(kind: str, tmp_path: Path) -> None:
    write(tmp_path, kind, "text")
    found = columns.resolved(config_of(tmp_path))
    assert (found.captions.caption, found.calibration.column) == ("text", "prompt")
    assert len(input_files.find_captions(found)) == 1


def test_a_column_that_is_given_stays(tmp_path: Path) -> None:
    write(tmp_path, "csv", "text")
    assert columns.resolved(config_of(tmp_path, caption="caption")).captions.caption == "caption"


@pytest.mark.parametrize("kind", ["parquet", "tar", "jsonl", "csv"])
@pytest.mark.parametrize("names", [("text", "prompt"), ("description", "title")])
def test_with_two_or_none_the_error_lists_the_columns(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    write(tmp_path, kind, *names)
    config = columns.resolved(config_of(tmp_path))
    with pytest.raises(UsageError, match=f"(?s)no column 'caption'; there is .*{', '.join(names)}.*captions.caption"):
        input_files.find_captions(config)


def test_the_names_of_all_files_count(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", "text", stem="0")
    write(tmp_path, "parquet", "prompt", stem="1")
    with pytest.raises(UsageError, match="captions.caption"):
        input_files.find_captions(columns.resolved(config_of(tmp_path)))
    write(tmp_path, "parquet", "text", stem="1")
    assert columns.resolved(config_of(tmp_path)).captions.caption == "text"


def test_what_is_settled_is_not_settled_again(tmp_path: Path) -> None:
    write(tmp_path, "csv", "text", "prompt")
    once = columns.resolved(config_of(tmp_path))
    write(tmp_path, "csv", "text")
    assert columns.resolved(once) == once


def test_files_that_are_not_read_have_no_say(tmp_path: Path) -> None:
    write(tmp_path, "parquet", "prompt", stem="other")
    (tmp_path / "in/metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    assert columns.resolved(config_of(tmp_path)).captions.caption == "text"


def test_files_without_columns_and_files_that_are_missing_leave_the_default(tmp_path: Path) -> None:
    write(tmp_path, "csv", "text")
    (tmp_path / "in/0.csv").unlink()
    (tmp_path / "in/0.txt").write_text("text\n")
    assert columns.resolved(config_of(tmp_path)).captions.caption == "caption"
    missing = config_of(tmp_path, path=str(tmp_path / "nowhere"))
    assert columns.resolved(missing).captions.caption == "caption"


def test_the_manifest_records_the_columns_and_a_resumed_run_needs_the_same(tmp_path: Path) -> None:
    write(tmp_path, "csv", "text")
    ledger = Ledger(str(tmp_path / "run"))
    manifest = Manifest.open(ledger, columns.resolved(config_of(tmp_path)), {})
    resolved = manifest.data.resolved
    assert (resolved["captions"]["caption"], resolved["calibration"]["column"]) == ("text", "prompt")
    with manifest.stage("ingest"):
        pass
    assert Manifest.open(ledger, columns.resolved(config_of(tmp_path)), {}).data.resolved == resolved
    write(tmp_path, "csv", "prompt")
    with pytest.raises(AuditError, match="captions.caption was 'text' when this run began and is 'prompt' now"):
        Manifest.open(ledger, columns.resolved(config_of(tmp_path)), {})
