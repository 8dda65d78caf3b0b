"""A whole audit of a sound dataset: what it finds, and that it finds the same however it is run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

import audit
from audit.errors import AuditError
from audit.explaining.perturbations import content_words, perturbation_margin
from audit.images.decoding import decode
from audit.record.ledger import Ledger
from audit.schema import VERDICTS
from pipelines.reading.images import image_id
from pipelines.runs.clean import write_clean_copies
from pipelines.runs.lookup import nearest_images
from pipelines.stages import ingest
from pipelines.tables import calibration
from reports.check import check
from reports.exclusions import write_exclusions
from reports.query import query
from tests.support.called import on_a_terminal
from tests.support.comparison import TABLES, same
from tests.support.screen import screen
from tests.support.toy import CONTROL_CAPTIONS, FEW, MEMORIZED, MODEL, png, write_config, write_parquet

pytestmark = pytest.mark.slow

IN_MEMORY = "memory://audit/run"
DIVIDED = (*FEW, "index.type=ivf")


@pytest.fixture(scope="module")
def dataset(toy: Path) -> Path:
    return toy / "audit.yaml"


@pytest.fixture(scope="module")
def run(finished: Path) -> Ledger:
    return Ledger(str(finished))


@pytest.fixture(scope="module")
def few(few: Path) -> Ledger:
    return Ledger(str(few))


@pytest.fixture
def own(few: Ledger, tmp_path: Path) -> Ledger:
    """A copy of that run, which the test may change."""
    return Ledger(str(shutil.copytree(few.uri, tmp_path / "run")))


@pytest.fixture(scope="module")
def terminal(dataset: Path) -> list[str]:
    """What a terminal shows of the same run in memory."""
    settings = [part for override in FEW for part in ("--set", override)]
    code, received = on_a_terminal("run", str(dataset), *settings, "--out", IN_MEMORY, columns=120)
    lines = screen(received)
    assert code == 0, lines
    return lines


@pytest.fixture(scope="module")
def renamed(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the same dataset with a caption column named "text"."""
    path = make_dataset(tmp_path_factory.mktemp("renamed"))
    for file in (path.parent / "captions").iterdir():
        pq.write_table(pq.read_table(file).rename_columns({"caption": "text"}), file)
    return path


@pytest.fixture(scope="module")
def divided(renamed: Path, audited: Callable[..., str]) -> Ledger:
    """The run of `renamed` with four captions per part, and an inverted file of the images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "BUCKET_ROWS", 4)
        return Ledger(audited(renamed, *DIVIDED))


@pytest.fixture(scope="module")
def blind(dataset: Path, audited: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A run without images that screens at a smaller resolution, and perturbs captions."""
    settings = ["images=null", "screen.resolution=16", "calibration.screen=null", "select.perturbation_margin=true"]
    out = str(tmp_path_factory.mktemp("blind") / "run")
    return Ledger(audited(dataset, *FEW, *settings, "engine.keep_work=true", out=out))


def manifest(run: Ledger) -> dict[str, Any]:
    content = run.read_bytes("manifest.json")
    assert content is not None
    return json.loads(content)


def verbatim_captions(run: Ledger) -> list[str]:
    return run.read("verdicts").filter(pc.field("verdict") == "verbatim").sort_by("caption_id")["caption"].to_pylist()


@pytest.mark.usefixtures("terminal")
def test_a_run_in_memory_is_the_same_and_has_a_report(few: Ledger) -> None:
    in_memory = Ledger(IN_MEMORY)
    same(few, in_memory)
    assert [result for result in check(in_memory.uri) if not result.ok] == []
    assert MEMORIZED.encode() in (in_memory.read_bytes("report.html") or b"")
    found = query(in_memory.uri, "SELECT caption FROM verdicts WHERE verdict = 'verbatim' ORDER BY caption_id")
    assert found["caption"].to_pylist() == verbatim_captions(few)
    assert MEMORIZED in verbatim_captions(few)


def test_its_accounting_closes(run: Ledger) -> None:
    assert [result for result in check(run.uri) if not result.ok] == []
    assert manifest(run)["finished"] is not None
    assert not run.parts("errors")


