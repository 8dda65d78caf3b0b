"""What a row that cannot be worked leaves behind fits the tables of its stage, and says what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from audit import schema
from audit.mitigation.methods.rescale import Rescale
from audit.mitigation.serving import Setting
from audit.record.ledger import Ledger, Shard, Tables, concat
from pipelines.reading.files import File
from pipelines.reading.images import INDEX, image_id
from pipelines.reading.sampling import Sample
from pipelines.reading.slices import Slice
from pipelines.stages import calibrate, confirm, embed, ingest, judge, mitigate, perturb, screen
from pipelines.steps import generation, image_list, input_rows
from pipelines.tables import calibration, mitigation, training_images

DEAD = ("worker_died", "the process ended")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path / "run"))
    captions = [{"caption_id": name, "caption": f"caption {name}", "row_count": 1} for name in "abc"]
    ledger.write("captions", "00000", pa.Table.from_pylist(captions, schema=schema.CAPTIONS))
    prompts = pa.Table.from_pylist(captions).select(["caption_id", "caption"])
    ledger.write(generation.PROMPTS, "discover", prompts)
    ledger.write(calibration.CONTROL_CAPTIONS, "00000", prompts.append_column("caption_group", prompts["caption_id"]))
    places = [{"image_id": image_id("0.tar", row), "file": "0.tar", "row": row, "key": str(row)} for row in range(3)]
    ledger.write(training_images.IMAGES, "00000", pa.Table.from_pylist(places, schema=INDEX))
    return ledger


def only(tables: Tables) -> dict[str, Any]:
    [error] = tables["errors"].to_pylist()
    assert (error["kind"], error["message"]) == DEAD
    return error


def beside(layout: pa.Schema, left: pa.Table, known: Sequence[str]) -> pa.Table:
    """The left row after a sound one of that layout: they must join."""
    sound = pa.table([pa.nulls(1, field.type) for field in layout], schema=layout)
    joined = concat([{"t": sound}, {"t": left}])["t"]
    assert joined.schema.equals(layout)
    return joined.slice(1).select(known)


def test_of_a_screened_caption(ledger: Ledger) -> None:
    left = screen._on_lost_row(ledger, Shard("0", "00000", 1, 2), *DEAD, seeds=[0, 1])
    assert only(left)["caption_id"] == "b"
    rows = beside(schema.screen(["caption_response"]), left["screen"], ["caption_id", "seed", "status", "error"])
    error = {"caption_id": "b", "status": "error", "error": DEAD[1]}
    assert rows.to_pylist() == [error | {"seed": 0}, error | {"seed": 1}]


def test_of_a_controlled_caption(ledger: Ledger) -> None:
    ledger.write(perturb.PERTURBED, "00000", ledger.read(generation.PROMPTS, "discover"))
    left = perturb._on_lost_row(ledger, Shard("0", perturb.PERTURBED, 1, 2), *DEAD)
    assert (only(left)["stage"], only(left)["caption_id"]) == ("perturb", "b")
    [row] = beside(schema.PERTURBATIONS, left["perturbations"], ["caption_id", "perturbation_margin"]).to_pylist()
    assert row == {"caption_id": "b", "perturbation_margin": None}


def test_of_a_control_caption(ledger: Ledger) -> None:
    left = calibrate._on_lost_row(ledger, Shard("0", calibration.CONTROL_CAPTIONS, 2, 3), *DEAD, seeds=[0])
    assert only(left)["stage"] == "calibrate"
    [row] = beside(
        schema.control_screen(["caption_response"]), left["control_screen"], ["caption", "status"]
    ).to_pylist()
    assert row == {"caption": "caption c", "status": "error"}


def test_of_a_generated_caption(ledger: Ledger) -> None:
    left = generation._on_lost_row(ledger, Shard("discover-0", "discover", 0, 1), *DEAD, seeds=[5])
    assert only(left)["caption_id"] == "a"
    known = ["caption_id", "purpose", "seed", "image", "status"]
    [row] = beside(schema.generations(["entropy_steps"]), left["generations"], known).to_pylist()
    assert row == {"caption_id": "a", "purpose": "discover", "seed": 5, "image": None, "status": "error"}


def test_of_an_image(ledger: Ledger) -> None:
    left = embed._on_lost_row(ledger, Shard("0", "00000", 2, 3), *DEAD, embedders=["sscd"])
    error = only(left)
    assert (error["stage"], error["file"], error["row"]) == ("embed", "0.tar", 2)
    layout = schema.embeddings(4)
    assert len(beside(layout, left["embeddings_sscd"], layout.names)) == 0


def test_of_a_generation_that_is_looked_up(ledger: Ledger) -> None:
    row = {"caption_id": "a", "purpose": "discover", "seed": 1, "status": "ok", "image": b"no image"}
    table = pa.Table.from_pylist([row], schema=schema.generations(()))
    ledger.write("generations", "discover-00000", table)
    [shard] = confirm._shards(ledger, "discover", 10)
    left = confirm._on_lost_row(ledger, shard, *DEAD)
    assert only(left)["caption_id"] == "a"
    assert left["matches"].schema.equals(schema.MATCHES)


def test_of_a_row_of_captions_if_it_is_in_the_sample(ledger: Ledger) -> None:
    part = Slice(File("/x/0.csv", "0.csv", 9), 10, 5, (0, 9))
    for size, lost in ((100, 1), (0, 0)):
        source = input_rows.Source((input_rows.Piece(part, 20, 70, "none", ()),), 1, Sample(size, 100, 0))
        left = input_rows.on_lost_row(ledger, Shard("0", source, 22, 23), *DEAD)
        assert len(left["errors"]) == lost
        assert left["rows"].schema.equals(schema.ROWS)
        assert left[input_rows.TEXTS].schema.equals(input_rows._LAYOUT)
    source = input_rows.Source((input_rows.Piece(part, 20, 70, "none", ()),), 1, None)
    error = only(input_rows.on_lost_row(ledger, Shard("0", source, 22, 23), *DEAD))
    assert (error["stage"], error["file"], error["row"], error["rows"]) == ("ingest", "0.csv", 12, 1)


def test_of_a_file_of_captions(ledger: Ledger) -> None:
    files = [File(f"/x/{number}.csv", f"{number}.csv", 9) for number in range(3)]
    left = ingest._on_lost_slice(ledger, Shard("0", (64, files), 1, 2), *DEAD)
    [error] = left["errors"].to_pylist()
    assert (error["stage"], error["file"], error["rows"], error["message"]) == ("ingest", "1.csv", None, DEAD[1])


def test_of_a_file_of_images(ledger: Ledger) -> None:
    left = image_list._on_lost_file(ledger, Shard("0", File("/x/0.tar", "0.tar", 9), 0, 1), *DEAD)
    [error] = left["errors"].to_pylist()
    assert (error["stage"], error["file"], error["kind"]) == ("embed", "0.tar", "unreadable_file")
    assert left[training_images.IMAGES].schema.equals(INDEX)


def test_a_damaged_file_of_images_counts_as_many_as_the_mean_file(ledger: Ledger) -> None:
    """Its images were never listed: that nothing like them was found is no negative."""
    for number in (1, 2):
        left = image_list._on_lost_file(ledger, Shard("0", File(f"/x/{number}.tar", f"{number}.tar", 9), 0, 1), *DEAD)
        ledger.commit(f"{number:05d}", left)
    found = judge._images(ledger)
    assert (found.listed, found.unreadable) == (3 + 2, 2)


def test_of_a_mitigated_caption_which_is_no_failure_of_its_audit(ledger: Ledger) -> None:
    ledger.write(mitigation.CAPTIONS, "ordinary", ledger.read("captions").select(["caption_id"]))
    shard = Shard("ordinary-x", ("ordinary", Setting(Rescale(2.0, "eos"))), 1, 2)
    left = mitigate._on_lost_row(ledger, shard, *DEAD)
    [error] = left["errors"].to_pylist()
    assert (error["stage"], error["caption_id"], error["kind"]) == ("mitigate", "b", DEAD[0])
    assert error["message"] == f"rescale(bos_scale=2.0, keep=eos): {DEAD[1]}"
    assert len(beside(schema.MITIGATION, left["mitigation"], ["caption_id"])) == 0
    ledger.commit(shard.name, left)
    assert len(judge._failures(ledger)) == 0
