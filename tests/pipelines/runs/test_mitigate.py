"""Mitigation measured on a finished run: what is written, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import save_file

from audit import schema
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.mitigation.methods.registry import parse
from audit.mitigation.methods.rescale import Rescale
from audit.mitigation.serving import Setting, to_measure
from audit.record.ledger import Ledger
from pipelines.runs.mitigate import METHODS, Request, mitigate_run, with_a_meaning
from reports.check import check
from reports.query import query
from tests.support.called import crossaudit
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_sana import tiny_sana
from tests.support.toy import MEMORIZED

pytestmark = pytest.mark.slow


def rescale(*settings: tuple[float, str]) -> tuple[str, ...]:
    return tuple(f"rescale:bos_scale={scale},keep={keep}" for scale, keep in settings)


WORDS_3, ALL_3 = "bos_scale=3.0, keep=words", "bos_scale=3.0, keep=all"
ASKED = (*rescale((3.0, "words"), (3.0, "all")), "delayed_guidance:until=0.5")
SMALL = Request(methods=ASKED, confirmed=3, ordinary=2)
SETTINGS = {("none", ""), ("rescale", WORDS_3), ("rescale", ALL_3), ("delayed_guidance", "until=0.5")}


def part_of(caption_set: str, bos_scale: float, keep: Any) -> str:
    return f"{caption_set}-{Setting(Rescale(bos_scale, keep)).slug}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    import open_clip

    config: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.model.CLIP(**config).state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


@pytest.fixture(scope="module")
def run(few: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A copy of the finished run, elsewhere, after `crossaudit mitigate`."""
    copy = Path(shutil.copytree(few, tmp_path_factory.mktemp("mitigated") / "run"))
    mitigate_run(str(copy), Request(**(vars(SMALL) | {"clip": str(clip)})))
    return Ledger(str(copy))


@pytest.fixture
def own(few: Path, tmp_path: Path) -> Ledger:
    """A copy that a test may spoil."""
    return Ledger(str(shutil.copytree(few, tmp_path / "run")))


def manifest(run: Ledger) -> dict[str, Any]:
    return json.loads(run.read_bytes("manifest.json") or b"")


def rows(run: Ledger, **where: Any) -> list[dict[str, Any]]:
    found = run.read("mitigation").to_pylist()
    return [row for row in found if all(row[name] == value for name, value in where.items())]


def test_every_caption_of_both_groups_is_there_with_every_setting(run: Ledger) -> None:
    table = run.read("mitigation")
    assert table.schema.equals(schema.MITIGATION)
    confirmed = {row["caption"] for row in rows(run, caption_set="confirmed")}
    ordinary = {row["caption"] for row in rows(run, caption_set="ordinary")}
    verdicts = {row["caption"]: row["verdict"] for row in run.read("verdicts").to_pylist()}
    assert {verdicts[caption] for caption in confirmed} <= {"verbatim", "partial"}
    assert MEMORIZED in confirmed
    assert {verdicts[caption] for caption in ordinary} == {"not_selected"}
    assert len(ordinary) == 2
    for caption in confirmed | ordinary:
        assert sorted((row["method"], row["settings"]) for row in rows(run, caption=caption)) == sorted(SETTINGS)
    assert {row["seed"] for row in table.to_pylist()} == {1}  # that of `generate`


def test_plain_generations_are_those_of_the_run_and_mitigated_ones_differ(run: Ledger) -> None:
    [plain] = rows(run, caption=MEMORIZED, method="none")
    verdict = next(row for row in run.read("verdicts").to_pylist() if row["caption"] == MEMORIZED)
    assert plain["image_id"] == verdict["image_id"]
    assert plain["similarity"] == pytest.approx(verdict["similarity"], abs=1e-3)
    assert plain["is_copy"]
    [mitigated] = rows(run, caption=MEMORIZED, settings=WORDS_3)
    assert mitigated["similarity"] < plain["similarity"]
    assert mitigated["image"] != plain["image"]