def test_what_the_model_reproduces_is_verbatim_with_its_own_image_as_evidence(run: Ledger, planted: bytes) -> None:
    verdicts = run.read("verdicts").to_pylist()
    [found] = [row for row in verdicts if row["caption"] == MEMORIZED]
    assert found["verdict"] == "verbatim"
    assert found["image_id"] == image_id("00000.tar", 0)
    assert found["matched_own_image"]
    assert found["fresh_generations"] == 2
    [evidence] = [row for row in run.read("evidence").to_pylist() if row["image_id"] == found["image_id"]]
    assert (evidence["file"], evidence["row"], evidence["key"]) == ("00000.tar", 0, "00000")
    assert evidence["url"] == "https://images.example/00000"
    assert evidence["image"].startswith(b"\x89PNG")


def test_a_caption_on_two_rows_is_one_caption_with_two_copies(run: Ledger) -> None:
    captions = run.read("captions")
    assert captions["caption_id"].to_pylist() == sorted(
        audit.caption_id(text) for text in captions["caption"].to_pylist()
    )
    twice = [row["caption"] for row in captions.to_pylist() if row["row_count"] == 2]
    assert sorted(twice) == ["picture 18 of a thing", "picture 19 of a thing"]


def test_captions_find_their_images_by_file_stem_and_key(run: Ledger) -> None:
    rows = run.read("rows").to_pylist()
    assert [row["image_id"] for row in rows] == [
        image_id(f"{row['file'].removesuffix('.parquet')}.tar", row["row"]) for row in rows
    ]


def test_the_screen_is_that_of_audit_screen(run: Ledger, control_screen: pa.Table) -> None:
    screen = run.read("screen")
    assert screen.schema.metadata[b"crossaudit"] == control_screen.schema.metadata[b"crossaudit"]
    first = run.read("captions")["caption"][0].as_py()
    [row] = audit.screen(audit.load_model(MODEL), [first]).to_pylist()
    assert screen["caption_response"][0].as_py() == pytest.approx(row["caption_response"], abs=2e-5)


def test_a_run_can_screen_at_a_smaller_resolution_than_it_generates_at(blind: Ledger) -> None:
    for table in ("screen", "control_screen"):
        assert json.loads(blind.read(table).schema.metadata[b"crossaudit"])["latent_shape"] == [4, 8, 8]
    assert calibration.load_calibration(blind).context["latent shape"] == [4, 8, 8]
    assert decode(blind.read("generations")["image"][0].as_py()).size == (32, 32)
    assert manifest(blind)["resolved"]["screen"]["resolution"] == 16
    assert "at\n16 pixels" in Path(blind.uri, "report.html").read_text()


def test_a_control_caption_of_the_data_set_is_removed_and_counted(run: Ledger) -> None:
    calibration = manifest(run)["calibration"]
    assert (calibration["control_captions"], calibration["removed"]) == (len(CONTROL_CAPTIONS), 1)
    assert calibration["fit"] + calibration["held_out"] == len(CONTROL_CAPTIONS)
    assert sorted(run.read("control_screen")["caption"].to_pylist()) == sorted(CONTROL_CAPTIONS)


def test_selection_is_the_budget_and_a_sample_of_known_probability(run: Ledger) -> None:
    scores = run.read("scores").to_pylist()
    budget = [row for row in scores if row["selected_by"] == "budget"]
    sample = [row for row in scores if row["selected_by"] == "sample"]
    assert (len(budget), len(sample)) == (5, 25)
    assert {row["score"] for row in budget} == set(sorted((row["score"] for row in scores), reverse=True)[:5])
    assert {row["inclusion_probability"] for row in budget} == {1.0}
    assert {row["inclusion_probability"] for row in scores if row not in budget} == {25 / 33}


def test_control_captions_go_through_the_seeds_of_discovery_and_fresh_seeds_are_new(run: Ledger) -> None:
    seeds: dict[str, set[int]] = {}
    for row in run.read("generations", columns=["purpose", "seed"]).to_pylist():
        seeds.setdefault(row["purpose"], set()).add(row["seed"])
    assert seeds == {"discover": {1}, "control": {1}, "fresh": {2, 3}}


def test_thresholds_come_from_the_control_captions_unless_a_floor_is_above(run: Ledger) -> None:
    limits = manifest(run)["thresholds"]["sscd"]
    assert (limits["verbatim"]["source"], limits["verbatim"]["floor"]) == ("controls", 0.5)
    # One control caption reproduces an image that the model also copies from one of its own captions.
    assert (limits["verbatim"]["controls"], limits["verbatim"]["used"]) == (19, 18)
    region = limits["region"]
    assert (region["value"], region["source"], region["without"]) == (0.9999, "configured", 18)


