"""Bad input: a clear error before any work, or a row in `errors` and nothing else lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import audit
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.configuration.settings import load_config
from pipelines.reading.images import image_id
from pipelines.runs.audit import run_audit
from reports.check import check
from tests.support.damage import corrupt
from tests.support.toy import (
    FEW_GENERATIONS,
    MEMORIZED,
    MODEL,
    png,
    settings_of,
    write_config,
    write_parquet,
    write_tar,
)

LONG = "a very long story of a thing, " * 334


def strings(values: list[bytes | str | None]) -> pa.Array:
    """A string column of any bytes, as a careless writer leaves it."""
    return pa.array([v.encode() if isinstance(v, str) else v for v in values], pa.binary()).cast(
        pa.string(), safe=False
    )


@pytest.fixture(scope="module")
def messy(
    make_dataset: Callable[[Path], Path], audited: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Ledger:
    """One audit of a dataset with everything wrong that a dataset can have wrong; all captions are generated."""
    folder = tmp_path_factory.mktemp("messy")
    make_dataset(folder)
    bad: list[bytes | str | None] = [None, "", LONG, b"caf\xe9 not UTF-8", "its image is broken", "not there", "gone"]
    status = ["success"] * 5 + ["failed_to_download", None]
    keys = [f"bad{row}" for row in range(7)]
    write_parquet(folder / "captions/00002.parquet", {"caption": strings(bad), "key": keys, "status": status})
    whole = (folder / "captions/00001.parquet").read_bytes()
    (folder / "captions/00003.parquet").write_bytes(whole[: len(whole) // 2])
    # The footer is sound and a page is not.
    write_parquet(folder / "captions/00004.parquet", {"caption": [f"never read {row}" for row in range(10)]})
    damaged = bytearray((folder / "captions/00004.parquet").read_bytes())
    damaged[4:60] = b"\xff" * 56
    (folder / "captions/00004.parquet").write_bytes(damaged)
    members = [("bad1.png", png(500)), ("bad2.png", png(501)), ("bad4.png", b"this is no image"), ("bad4.txt", b"text")]
    write_tar(folder / "images/00002.tar", members)
    write_tar(folder / "images/00003.tar", [(f"cut{row}.png", png(600 + row)) for row in range(8)])
    tar = (folder / "images/00003.tar").read_bytes()
    (folder / "images/00003.tar").write_bytes(tar[: len(tar) // 2])
    # More images than single rows may fail in a row.
    write_parquet(folder / "images/00004.parquet", {"image": [png(700 + row) for row in range(48)]})
    corrupt(folder / "images/00004.parquet", 0, "image")
    corrupt(folder / "images/00004.parquet", 2, "image")
    path = write_config(
        folder,
        select={"budget": 100, "audit_sample": 0},
        confirm=settings_of()["confirm"] | FEW_GENERATIONS["confirm"] | {"max_unreadable_fraction": 1.0},
        images=["images/*.tar", "images/*.parquet"],
    )
    return Ledger(audited(path))


def errors(run: Ledger, **where: Any) -> list[dict[str, Any]]:
    rows = run.read("errors").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


@pytest.mark.slow
def test_the_accounting_closes_over_all_of_it(messy: Ledger) -> None:
    assert [result for result in check(messy.uri) if not result.ok] == []


@pytest.mark.slow
def test_a_control_caption_and_invalid_utf8_are_rows_of_errors(messy: Ledger) -> None:
    [null] = errors(messy, kind="missing_caption")
    assert (null["stage"], null["file"], null["row"], null["rows"]) == ("ingest", "00002.parquet", 0, 1)
    [invalid] = errors(messy, kind="invalid_utf8")
    assert (invalid["stage"], invalid["file"], invalid["row"], invalid["rows"]) == ("ingest", "00002.parquet", 3, 1)
    assert "byte 3" in invalid["message"]


@pytest.mark.slow
def test_failed_downloads_are_one_row_of_errors_a_file(messy: Ledger) -> None:
    [row] = errors(messy, kind="not_downloaded")
    assert (row["file"], row["row"], row["rows"]) == ("00002.parquet", None, 2)
    assert "1 failed_to_download" in row["message"]


@pytest.mark.slow
def test_a_truncated_file_is_a_row_of_errors_of_unknown_size(messy: Ledger) -> None:
    [row] = errors(messy, kind="unreadable_file", file="00003.parquet")
    assert (row["stage"], row["row"], row["rows"]) == ("ingest", None, None)


@pytest.mark.slow
def test_a_damaged_row_group_is_a_row_of_errors_for_its_rows(messy: Ledger) -> None:
    [row] = errors(messy, kind="unreadable_file", file="00004.parquet")
    assert (row["stage"], row["row"], row["rows"]) == ("ingest", 0, 10)


@pytest.mark.slow
def test_an_empty_caption_and_a_very_long_one_are_captions_with_a_verdict(messy: Ledger) -> None:
    verdicts = {row["caption"]: row["verdict"] for row in messy.read("verdicts").to_pylist()}
    assert len(LONG) > 10_000 - 30
    for caption in ("", LONG):
        assert verdicts[caption] in ("verbatim", "partial", "unconfirmed")
    tokens = dict(zip(*messy.read("screen", columns=["caption_id", "prompt_tokens"]).to_pydict().values(), strict=True))
    assert tokens[audit.caption_id("")] == 2
    assert tokens[audit.caption_id(LONG)] == max(tokens.values())


@pytest.mark.slow
def test_a_corrupt_image_is_a_row_of_errors_and_its_caption_unknown_unless_found(messy: Ledger) -> None:
    [row] = errors(messy, stage="embed", kind="unreadable_image", file="00002.tar")
    assert row["row"] == 2
    ids = messy.read("embeddings_sscd")["image_id"].to_pylist()
    assert image_id("00002.tar", 1) in ids
    assert image_id("00002.tar", 2) not in ids
    [verdict] = [v for v in messy.read("verdicts").to_pylist() if v["caption"] == "its image is broken"]
    assert verdict["verdict"] in ("unknown", "verbatim", "partial")
    [paired] = [r for r in messy.read("rows").to_pylist() if r["key"] == "bad4"]
    assert paired["image_id"] == image_id("00002.tar", 2)


@pytest.mark.slow
def test_a_truncated_tar_gives_the_images_before_the_cut(messy: Ledger) -> None:
    [row] = errors(messy, stage="embed", kind="unreadable_file", file="00003.tar")
    assert row["rows"] is None
    keys = [key for key in messy.read("embeddings_sscd")["key"].to_pylist() if key.startswith("cut")]
    assert keys == [f"cut{number}" for number in range(len(keys))]
    assert 0 < len(keys) < 8


@pytest.mark.slow
def test_damaged_row_groups_of_images_are_named_and_the_group_between_them_is_embedded(messy: Ledger) -> None:
    rows = errors(messy, stage="embed", kind="unreadable_image", file="00004.parquet")
    assert [row["row"] for row in rows] == [*range(16), *range(32, 48)]
    assert {row["message"].partition(":")[0] for row in rows} == {"row group 0", "row group 2"}
    embedded = messy.read("embeddings_sscd").to_pylist()
    assert [row["row"] for row in embedded if row["file"] == "00004.parquet"] == list(range(16, 32))


@pytest.mark.slow
def test_the_sound_rest_is_audited_all_the_same(messy: Ledger) -> None:
    verdicts = {row["caption"]: row["verdict"] for row in messy.read("verdicts").to_pylist()}
    assert verdicts[MEMORIZED] == "verbatim"
    assert len(verdicts) == 38 + 3


@pytest.fixture
def folder(make_dataset: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path).parent


def failure(path: Path, kind: type[AuditError] = AuditError) -> str:
    """The message of an audit that cannot be done."""
    with pytest.raises(kind) as caught:
        run_audit(*load_config(path))
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"captions": "captions/nothing.parquet"},
        {"captions": "nowhere/*.parquet"},
        {"images": "images/nothing.tar"},
        {"calibration": {"captions": "nothing.txt"}},
    ],
    ids=str,
)
def test_a_missing_file_is_named(folder: Path, changes: dict[str, Any]) -> None:
    message = failure(write_config(folder, **changes))
    assert "no such file" in message or "no file matches" in message
    assert "nothing" in message or "nowhere/*.parquet" in message


@pytest.mark.slow
def test_an_empty_data_set_is_an_error(folder: Path) -> None:
    write_parquet(folder / "empty.parquet", {"caption": pa.array([], pa.string())})
    assert "empty.parquet: the dataset has no rows" in failure(write_config(folder, captions="empty.parquet"))


def test_a_missing_caption_column_names_the_columns_and_the_nearest(folder: Path) -> None:
    write_parquet(folder / "other.parquet", {"Captions": ["a"], "url": ["b"]})
    message = failure(write_config(folder, captions="other.parquet"), UsageError)
    assert "no column 'caption'; there is Captions, url" in message
    assert "Did you mean captions.caption: Captions?" in message


def test_a_caption_column_that_is_not_text_is_refused(folder: Path) -> None:
    write_parquet(folder / "numbers.parquet", {"caption": [1, 2]})
    assert "caption is int64, not text" in failure(write_config(folder, captions="numbers.parquet"), UsageError)


def test_when_no_file_can_be_read_that_is_an_error(folder: Path) -> None:
    for path in (folder / "captions").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert "none of 2 files can be read" in failure(folder / "audit.yaml")


def test_too_few_control_captions_are_an_error_before_any_work(folder: Path) -> None:
    (folder / "control_captions.txt").write_text("one\ntwo\n")
    assert "2 control captions" in failure(folder / "audit.yaml")


def test_a_folder_that_holds_something_else_is_not_taken_for_a_run(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.doc").write_text("do not touch")
    assert "it is not a run" in failure(folder / "audit.yaml")


@pytest.mark.slow
def test_a_model_folder_without_a_unet_is_an_error(folder: Path) -> None:
    shutil.copytree(MODEL, folder / "model")
    shutil.rmtree(folder / "model" / "unet")
    assert "no unet/ in this folder" in failure(write_config(folder, model="model"))


@pytest.mark.slow
def test_a_pickle_in_place_of_safetensors_is_refused(folder: Path) -> None:
    shutil.copytree(MODEL, folder / "model")
    unet = folder / "model" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    message = failure(write_config(folder, model="model"))
    assert "diffusion_pytorch_model" in message
    assert "Convert it" in message


@pytest.mark.slow
def test_a_screen_table_of_another_model_is_refused_and_says_what_differs(folder: Path) -> None:
    table = pq.read_table(folder / "control_screen.parquet")
    context = table.schema.metadata[b"crossaudit"].replace(b'"seeds": [0]', b'"seeds": [5]')
    pq.write_table(table.replace_schema_metadata({b"crossaudit": context}), folder / "control_screen.parquet")
    message = failure(folder / "audit.yaml")
    assert "control_screen.parquet" in message
    assert "has the seeds [5], screen.seeds are [0]" in message
