import base64
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.errors import AuditError
from reports import facts
from reports.html import MAX_SIDE, picture, render, visible, write
from tests.support.markup import Tags, text_of


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return render(run)


def test_the_report_is_one_file_that_needs_nothing_and_runs_nothing(page: str) -> None:
    tags = Tags(page).tags
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_it_says_what_to_do_with_what_was_found(page: str) -> None:
    said = text_of(page[page.index("What to do next") : page.index("<h2>Confirmed cases")])
    for command in ("exclusions", "clean", "mitigate", "explain", "reproduce", "lookup", "purge"):
        assert f"crossaudit {command} " in said


def test_it_says_how_many_rows_are_paired(own_run: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    manifest["accounting"]["pairs"] = {"rows": 3100, "paired": 3000, "applies": True}
    (own_run / "manifest.json").write_text(json.dumps(manifest))
    assert "3,000 of 3,100 rows of the data set are paired with their own image. For a caption without such" in text_of(
        render(own_run)
    )


def test_captions_chosen_by_duplicates_are_not_called_the_highest(own_run: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    manifest["selection"] = {"budget": 450, "by_duplicates": 40, "audit_sample": 50, "captions": 3000}
    manifest["clusters"] = {"threshold": 0.917, "source": "200 edited copies", "images_with_duplicates": 106}
    (own_run / "manifest.json").write_text(json.dumps(manifest))
    said = text_of(render(own_run))
    assert "We generated images for the 410 highest-scoring captions, for 40 more captions whose images occur" in said
    assert "and for 50 captions drawn at random" in said
    assert "106 training images have near duplicates among the training images (similarity of at least 0.92;" in said
    assert "this threshold comes from 200 edited copies" in said


def test_how_many_duplicates_lists_miss_is_said(own_run: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    manifest["clusters"] = {"threshold": 0.9, "source": "configured", "images_with_duplicates": 106}
    for measured, sentence in (
        ({}, None),
        ({"recall": 0.974, "pairs": 2100}, "this finds 97.4% of an image's duplicates: an exact scan for about a"),
        (
            {"recall": None, "pairs": 0},
            "misses is not known: an exact scan for about a thousand images found 0 pairs.",
        ),
    ):
        (own_run / "manifest.json").write_text(json.dumps(manifest | {"clusters": manifest["clusters"] | measured}))
        said = text_of(render(own_run))
        assert ("into the same list of similar images" in said) == (sentence is not None)
        assert sentence is None or sentence in said


def test_a_search_is_called_exact_only_if_it_was(own_run: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    assert "with every training image by an exact search" in text_of(render(own_run))
    manifest["index"] = {
        "clip": {"recipe": "IVF53,SQ8", "queries": 0, "recall_at_1": None},
        "sscd": {"recipe": "IVF53,SQ8", "queries": 256, "recall_at_1": 0.98},
    }
    (own_run / "manifest.json").write_text(json.dumps(manifest))
    said = text_of(render(own_run))
    assert "exact search" not in said
    assert "For clip, the recall of this index was not measured." in said
    assert "For sscd, this index found the nearest training image for 98.0% of 256 generated images." in said


def test_a_hostile_caption_is_shown_as_text(page: str, hostile: str) -> None:
    assert "<script>" in hostile
    assert "<script" not in page
    assert hostile in text_of(page)


def test_marks_that_turn_or_hide_text_are_spelled_out(page: str, bidi: str) -> None:
    assert "\u202e" in bidi
    assert "\u202e" not in page
    assert "\u0007" not in page
    assert "a cat ⟨U+202E⟩gnp.tac⟨U+202C⟩ in a hat⟨U+0007⟩" in text_of(page)
    assert visible("family: \U0001f468\u200d\U0001f469 é") == "family: \U0001f468\u200d\U0001f469 é"


def test_a_long_caption_is_cut_and_says_how_long_it_is() -> None:
    assert visible("a" * 10_000) == "a" * 240 + " … (10,000 characters)"


def test_the_summary_counts_every_verdict_and_states_the_claims(page: str) -> None:
    text = text_of(page)
    assert "16 of 318 captions made the model reproduce a training image" in text
    for count, word in (
        (9, "verbatim"),
        (7, "partial"),
        (60, "unconfirmed"),
        (240, "not_selected"),
        (1, "unknown"),
        (1, "error"),
    ):
        assert f"{count} {word}" in text
    assert "We also generated images for 40 of the other 280 captions, drawn at random" in text
    assert "make the model copy a training image under this protocol (97.5 % confidence)" in text


def test_what_was_not_audited_is_listed(page: str) -> None:
    text = text_of(page)
    assert "ingest missing_caption 1 1 no caption" in text
    assert "ingest unreadable 1 unknown the file is truncated" in text


def test_a_confirmed_case_shows_both_images_and_the_figures_it_rests_on(page: str) -> None:
    [case] = [part for part in re.findall(r"<article.*?</article>", page, re.S) if "slice of pizza" in part]
    images = [attributes for tag, attributes in Tags(case).tags if tag == "img"]
    assert [image["alt"] for image in images] == ["generated image", "training image"]
    text = text_of(case)
    assert re.search(
        r"verbatim risk high in 1 row copied with 4 of 4 fresh seeds similarity 0\.\d{3} "
        r"threshold 0\.\d{3} clip 0\.\d{3}",
        text,
    )
    assert "this caption's own" in text


def test_families_stand_together_and_no_more_than_stated_of_one(page: str) -> None:
    text = text_of(page)
    assert "A family of 7 captions" in text
    assert "3 of its 7 captions are shown" in text
    assert page.count("phone case with a") == facts.PER_FAMILY
    assert "This page shows 11 of 16" in text


def test_the_number_of_cases_is_capped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "MAX_CASES", 2)
    capped = render(run)
    assert capped.count("<article") == 2
    assert "This page shows 2 of 16" in text_of(capped)


def test_the_size_of_all_images_together_is_capped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.html.MAX_IMAGE_BYTES", 10_000)
    assert 0 < render(run).count("<article") < 11


def test_a_large_image_is_made_smaller_and_a_tiny_one_is_not_blurred(page: str) -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (2000, 1000), (0, 0, 0, 0)).save(encoded, "PNG")
    large = picture(encoded.getvalue())
    assert large is not None
    assert not large["tiny"]
    assert large["size"] == "2000 × 1000"
    shown = Image.open(io.BytesIO(base64.b64decode(large["uri"].partition(",")[2])))
    assert shown.size == (MAX_SIDE, MAX_SIDE // 2)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert 'class="tiny"' in page
    assert "image-rendering: pixelated" in page


@pytest.mark.parametrize("encoded", [None, b"", b"not an image", b"<svg onload='alert(1)'/>"])
def test_what_is_no_image_is_left_out(encoded: bytes | None) -> None:
    assert picture(encoded) is None


def test_write_leaves_the_report_in_the_run(own_run: Path) -> None:
    path = Path(write(own_run))
    assert path == own_run / "report.html"
    assert path.read_text("utf-8") == render(own_run)


def test_a_run_without_images_findings_sample_or_errors_is_reported_too(own_run: Path) -> None:
    for part in (own_run / "verdicts").iterdir():
        table = pq.read_table(part)
        clear = pa.array(["not_selected"] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index("verdict"), "verdict", clear), part)
    for table in ("errors", "generations", "matches", "evidence"):
        for part in (own_run / table).iterdir():
            part.unlink()
    manifest = json.loads((own_run / "manifest.json").read_text())
    nothing: dict[str, object] = {key: {} for key in ("claims", "calibration", "stages", "models", "thresholds")}
    manifest |= nothing | {"inputs": [], "packages": {}}
    (own_run / "manifest.json").write_text(json.dumps(manifest))
    text = text_of(render(own_run))
    assert "We audited 318 captions and selected 0 of them for generation" in text
    assert "no claim beyond the captions that it generated" in text
    assert "No training images were given" in text
    assert "Every row of the input was audited" in text
    assert "No caption was confirmed" in text
    assert "crossaudit lookup" in text
    assert "crossaudit exclusions" not in text


def test_a_torn_table_is_an_audit_error(own_run: Path) -> None:
    part = own_run / "verdicts" / "00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(AuditError, match="this part of the run is damaged"):
        render(own_run)