def test_tables_have_their_declared_schemas(run: Ledger) -> None:
    assert run.read("verdicts").schema.equals(VERDICTS)
    assert run.read("embeddings_sscd").schema.field("vector").type == pa.list_(pa.float16(), 16)


def test_the_manifest_names_what_the_run_rests_on(run: Ledger, dataset: Path) -> None:
    found = manifest(run)
    assert {Path(item["file"]).name for item in found["inputs"]} >= {"00000.parquet", "00001.tar"}
    networks = {"unet", "text_encoder", "vae"}
    loaded = {f"{name} (as loaded)" for name in networks}
    assert found["models"]["model"].keys() == networks | loaded | {"tokenizer", "resolution", "dtype"}
    assert found["models"]["model"]["resolution"] == "32 x 32"
    assert found["models"]["sscd"].keys() == {"sscd.safetensors", "preprocessing"}
    assert found["stages"]["ingest"] | {"seconds": 0} == {"rows_in": 40, "rows_out": 40, "errors": 0, "seconds": 0}
    assert found["claims"]["sentences"]
    assert Path(run.uri, "report.html").stat().st_size > 1000


def test_its_exclusions_clean_the_data_set_that_it_read(run: Ledger, dataset: Path, tmp_path: Path) -> None:
    done = write_exclusions(run.uri, out=str(tmp_path / "exclusions.parquet"))
    found = pq.read_table(done.path).to_pylist()
    [memorized] = [row for row in found if row["caption_id"] == audit.caption_id(MEMORIZED)]
    assert (memorized["file"], memorized["row"], memorized["key"]) == ("00000.parquet", 0, "00000")
    folders = [str(dataset.parent / name) for name in ("captions", "images")]
    counts = write_clean_copies(done.path, folders, str(tmp_path / "clean"), lambda line: None)
    assert (counts.rows_in, counts.dropped, counts.rows_out) == (80, 2 * done.dropped, 80 - 2 * done.dropped)
    assert MEMORIZED not in pq.read_table(tmp_path / "clean/captions/00000.parquet")["caption"].to_pylist()


def test_captions_in_many_parts_are_selected_and_judged_as_in_one(few: Ledger, divided: Ledger) -> None:
    rows = [divided.rows("captions", name) for name in divided.parts("captions")]
    assert len(rows) == 10
    assert min(rows) == 0
    assert divided.parts("verdicts") == divided.parts("captions")
    exact = ["caption_id", "row_count", "verdict", "risk", "fresh_copies", "image_id", "family", "image_cluster_size"]
    assert divided.read("verdicts").select(exact).equals(few.read("verdicts").select(exact))
    assert divided.read("scores")["selected_by"].equals(few.read("scores")["selected_by"])
    for column in ("score", "p_unseen", "p_not_reproduced"):  # of other batches
        found, expected = (each.read("verdicts")[column] for each in (divided, few))
        assert found.is_null().equals(expected.is_null())
        assert found.drop_null().to_pylist() == pytest.approx(expected.drop_null().to_pylist(), rel=2e-5)
    for entry in ("claims", "selection"):
        assert manifest(divided)[entry] == manifest(few)[entry]


def test_an_inverted_file_of_few_images_finds_the_same(few: Ledger, divided: Ledger) -> None:
    ranks = ["caption_id", "purpose", "seed", "rank", "image_id"]
    assert divided.read("matches").select(ranks).equals(few.read("matches").select(ranks))
    assert divided.read("verdicts")["verdict"].equals(few.read("verdicts")["verdict"])
    found = {"recipe": "IVF1,SQ8", "queries": 9, "recall_at_1": 1.0}
    assert manifest(divided)["index"] == {"sscd": found}
    assert "index" not in manifest(few)
    assert divided.read("image_clusters").equals(few.read("image_clusters"))
    image = few.read("evidence")["image"][0].as_py()
    nearest = nearest_images(divided.uri, image, "mine.png").to_pylist()  # the inverted file outlives the run
    assert nearest[0]["image_id"] == few.read("evidence")["image_id"][0].as_py()
    known = manifest(divided)["clusters"]
    assert known.items() >= manifest(few)["clusters"].items()
    assert known["recall"] == (1.0 if known["pairs"] else None)
    assert [result for result in check(divided.uri) if not result.ok] == []