def test_a_copy_of_any_training_image_is_above_the_threshold(run: Ledger) -> None:
    limit = manifest(run)["thresholds"]["sscd"]["verbatim"]["value"]
    for row in rows(run):
        assert row["nearest_similarity"] >= row["similarity"] - 1e-3
        if row["verdict"] != "partial":
            assert row["is_copy"] == (max(row["nearest_similarity"], row["similarity"]) >= limit)


def test_ordinary_captions_are_compared_with_their_nearest_training_image(run: Ledger) -> None:
    known = set(run.read("embeddings_sscd")["image_id"].to_pylist())
    for row in rows(run, caption_set="ordinary"):
        assert row["image_id"] is None
        assert row["nearest_image_id"] in known
        assert row["similarity"] == row["nearest_similarity"]


def test_clip_scores_tell_captions_apart(run: Ledger) -> None:
    scores = [row["clip_score"] for row in rows(run, method="none")]
    assert all(-1 <= score <= 1 for score in scores)
    assert len(set(scores)) == len(scores)


def test_the_summary_has_one_row_per_group_and_setting(run: Ledger) -> None:
    summary = run.read("mitigation_summary")
    assert summary.schema.equals(schema.MITIGATION_SUMMARY)
    assert len(summary) == 2 * len(SETTINGS)
    first = summary.to_pylist()[0]
    assert (first["caption_set"], first["method"], first["settings"]) == ("confirmed", "none", "")
    assert first["captions_above"] == sum(row["is_copy"] for row in rows(run, caption_set="confirmed", method="none"))
    for row in summary.to_pylist():
        assert row["seconds_per_image"] > 0
        assert row["diversity"] > 0 if row["images"] > 1 else row["diversity"] is None


def test_the_run_stays_finished_and_its_accounting_closes(run: Ledger, few: Path) -> None:
    before, after = json.loads((few / "manifest.json").read_text()), manifest(run)
    assert after["finished"] == before["finished"]
    assert after["claims"] == before["claims"]
    assert after["resolved"] | {"out": ""} == before["resolved"] | {"out": ""}
    assert after["stages"]["mitigate"]["rows_in"] == after["stages"]["mitigate"]["rows_out"] == len(rows(run))
    assert [result for result in check(run.uri) if not result.ok] == []
    assert query(run.uri, "select count(*) as n from mitigation").to_pylist() == [{"n": len(rows(run))}]


def test_the_report_has_the_section(run: Ledger, few: Path) -> None:
    assert '<h2 id="mitigation">' in Path(run.uri, "report.html").read_text("utf-8")
    assert '<h2 id="mitigation">' not in (few / "report.html").read_text("utf-8")


def test_the_command_prints_one_line_per_setting_and_where_the_report_is(run: Ledger, clip: Path) -> None:
    """All is there from before: nothing is computed, the same comes out."""
    before = run.read("mitigation")
    asked = [word for method in ASKED for word in ("--method", method)]
    done = crossaudit("mitigate", run.uri, *asked, "--captions", "3", "--ordinary", "2", "--clip", str(clip))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{run.uri}/report.html"
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in lines if line.startswith("│")]
    confirmed = len(set(before.filter(pc.field("caption_set") == "confirmed")["caption_id"].to_pylist()))
    assert cells[0] == ["none", "", f"{confirmed} of {confirmed}"]
    assert {(method, settings) for method, settings, _ in cells} == SETTINGS
    assert "done earlier" in done.stderr
    assert run.read("mitigation").equals(before)


@pytest.mark.parametrize("wrong", [("--method", "mask"), ("--captions", "0"), ("--method", "rescale:bos_scale=-1")])
def test_wrong_arguments_exit_with_2(few: Path, wrong: tuple[str, str]) -> None:
    assert crossaudit("mitigate", str(few), *wrong).returncode == 2


