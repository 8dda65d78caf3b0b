"""Judge: write one verdict per caption, the training images behind the verdicts, and the claims."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.images.decoding import decode
from audit.images.png import png
from audit.record.ledger import Ledger
from audit.verdicts.copies import LINKS, copied_images, links
from audit.verdicts.judging import ImageCounts, judge, negatives, with_p_not_reproduced
from audit.verdicts.regions import thumbnail
from audit.verdicts.thresholds import COLUMNS, Threshold
from pipelines.engine.context import Run
from pipelines.reading import images
from pipelines.steps import thresholds
from pipelines.steps.claims import state_claims
from pipelines.tables import training_images
from pipelines.tables.verdicts import IS_CONFIRMED


def run(run: Run) -> None:
    """Write `copied_images`, `verdicts` and `evidence`, and record the claims in the manifest."""
    ledger, config = run.ledger, run.config
    with run.stage("judge", "captions") as stage:
        matches = _all(ledger, "matches", schema.MATCHES)
        limits = thresholds.load(run) if config.images else _none()
        copied = copied_images(matches, config.confirm.embedders[0], limits)
        ledger.write("copied_images", "00000", copied)
        run.manifest.part("copied_images", "00000", len(copied))
        captions, scores = _selected(ledger)
        found = {
            "perturbations": _all(ledger, "perturbations", schema.PERTURBATIONS),
            "generations": _without_pixels(ledger),
            "matches": matches,
            "copied": copied,
            "links": _links(run, copied),
            "rows": _rows(ledger, ["caption_id", "image_id"], "caption_id", captions["caption_id"].combine_chunks()),
        }
        judged = partial(
            judge,
            embedder=config.confirm.embedders[0],
            thresholds=limits,
            images=_images(ledger, _is_paired(run)),
            failures=_failures(ledger),
            max_unreadable_fraction=config.confirm.max_unreadable_fraction,
        )
        selected = judged(captions=captions, scores=scores, **found)
        nothing = {name: table.slice(0, 0) for name, table in found.items()}
        _write(run, selected, partial(judged, **nothing), negatives(selected, scores))
        evidence = _evidence(run, selected, copied)
        ledger.write("evidence", "00000", evidence)
        run.manifest.part("evidence", "00000", len(evidence))
        run.manifest.data.claims = state_claims(ledger, run.manifest.data)
        total = sum(run.manifest.data.parts["verdicts"].values())
        stage.rows_in = stage.rows_out = total


def _write(run: Run, selected: pa.Table, judged: Callable[..., pa.Table], control_M: np.ndarray) -> None:
    """Write the verdicts of all captions part by part."""
    start = 0
    for name, scores in run.ledger.each("scores"):
        passed_over = pc.is_null(scores["selected_by"])
        captions = run.ledger.read("captions", name).filter(passed_over)
        stop = start + len(scores) - len(captions)
        table = pa.concat_tables([selected.slice(start, stop - start), judged(captions=captions, scores=scores)])
        table = table.take(pc.index_in(scores["caption_id"], value_set=table["caption_id"].combine_chunks()))
        run.ledger.write("verdicts", name, with_p_not_reproduced(table, scores, control_M))
        run.manifest.part("verdicts", name, len(table))
        start = stop


def _selected(ledger: Ledger) -> tuple[pa.Table, pa.Table]:
    """Return the selected captions and their scores, in order."""
    captions, scores = [schema.CAPTIONS.empty_table()], [schema.SCORES.empty_table()]
    for name, part in ledger.each("scores"):
        chosen = pc.is_valid(part["selected_by"])
        scores.append(part.filter(chosen))
        captions.append(ledger.read("captions", name).filter(chosen))
    return pa.concat_tables(captions), pa.concat_tables(scores)


def _rows(ledger: Ledger, columns: list[str], column: str, values: pa.Array) -> pa.Table:
    """Return the rows of the dataset in which a column has one of a few values."""
    return ledger.dataset("rows", schema.ROWS).to_table(columns, pc.field(column).isin(values))


def _none() -> dict[str, Threshold]:
    """Return thresholds without values, for runs without images, in which nothing counts as a copy."""
    return {kind: Threshold(None, "missing", kind=kind) for kind in COLUMNS}


def _links(run: Run, copied: pa.Table) -> pa.Table:
    if run.config.images is None:
        return LINKS.empty_table()
    orientation_of = _orientations(copied)
    found = training_images.pictures(
        run.config.images, training_images.places_of(run.ledger, list(orientation_of)), orientation_of.items()
    )
    return links(copied, {id_: thumbnail(picture) for (id_, _), picture in found})


def _orientations(copied: pa.Table) -> dict[str, str]:
    """Map each image_id to the orientation in which the image is most similar to a copy."""
    best = copied.sort_by([("similarity", "ascending")])
    return dict(zip(best["image_id"].to_pylist(), best["orientation"].to_pylist(), strict=True))


def _all(ledger: Ledger, table: str, layout: pa.Schema) -> pa.Table:
    return ledger.read(table) if ledger.parts(table) else layout.empty_table()


def _without_pixels(ledger: Ledger) -> pa.Table:
    columns = ["caption_id", "purpose", "seed", "status", "error"]
    if not ledger.parts("generations"):
        return schema.generations(()).empty_table().select(columns)
    return ledger.read("generations", columns=columns)


def _is_paired(run: Run) -> bool:
    """Return whether every row should have an image of its own."""
    pairs = run.manifest.data.accounting.pairs
    return pairs is not None and pairs.applies


def _images(ledger: Ledger, paired: bool = False) -> ImageCounts:
    errors = _all(ledger, "errors", schema.ERRORS)
    lost = errors.filter((pc.field("stage") == "embed") & pc.field("row").is_valid())
    ids = [images.image_id(*place) for place in zip(lost["file"].to_pylist(), lost["row"].to_pylist(), strict=True)]
    listed, files = training_images.listed(ledger), max(1, len(ledger.parts(training_images.IMAGES)))
    # The number of images in a damaged file is unknown, so the mean number of images per file is assumed.
    damaged = errors.filter((pc.field("stage") == "embed") & pc.field("row").is_null() & pc.field("file").is_valid())
    unseen = -(-listed * pc.count_distinct(damaged["file"]).as_py() // files)
    return ImageCounts(listed + unseen, len(ids) + unseen, pa.array(ids, pa.string()), paired)


def _failures(ledger: Ledger) -> pa.Table:
    """Return (caption_id, error) of captions that failed outside of generation."""
    beside = pa.array(["mitigate", "perturb"])
    of_the_audit = pc.field("caption_id").is_valid() & ~pc.field("stage").isin(beside)
    named = _all(ledger, "errors", schema.ERRORS).filter(of_the_audit)
    return named.select(["caption_id", "message"]).rename_columns(["caption_id", "error"])


def _evidence(run: Run, verdicts: pa.Table, copied: pa.Table) -> pa.Table:
    """Read the images of verbatim and partial verdicts from their source and return them as PNG, as compared."""
    if run.config.images is None:
        return schema.EVIDENCE.empty_table()
    places = training_images.places_of(run.ledger, verdicts.filter(IS_CONFIRMED)["image_id"].drop_null().to_pylist())
    url_of, orientation_of = _urls(run.ledger, places), _orientations(copied)
    found = []
    for id_, place in sorted(places.items()):
        [content] = images.read(place, run.config.images.column)
        way = orientation_of[id_]
        picture = decode(content, run.config.images.crop, way)
        [row] = place.to_pylist()
        known = {name: row[name] for name in ("image_id", "file", "row", "key")} | {
            "url": url_of.get(id_),
            "orientation": way,
        }
        found.append(known | {"sha256": hashlib.sha256(content or b"").hexdigest(), "image": png(np.asarray(picture))})
    return pa.Table.from_pylist(found, schema=schema.EVIDENCE)


def _urls(ledger: Ledger, ids: Iterable[str]) -> dict[str, str]:
    mine = _rows(ledger, ["image_id", "url"], "image_id", pa.array(list(ids), pa.string()))
    mine = mine.filter(pc.field("url").is_valid())
    return dict(zip(mine["image_id"].to_pylist(), mine["url"].to_pylist(), strict=True))