def test_a_rerun_of_a_finished_run_computes_nothing_and_removes_working_tables_unless_they_are_kept(
    own: Ledger, dataset: Path, audited: Callable[..., str]
) -> None:
    """A finished run has none; here, a killed process left some."""
    assert not Path(own.uri, "_work").exists()
    assert not [path for path in Path(own.uri).iterdir() if path.is_dir() and path.name.startswith("_")]
    before = {path: path.stat().st_mtime_ns for path in Path(own.uri).rglob("*.parquet")}
    Path(own.uri, "report.html").unlink()
    own.write("_keys", "00000", pa.table({"key": [1]}))
    audited(dataset, *FEW, "engine.keep_work=true", out=own.uri)
    assert own.parts("_keys")
    assert Path(own.uri, "report.html").exists()
    audited(dataset, *FEW, out=own.uri)
    assert not Path(own.uri, "_work").exists()
    assert {path: path.stat().st_mtime_ns for path in Path(own.uri).rglob("*.parquet")} == before
    assert not ray.is_initialized()


def test_any_lost_part_is_made_again_without_the_working_tables(
    own: Ledger, dataset: Path, audited: Callable[..., str]
) -> None:
    """One part of every table, and the calibration. The stages need working tables, which a finished run lacks."""
    before = {table: own.read(table) for table in TABLES}
    for table in TABLES:
        own.remove(table, own.parts(table)[0])
    for table, name in (("screen", "00000-00001"), ("generations", "discover-00001"), ("matches", "fresh-00000")):
        own.remove(table, name)
    Path(own.uri, calibration.NAME).unlink()
    leftover = Path(own.uri, "screen", ".00000-00001.abc.tmp")
    leftover.write_bytes(b"half a file")
    audited(dataset, *FEW, out=own.uri)
    assert {table: own.read(table) for table in TABLES} == before
    assert not leftover.exists()
    assert [result for result in check(own.uri) if not result.ok] == []
    assert not Path(own.uri, "_work").exists()


def test_a_terminal_has_a_line_per_stage_above_the_summary(terminal: list[str]) -> None:
    stages = [line for line in terminal if line.startswith("✓")]
    names = "ingest controls embed cluster calibrate screen select generate confirm judge report"
    assert " ".join(line.split()[1] for line in stages) == names
    assert re.fullmatch(r"✓ ingest +40 rows +[\d.]+ s.*", stages[0])
    assert re.fullmatch(r"✓ screen +38 captions +[\d.]+ s.*", stages[5])
    assert not any("⠋" in line or "━" in line for line in terminal)
    [verbatim] = [line for line in terminal if line.startswith("■ verbatim")]
    assert int(verbatim.split()[2]) == len(verbatim_captions(Ledger(IN_MEMORY)))
    start = terminal.index("What can be said about all captions")
    sentences = " ".join(line.strip("- ") for line in terminal[start:])
    assert all(sentence in sentences for sentence in manifest(Ledger(IN_MEMORY))["claims"]["sentences"])


def test_a_run_is_not_resumed_under_another_configuration(
    run: Ledger, dataset: Path, audited: Callable[..., str]
) -> None:
    with pytest.raises(AuditError, match=r"generate.steps was 2 when this run began and is 3 now"):
        audited(dataset, "generate.steps=3", out=run.uri)


@pytest.mark.usefixtures("divided")
def test_a_run_is_not_resumed_with_another_input(renamed: Path, audited: Callable[..., str]) -> None:
    captions = renamed.parent / "captions/00001.parquet"
    before = captions.read_bytes()
    try:
        pq.write_table(pq.read_table(captions).slice(1), captions)
        with pytest.raises(AuditError, match=r"00001.parquet: has changed since this run began"):
            audited(renamed, *DIVIDED)
    finally:
        captions.write_bytes(before)


def test_captions_and_images_of_one_parquet_file_with_two_embedders(
    dataset: Path, run: Ledger, audited: Callable[..., str], tmp_path: Path
) -> None:
    """And without a precomputed screen of the control captions: it comes out the same."""
    folder = dataset.parent
    texts = run.read("captions")["caption"].to_pylist()
    images = [png(row) for row in range(len(texts))]
    write_parquet(tmp_path / "all.parquet", {"caption": texts, "image": images})
    embedders = {name: {"weights": str(folder / "sscd.safetensors")} for name in ("sscd", "clip")}
    path = write_config(
        tmp_path,
        captions="all.parquet",
        images="all.parquet",
        calibration={"captions": str(folder / "control_captions.txt")},
        confirm={"embedders": ["sscd", "clip"], "control_captions": 4, "control_rate": 0.5, "fresh_seeds": 1}
        | embedders,
        select={"budget": 2, "audit_sample": 0},
    )
    other = Ledger(audited(path))
    assert [result for result in check(other.uri) if not result.ok] == []
    rows = other.read("rows").to_pylist()
    assert [row["image_id"] for row in rows] == [image_id("all.parquet", row["row"]) for row in rows]
    assert other.read("embeddings_clip").equals(other.read("embeddings_sscd"))
    assert set(manifest(other)["thresholds"]) == {"sscd", "clip"}
    ours, theirs = other.read("control_screen").sort_by("caption"), run.read("control_screen").sort_by("caption")
    assert ours["caption_id"].equals(theirs["caption_id"])
    assert ours["caption_response"].to_pylist() == pytest.approx(theirs["caption_response"].to_pylist(), abs=2e-5)


