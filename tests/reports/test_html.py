import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.errors import AuditError
from audit.record.manifest_entries import ClustersEntry
from reports.html import render, write
from reports.pages import code, visible
from reports.pictures import MAX_SIDE, picture
from reports.record import cases
from reports.record.build import build
from reports.record.model import Record
from tests.support.changed_run import change_manifest
from tests.support.markup import Tags, text_of
from tests.support.report_record import without_figures

CLUSTERS = {"threshold": 0.917, "source": "200 edited copies", "images_with_duplicates": 106}


@pytest.fixture(scope="module")
def other(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The run, audited with other settings: what they add to the report does not depend on each other."""
    copied = Path(shutil.copytree(run, tmp_path_factory.mktemp("other") / "run"))
    change_manifest(
        copied,
        accounting__pairs={"rows": 3100, "paired": 3000, "applies": True},
        selection={"budget": 450, "by_duplicates": 40, "audit_sample": 50, "captions": 3000},
        clusters=CLUSTERS,
        index={
            "clip": {"recipe": "IVF53,SQ8", "queries": 0, "recall_at_1": None},
            "sscd": {"recipe": "IVF53,SQ8", "queries": 256, "recall_at_1": 0.98},
        },
        checkpoints={"model": {"sampling": {}, "uncalibrated": ["attention_profile"]}},
        resolved__screen={"detectors": ["caption_response", "attention_profile"]},
        resolved__report__show_training_images=True,
    )
    return build(copied)


@pytest.fixture(scope="module")
def said(other: Record) -> str:
    return text_of(render(without_figures(other)))


def test_the_report_is_one_file_that_loads_nothing_and_runs_its_own_script_only(page: str) -> None:
    found = Tags(page).tags
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found}
    for _, attributes in found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", page)


def test_its_policy_allows_its_script_and_its_style_by_their_hashes(page: str) -> None:
    [policy] = [attributes["content"] for tag, attributes in Tags(page).tags if "http-equiv" in attributes]
    assert policy is not None
    for tag in ("style", "script"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_it_answers_in_one_sentence_with_percentages(page: str) -> None:
    found = "For 16 of 318 captions (5.03\u00a0%), the model reproduced a training image or a part of one"
    bounds = "of all captions, at least 2.8\u00a0% and at most 12.6\u00a0% make it do so (95.5\u00a0% confidence)."
    assert f"{found}; {bounds}" in page


def test_what_to_do_next_has_commands_with_the_paths_of_the_run(page: str, run: Path) -> None:
    said = text_of(page[page.index("What to do next</h2>") : page.index("All captions that were looked at")])
    for command in ("exclusions", "mitigate", "review", "lookup", "purge"):
        assert f"crossaudit {command} {run}" in said
    assert f"crossaudit clean {run}/exclusions.parquet captions.parquet 'images/*.tar' --out cleaned" in said


def test_it_says_how_many_rows_are_paired(said: str) -> None:
    assert "3,000 of 3,100 rows of the dataset are paired with their own image. For a caption without such" in said


def test_captions_chosen_by_duplicates_are_not_called_the_highest(said: str) -> None:
    assert "We generated images for the 410 highest-scoring captions, for 40 more captions whose images occur" in said
    assert "and for 50 captions drawn at random" in said
    assert "106 training images have near duplicates among the training images (similarity of at least 0.92;" in said
    assert "this threshold comes from 200 edited copies" in said


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        ({"recall": 0.974, "pairs": 2100}, "this finds 97.4% of an image's duplicates: an exact scan for about a"),
        (
            {"recall": None, "pairs": 0},
            "misses is not known: an exact scan for about a thousand images found 0 pairs.",
        ),
    ],
)
def test_how_many_duplicates_lists_miss_is_said(
    record: Record, said: str, measured: dict[str, Any], sentence: str
) -> None:
    lists = "into the same list of similar images"
    assert lists not in said  # nothing was measured
    clusters = ClustersEntry.model_validate(CLUSTERS | measured)
    method = record.method.model_copy(update={"clusters": clusters})
    page = text_of(render(without_figures(record.model_copy(update={"method": method}))))
    assert lists in page
    assert sentence in page


def test_a_search_is_called_exact_only_if_it_was(page: str, said: str) -> None:
    assert "with every training image by an exact search" in text_of(page)
    assert "exact search" not in said
    assert "For clip, the recall of this index was not measured." in said
    assert "For sscd, this index found the nearest training image for 98.0% of 256 generated images." in said


def test_uncalibrated_evidence_is_marked_where_the_detector_is_named_and_among_the_limits(said: str) -> None:
    assert "attention_profile (uncalibrated evidence); after Ren" in said
    assert "uncalibrated evidence for this model: attention_profile." in said


def test_a_hostile_caption_is_shown_as_text(page: str, hostile: str) -> None:
    assert "<script>" in hostile
    assert page.count("<script") == 1  # its own
    assert hostile in text_of(page)


def test_marks_that_turn_or_hide_text_are_spelled_out(page: str, bidi: str) -> None:
    assert "\u202e" in bidi
    assert "\u202e" not in page
    assert "\u0007" not in page
    assert "a cat ⟨U+202E⟩gnp.tac⟨U+202C⟩ in a hat⟨U+0007⟩" in text_of(page)
    assert visible("family: \U0001f468\u200d\U0001f469 é") == "family: \U0001f468\u200d\U0001f469 é"


def test_a_long_caption_is_cut_and_says_how_long_it_is() -> None:
    assert visible("a" * 10_000) == "a" * 240 + " … (10,000 characters)"


def test_code_in_a_warning_is_set_as_code_and_markup_in_it_is_escaped() -> None:
    assert code("of `verbatim`: <b>`, `<i>`") == "of <code>verbatim</code>: &lt;b&gt;<code>, </code>&lt;i&gt;`"


def test_the_summary_counts_every_verdict_that_occurs_and_states_the_claims(page: str) -> None:
    text = text_of(page)
    for count, word in (
        (9, "verbatim"),
        (7, "partial"),
        (60, "unconfirmed"),
        (240, "not_selected not looked at"),
        (1, "unknown"),
        (1, "error"),
    ):
        assert f" {count} {word}" in text
    assert "We also generated images for 40 of the other 280 captions, drawn at random" in text
    assert "make the model copy a training image under this protocol (97.5 % confidence)" in text


def test_the_funnel_shows_what_remains_and_what_it_took(page: str) -> None:
    text = text_of(page)
    assert "screened 318 100.0% 1 min 4 s" in text
    assert "generated 77 24.2% 1 h 2 min" in text  # one of the 78 selected captions failed
    assert "confirmed as copies 16 5.0%" in text


def test_what_was_not_audited_is_grouped_by_cause(page: str) -> None:
    text = text_of(page)
    assert "ingest missing_caption 1 1 no caption" in text
    assert "ingest unreadable 1 unknown the file is truncated" in text


def test_every_caption_that_was_looked_at_is_in_the_table(page: str) -> None:
    table = page[page.index('<table id="captions">') :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == 1 + 78
    assert len(re.findall(r'<a href="#case-\d+">', table)) == 11


def test_a_case_shows_its_images_and_the_figures_it_rests_on(page: str) -> None:
    [case] = [
        part for part in re.findall(r"<article.*?</article>", page, re.S) if "</span> <bdi>slice of pizza" in part
    ]
    images = [attributes["alt"] for tag, attributes in Tags(case).tags if tag == "img"]
    fresh = [f"generated image, seed {seed}" for seed in (11, 12)]
    assert images == ["generated image, seed 1", "training image", *fresh]
    text = text_of(case)
    assert "verbatim risk high in 1 row copied with 4 of 4 fresh seeds" in text
    assert re.search(r"Similarity of the whole image 0\.\d{3} ; threshold 0\.\d{3}; clip 0\.\d{3}", text)
    assert "The training image (this caption's own) images.tar , row 0, key slice of pizza" in text
    assert "captions.parquet , row 120" in text
    assert "crossaudit explain model 'slice of pizza' --calibration" in text


def test_a_case_of_a_family_names_the_others(page: str) -> None:
    text = text_of(page)
    assert "7 captions copy the same training image or region" in text
    assert "This page shows 11 of 16 cases" in text


def test_the_number_of_cases_is_capped_but_not_the_table(run: Path, page: str) -> None:
    capped = render(build(run, top=2).model_copy(update={"histograms": {}}))
    assert capped.count("<article") == 2
    assert "This page shows 2 of 16 cases" in text_of(capped)
    assert capped.count("<tr><td>") == page.count("<tr><td>")


def test_training_images_are_blurred_unless_the_configuration_shows_them(
    record: Record, page: str, other: Record, said: str
) -> None:
    for blurred, sharp in zip(record.cases, other.cases, strict=True):
        assert blurred.training is not None
        assert sharp.training is not None
        assert detail(blurred.training.uri) < detail(sharp.training.uri) / 4
        assert sharp.training.uri not in page
    assert "Training images are blurred" in text_of(page)
    assert "blurred" not in said


def detail(uri: str) -> float:
    """The largest difference of neighbouring pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")
    return float(np.abs(np.diff(np.asarray(image, float))).max())


def test_the_size_of_all_images_together_is_capped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "MAX_IMAGE_BYTES", 30_000)
    assert 0 < len(build(run).cases) < 11


