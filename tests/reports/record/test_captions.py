from pathlib import Path

import pytest

from reports.query import query
from reports.record import captions
from reports.record.build import build
from reports.record.model import Record


@pytest.fixture(scope="module")
def record(run: Path) -> Record:
    return build(run)


def test_every_caption_that_was_looked_at_is_in_the_record(record: Record, run: Path) -> None:
    looked_at = query(run, "select caption_id from verdicts where verdict <> 'not_selected'")["caption_id"].to_pylist()
    assert sorted(row.caption_id for row in record.selected) == sorted(looked_at)
    assert record.selected_count == len(looked_at)


def test_confirmed_captions_come_first_and_their_families_stand_together(record: Record) -> None:
    confirmed = [row for row in record.selected if row.verdict in ("verbatim", "partial")]
    assert record.selected[: len(confirmed)] == confirmed
    names = [row.family for row in confirmed]
    assert len(list(dict.fromkeys(names))) == sum(a != b for a, b in zip(names, [None, *names], strict=False))
    assert [family.family for family in record.families] == list(dict.fromkeys(names))
    assert sum(family.captions for family in record.families) == len(confirmed)


def test_the_margin_says_how_far_a_caption_is_from_its_threshold(record: Record) -> None:
    limits = {kind: record.method.thresholds[kind].value or 0 for kind in ("verbatim", "region")}
    for row in record.selected:
        if row.similarity is not None and row.region_similarity is not None:
            whole, region = row.similarity - limits["verbatim"], row.region_similarity - limits["region"]
            assert row.margin == pytest.approx(max(whole, region))


def test_the_nearest_misses_are_the_unconfirmed_captions_with_the_highest_margin(record: Record) -> None:
    margins = {row.caption_id: row.margin or 0 for row in record.selected if row.verdict == "unconfirmed"}
    nearest = [margins.pop(caption_id) for caption_id in record.nearest_misses]
    assert len(nearest) == captions.MAX_NEAR
    assert nearest == sorted(nearest, reverse=True)
    assert min(nearest) >= max(margins.values())


def test_hosts_are_those_of_the_rows(own_run: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in sorted((own_run / "rows").iterdir()):
        table = pq.read_table(part)
        urls = [f"https://user@Host{row % 7}.example:8080/{row}.jpg" for row in table["row"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", pa.array(urls)), part)
    found = build(own_run)
    most = max(found.selected, key=lambda row: row.row_count)
    assert most.host_count == 7
    assert most.hosts == [f"host{number}.example" for number in range(captions.MAX_HOSTS)]


def test_the_record_is_cut_if_too_many_captions_were_looked_at(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MAX_SELECTED", 20)
    cut = build(run)
    assert len(cut.selected) == 20
    assert cut.selected_count == 78
    assert {row.verdict for row in cut.selected[:16]} == {"verbatim", "partial"}
