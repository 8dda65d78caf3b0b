from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from audit.record.manifest_entries import ExcludedControl, LikenessEntry, TelltaleEntry
from audit.statistics.raters import Agreement, Kappa, Rate, Rater
from reports.exports.formats import FORMATS
from reports.exports.redaction import NOTE, redacted
from reports.pictures import Picture
from reports.query import query
from reports.record.cases import Place
from reports.record.mitigation import Mitigation, MitigationPair
from reports.record.model import Failure, Record, WaiverNote
from reports.record.provenance import InputFile
from reports.record.review import Review
from tests.support.report_run import HOSTILE

PRIVATE = "Jane-Doe"
PICTURE = Picture(uri=f"data:image/png;base64,{PRIVATE}", tiny=True, size="1 × 1")


def private(record: Record) -> Record:
    """A record with a name in every field that may hold a text of the dataset, of people or of the machine."""
    whole = record.model_copy(deep=True)
    caption = {"caption_id": "00", "caption": f"{PRIVATE} at home"}
    whole.run.path = whole.run.model = whole.run.title = f"/home/{PRIVATE}/run"
    whole.selected[0] = whole.selected[0].model_copy(update={**caption, "hosts": [PRIVATE], "host_count": 1})
    whole.selected[1].file = whole.selected[1].error = PRIVATE
    place = Place(file=PRIVATE, row=1, key=PRIVATE, url=PRIVATE, host=PRIVATE)
    whole.cases[0].caption_places = whole.cases[0].image_places = [place]
    whole.cases[0].explain = whole.cases[0].reproduce = PRIVATE
    whole.cases[0].training = whole.cases[0].region = whole.cases[0].generations[0].picture = PICTURE
    whole.not_audited.failures = [
        Failure(stage="embed", kind="corrupt_image", cause=PRIVATE, errors=1, rows=1, message=PRIVATE)
    ]
    whole.method.settings = {"model": {"path": PRIVATE}, "generate": {"steps": 20}}
    numbers = {"similarity": 0.9, "image_id": "0", "seeds_alike": 1, "seeds": 1, "next_similarity": None, "p": None}
    whole.method.thresholds["verbatim"].excluded = [ExcludedControl(**caption, **numbers, reasons=[])]
    words = [TelltaleEntry(word=PRIVATE, controls=0.0, captions=1.0)]
    bounds = {"auc": 0.5, "low": 0.4, "high": 0.6, "limit": 0.8}
    counts = {"controls": 1, "captions": 1, "control_topics": 1, "caption_topics": 1}
    whole.method.calibration.likeness = LikenessEntry(**bounds, **counts, of_controls=words, of_captions=words)
    whole.provenance.inputs = [InputFile(kind="images", file=PRIVATE, rows=1, sha256="ab")]
    whole.waivers = {"00": WaiverNote(covers="caption_id 00", reason=PRIVATE, owner=PRIVATE, expires=date(2999, 1, 1))}
    whole.review = review()
    return whole


def review() -> Review:
    none = Rate.of(0, 1)
    raters = [Rater(name, 1, 1, none, none, True) for name in (PRIVATE, "ben")]
    return Review.model_construct(
        raters=raters,
        agreements=[Agreement((PRIVATE, "ben"), 1, 1, Kappa(None, None, None), 1, 1)],
        **{"panel": 2, "least": 2, "pairs": 1, "types": {}, "outcomes": {}, "not_reviewed": 0},
        **{"false_positive": (0, 1), "false_negative": (0, 1), "bound": 1.0, "claim": None},
    )


def test_no_private_text_is_left(record: Record) -> None:
    whole = private(record)
    assert whole.model_dump_json().count(PRIVATE) > 20
    assert PRIVATE not in redacted(whole).model_dump_json()


@pytest.mark.parametrize("format_", FORMATS)
def test_no_export_has_a_picture_a_caption_or_a_file(format_: str, record: Record, run: Path) -> None:
    content = FORMATS[format_](redacted(record)).decode()
    assert "data:image" not in content
    assert "images.tar" not in content
    assert str(run) not in content
    captions = query(run, "select caption from captions")["caption"].to_pylist()
    assert HOSTILE in captions
    assert [caption for caption in captions if caption in content] == []


def test_numbers_and_ids_stay_and_a_reader_is_told(record: Record) -> None:
    short = redacted(record)
    assert short.answer == record.answer
    assert [row.caption for row in short.selected] == [row.caption_id for row in record.selected]
    assert [row.similarity for row in short.selected] == [row.similarity for row in record.selected]
    assert [len(case.generations) for case in short.cases] == [len(case.generations) for case in record.cases]
    assert short.limits == [NOTE, *record.limits]


def test_pairs_of_pictures_are_removed(record: Record) -> None:
    pair = MitigationPair(
        caption_set="confirmed",
        caption_id="00",
        caption=PRIVATE,
        seed=1,
        plain_similarity=0.9,
        similarity=0.1,
        is_copy=False,
        plain=PICTURE,
        mitigated=PICTURE,
        training=PICTURE,
    )
    measured = Mitigation(settings=[], best=None, tolerated=0.05, pairs=[pair], seeds=[1])
    short = redacted(record.model_copy(update={"mitigation": measured})).mitigation
    assert short is not None
    nothing = {"caption": "00", "plain": None, "mitigated": None, "training": None}
    assert short.pairs == [pair.model_copy(update=nothing)]


def test_the_record_itself_is_unchanged(record: Record) -> None:
    before = record.model_dump_json()
    redacted(record)
    assert record.model_dump_json() == before