def test_it_goes_on_where_it_stopped_and_other_settings_are_added(run: Ledger, clip: Path) -> None:
    before = run.read("mitigation", part_of("confirmed", 3.0, "words"))
    lost = run.read("mitigation", part_of("ordinary", 3.0, "all")).drop_columns("seconds")
    run.remove("mitigation", part_of("ordinary", 3.0, "all"))
    more = vars(SMALL) | {"methods": rescale((3.0, "all"), (5.0, "all")), "clip": str(clip)}
    summary = mitigate_run(run.uri, Request(**more))
    assert run.read("mitigation", part_of("confirmed", 3.0, "words")).equals(
        before
    )  # its seconds too: it was not measured again
    assert run.read("mitigation", part_of("ordinary", 3.0, "all")).drop_columns("seconds").equals(lost)
    assert {(row["method"], row["settings"]) for row in summary.to_pylist()} == SETTINGS | {
        ("rescale", "bos_scale=5.0, keep=all")
    }
    assert [result for result in check(run.uri) if not result.ok] == []


def test_what_was_measured_but_not_summarized_is_measured_again_if_its_vectors_are_gone(
    run: Ledger, clip: Path, tmp_path: Path
) -> None:
    """As after a kill between two settings, and a rerun of the audit, which removes working tables."""
    copy = Ledger(str(shutil.copytree(run.uri, tmp_path / "run")))
    assert not Path(copy.uri, "_work").exists()
    before, summary = copy.read("mitigation").drop_columns("seconds"), copy.read("mitigation_summary")
    copy.write("mitigation_summary", "00000", summary.slice(1))
    kept = copy.read("mitigation_summary").to_pylist()
    mitigate_run(copy.uri, Request(**(vars(SMALL) | {"clip": str(clip)})))
    assert copy.read("mitigation").drop_columns("seconds").equals(before)
    again = copy.read("mitigation_summary")
    assert again.slice(1).to_pylist() == kept  # its seconds too: it was not measured again
    assert again.drop_columns("seconds_per_image").equals(summary.drop_columns("seconds_per_image"))


def test_other_captions_or_seeds_take_the_place_of_those_before(run: Ledger, tmp_path: Path) -> None:
    copy = Ledger(str(shutil.copytree(run.uri, tmp_path / "run")))
    assert "clip" in manifest(copy)["models"]
    mitigate_run(copy.uri, Request(methods=rescale((2.0, "eos")), confirmed=1, ordinary=1, seeds=[7, 8]))
    assert "clip" not in manifest(copy)["models"]
    assert {row["clip_score"] for row in rows(copy)} == {None}  # the run has no CLIP
    assert {(row["caption_set"], row["seed"]) for row in rows(copy)} == {
        (caption_set, seed) for caption_set in schema.CAPTION_SETS for seed in (7, 8)
    }
    assert {row["settings"] for row in rows(copy)} == {"", "bos_scale=2.0, keep=eos"}
    assert [result for result in check(copy.uri) if not result.ok] == []


def test_a_partial_copy_is_looked_for_in_its_region(own: Ledger) -> None:
    """The verdict is made partial here, and no whole image may be above its threshold."""
    for part in own.parts("verdicts"):
        table = own.read("verdicts", part)
        words = ["not_selected" if caption != MEMORIZED else "partial" for caption in table["caption"].to_pylist()]
        own.write(
            "verdicts", part, table.set_column(table.schema.get_field_index("verdict"), "verdict", pa.array(words))
        )
    data = manifest(own)
    data["thresholds"]["sscd"]["verbatim"]["value"] = 2.0
    own.write_bytes("manifest.json", json.dumps(data).encode())
    mitigate_run(own.uri, Request(methods=rescale((3.0, "words")), ordinary=1))
    [plain] = rows(own, caption=MEMORIZED, method="none")
    assert plain["region_similarity"] == pytest.approx(1, abs=1e-4)
    assert plain["is_copy"]
    [mitigated] = rows(own, caption=MEMORIZED, settings=WORDS_3)
    assert mitigated["region_similarity"] < 0.9999
    assert not mitigated["is_copy"]
    [ordinary] = rows(own, caption_set="ordinary", method="none")
    assert ordinary["region_similarity"] is None
    assert not ordinary["is_copy"]


def of_another_model(run: Ledger, folder: Path) -> None:
    """Make a run one of another model, as far as `mitigate` can tell."""
    about = manifest(run)
    about["resolved"]["model"] |= {"path": str(folder), "resolution": 16}
    for entries in (about["models"], about["checkpoints"]):
        entries.pop("model")
    run.write_bytes("manifest.json", json.dumps(about).encode())