def test_a_large_image_is_made_smaller_and_a_tiny_one_is_not_blurred(page: str) -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (2000, 1000), (0, 0, 0, 0)).save(encoded, "PNG")
    large = picture(encoded.getvalue())
    assert large is not None
    assert not large.tiny
    assert large.size == "2000 × 1000"
    shown = Image.open(io.BytesIO(base64.b64decode(large.uri.partition(",")[2])))
    assert shown.size == (MAX_SIDE, MAX_SIDE // 2)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert 'class="tiny"' in page
    assert "image-rendering: pixelated" in page


@pytest.mark.parametrize("encoded", [None, b"", b"not an image", b"<svg onload='alert(1)'/>"])
def test_what_is_no_image_is_left_out(encoded: bytes | None) -> None:
    assert picture(encoded) is None


def test_write_leaves_the_report_in_the_run(run: Path, own_run: Path, page: str) -> None:
    path = Path(write(own_run))
    assert path == own_run / "report.html"
    assert path.read_text("utf-8").replace(str(own_run), str(run)) == page


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
    text = text_of(render(build(own_run)))
    assert "For none of the 0 captions that were tried, of 318 in the dataset, did the model reproduce" in text
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
        render(build(own_run))


def test_attention_per_token_is_drawn_if_the_run_has_it_and_a_command_is_given_otherwise(page: str) -> None:
    articles = re.findall(r"<article.*?</article>", page, re.S)
    drawn = [article for article in articles if "Attention to each token of the caption" in article]
    assert {"phone case with a" in article for article in drawn} == {True}
    others = [article for article in articles if article not in drawn]
    assert all("crossaudit explain model" in article for article in others)