def test_without_images_what_is_selected_stays_unknown(blind: Ledger) -> None:
    assert [result for result in check(blind.uri) if not result.ok] == []
    verdicts = blind.read("verdicts")["verdict"].to_pylist()
    assert (verdicts.count("unknown"), verdicts.count("not_selected")) == (5, 33)
    assert not blind.parts("matches")
    assert len(blind.read("evidence")) == 0


def test_the_perturbation_margin_of_what_is_selected_is_that_of_the_library(blind: Ledger) -> None:
    verdicts = blind.read("verdicts").to_pylist()
    controlled = {row["caption"]: row["perturbation_margin"] for row in verdicts if row["verdict"] != "not_selected"}
    words = content_words(blind.read(calibration.CONTROL_CAPTIONS)["caption"].to_pylist())
    model = audit.load_model(MODEL, resolution=16)
    expected = perturbation_margin(model, calibration.load_calibration(blind), list(controlled), words)
    assert list(controlled.values()) == pytest.approx(expected["perturbation_margin"].to_pylist(), abs=1e-3)
    assert blind.read("verdicts")["perturbation_margin"].null_count == 33


def test_a_reference_model_is_screened_beside_the_model_and_written_down(
    dataset: Path, audited: Callable[..., str], tmp_path: Path
) -> None:
    """Not the model itself: scores would be the same for all captions, which no calibration is made of."""
    base = Path(shutil.copytree(MODEL, tmp_path / "base"))
    weights_file = base / "unet/diffusion_pytorch_model.safetensors"
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor * (1 + 0.1 * torch.randn(tensor.shape, generator=draw))
        for name, tensor in load_file(weights_file).items()
    }
    save_file(tensors, weights_file)
    settings = (*FEW, "images=null", "captions.sample=4", f"reference_model={base}")
    settings += ("calibration.screen=null", "screen.resolution=16")
    detector = "attention_profile"
    other = Ledger(audited(dataset, *settings, f"screen.detectors=[{detector}]", out=str(tmp_path / "beside")))
    assert [result for result in check(other.uri) if not result.ok] == []
    screen = other.read("screen")
    texts = dict(zip(*(other.read("captions")[name].to_pylist() for name in ("caption_id", "caption")), strict=True))
    captions = [texts[id_] for id_ in screen["caption_id"].to_pylist()]
    alone = audit.screen(audit.load_model(base, resolution=16), captions, detectors=[detector])
    np.testing.assert_allclose(
        screen["reference_layer_entropy"].to_pylist(), alone["layer_entropy"].to_pylist(), atol=2e-5
    )
    assert not screen["layer_entropy"].equals(screen["reference_layer_entropy"])
    weights = manifest(other)["models"]
    assert weights["reference_model"]["unet"] != weights["model"]["unet"]
    assert weights["reference_model"]["text_encoder"] == weights["model"]["text_encoder"]
    assert any("reference" in item for item in calibration.load_calibration(other).context)


def test_the_default_caption_column_is_the_same_from_the_run_to_the_clean_copy(
    renamed: Path, divided: Ledger, tmp_path: Path
) -> None:
    assert manifest(divided)["resolved"]["captions"]["caption"] == "text"
    exclusions, clean = write_exclusions(divided.uri, out=str(tmp_path / "x.parquet")).path, tmp_path / "clean"
    counts = write_clean_copies(exclusions, [str(renamed.parent / "captions")], str(clean), lambda line: None)
    assert counts.rows_in == 40
    assert counts.rows_in - counts.dropped == counts.rows_out < 40
    assert pq.read_schema(clean / "00000.parquet").names == ["text", "key", "url"]