def test_a_transformer_is_mitigated_by_what_has_a_meaning_for_it(own: Ledger, tmp_path: Path) -> None:
    of_another_model(own, tiny_sd3(tmp_path / "model", DATA / "tiny-sd1/tokenizer"))
    few = ("--captions", "1", "--ordinary", "1", "--seeds", "1")
    refused = crossaudit("mitigate", own.uri, *few, "--method", "attenuate")
    assert refused.returncode == 1
    assert "down and mid layers of a UNet, and the denoiser is SD3Transformer2DModel" in refused.stderr
    done = crossaudit("mitigate", own.uri, *few, "--method", "dilute", "--method", "rescale", "--empty-pooled")
    assert done.returncode == 0, done.stderr
    assert "pooled vector" not in done.stderr
    assert "no method changes the pooled vector" in crossaudit("mitigate", own.uri, *few, "--method", "dilute").stderr
    assert {(row["method"], row["settings"]) for row in rows(own)} == {
        ("none", ""),
        ("dilute", "share=0.4"),
        ("dilute", "share=0.4, empty_pooled=True"),
        ("rescale", "bos_scale=1.25, keep=eos, empty_pooled=True"),
    }


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (
            lambda folder: tiny_sd3(folder, DATA / "tiny-sd1/tokenizer"),
            {"rescale", "padding", "delayed_guidance", "dilute"},
        ),
        (lambda folder: tiny_flux(folder, DATA / "tiny-sd1/tokenizer"), {"rescale", "dilute"}),
        (tiny_pixart, {"rescale", "dilute"}),
        (tiny_sana, {"rescale", "delayed_guidance", "dilute"}),
    ],
    ids=["sd3", "flux", "pixart", "sana"],
)
def test_by_default_what_has_a_meaning_for_the_model_is_measured(make: Any, left: set[str], tmp_path: Path) -> None:
    pipeline, settings = (
        outline_model(make(tmp_path / "model")).pipeline(),
        to_measure([parse(text) for text in METHODS]),
    )
    assert {setting.name for setting in with_a_meaning(settings, pipeline, chosen=False)} == {"none", *left}


def test_a_run_that_is_not_finished_is_refused(own: Ledger) -> None:
    own.write_bytes("manifest.json", json.dumps(manifest(own) | {"finished": None}).encode())
    with pytest.raises(AuditError, match="the run is not finished"):
        mitigate_run(own.uri, SMALL)


def test_a_run_that_confirmed_nothing_is_refused(own: Ledger) -> None:
    for part in own.parts("verdicts"):
        table = own.read("verdicts", part)
        clear = pa.array(["not_selected"] * len(table))
        own.write("verdicts", part, table.set_column(table.schema.get_field_index("verdict"), "verdict", clear))
    with pytest.raises(AuditError, match="this run has no confirmed captions"):
        mitigate_run(own.uri, SMALL)


def test_a_run_without_the_training_images_is_refused(own: Ledger) -> None:
    own.write("evidence", "00000", schema.EVIDENCE.empty_table())
    with pytest.raises(AuditError, match="images of confirmed captions are missing from the table evidence"):
        mitigate_run(own.uri, SMALL)
    own.remove("embeddings_sscd", own.parts("embeddings_sscd")[0])
    for part in own.parts("embeddings_sscd"):
        own.remove("embeddings_sscd", part)
    with pytest.raises(AuditError, match="the table embeddings_sscd is missing"):
        mitigate_run(own.uri, SMALL)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="this is not a run"):
        mitigate_run(str(tmp_path), SMALL)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"methods": rescale((-1.0, "eos"))}, "bos_scale is -1"),
        ({"methods": rescale((1.0, "all"))}, "there is nothing to measure"),
        ({"seeds": [1, 1]}, "invalid seeds"),
        ({"seeds": [-1]}, "invalid seeds"),
        ({"confirmed": 0}, "captions must be at least 1"),
        ({"clip": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_a_request_that_cannot_be_met_is_wrong_usage(finished: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        mitigate_run(str(finished), Request(**(vars(SMALL) | change)))
