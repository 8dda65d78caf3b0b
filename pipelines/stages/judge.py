"""Judge: one verdict a caption, the training images that verdicts rest on, and what may be claimed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.claims import claims
from audit.copying import LINKS, copied_images, links
from audit.errors import AuditError
from audit.judging import Images, judge
from audit.pictures import decode
from audit.png import png
from audit.regions import thumbnail
from audit.thresholds import PUBLISHED, Threshold
from pipelines.context import Run
from pipelines.ledger import Ledger
from pipelines.manifest import read
from pipelines.reading import images
from pipelines.stages import embed
from pipelines.stages.confirm import thresholds
from reports.purged import kept, note


def run(run: Run) -> None:
    ledger, config = run.ledger, run.config
    with run.manifest.stage("judge") as stage:
        captions, scores = ledger.read("captions"), ledger.read("scores")
        rows, matches = ledger.read("rows"), _all(ledger, "matches", schema.MATCHES)
        limits = thresholds(run) if config.images else _published()
        copied = copied_images(matches, config.confirm.embedders[0], limits)
        ledger.write("copied_images", "00000", copied)
        run.manifest.part("copied_images", "00000", len(copied))
        table = judge(
            captions=captions,
            scores=scores,
            controls=_all(ledger, "controls", schema.CONTROLS),
            generations=_without_pixels(ledger),
            matches=matches,
            copied=copied,
            links=_links(run, copied),
            rows=rows,
            embedder=config.confirm.embedders[0],
            thresholds=limits,
            images=_images(ledger),
            failures=_failures(ledger),
            max_unreadable=config.confirm.max_unreadable,
        )
        start = 0
        for name in ledger.parts("captions"):
            count = ledger.rows("captions", name)
            ledger.write("verdicts", name, table.slice(start, count))
            run.manifest.part("verdicts", name, count)
            start += count
        evidence = _evidence(run, table, rows)
        ledger.write("evidence", "00000", evidence)
        run.manifest.part("evidence", "00000", len(evidence))
        run.manifest.data["claims"] = claims(table, scores)
        stage |= {"rows_in": len(captions), "rows_out": len(table)}
        counts = pc.value_counts(table["verdict"].combine_chunks()).to_pylist()
        run.progress.say("judge: " + ", ".join(f"{item['counts']:,} {item['values']}" for item in counts))


def confirmed(verdicts: pa.Table) -> pa.Table:
    """The verbatim and partial ones."""
    return verdicts.filter(pc.field("verdict").isin(schema.CONFIRMED_WORDS))


def evidence_of(ledger: Ledger, image_ids: Sequence[str]) -> dict[str, bytes]:
    """By image_id, the training images of the table `evidence` (PNG). Raises AuditError if one is missing."""
    found: dict[str, bytes] = {}
    for _, part in ledger.each("evidence", ["image_id", "image"]):
        part = part.filter(pc.field("image_id").isin(image_ids) & pc.field("image").is_valid())
        found |= dict(zip(part["image_id"].to_pylist(), part["image"].to_pylist(), strict=True))
    missing = sorted(set(image_ids) - found.keys())
    if missing:
        manifest = read(ledger.uri)
        if kept(manifest) == "none":
            do = "An audit with another --out makes them again, from the model and the data set."
            raise AuditError(f"no training image is left to compare with: {note(manifest)}", where=ledger.uri, do=do)
        raise AuditError(
            f"{len(missing):,} training images of confirmed captions are not in the table evidence, {missing[0]} first",
            where=ledger.uri,
            do="`crossaudit run` with the run's audit.yaml reads them from `images` again.",
        )
    return found


def copies_of(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By caption_id, how the image of its verdict was copied (schema COPIED_IMAGES)."""
    image_of = {row["caption_id"]: row["image_id"] for row in rows}
    found = ledger.read("copied_images").filter(pc.field("caption_id").isin(list(image_of))).to_pylist()
    return {row["caption_id"]: row for row in found if row["image_id"] == image_of[row["caption_id"]]}


def _published() -> dict[str, Threshold]:
    """Without images nothing is compared, so it does not matter what with."""
    return {kind: Threshold(value, "published") for kind, value in PUBLISHED.items()}


def _links(run: Run, copied: pa.Table) -> pa.Table:
    if run.config.images is None:
        return LINKS.empty_table()
    ids = copied["image_id"].to_pylist()
    found = embed.pictures(run.config.images, embed.places_of(run.ledger, ids), ids)
    return links(copied, {id_: thumbnail(picture) for id_, picture in found})


def _all(ledger: Ledger, table: str, layout: pa.Schema) -> pa.Table:
    return ledger.read(table) if ledger.parts(table) else layout.empty_table()


def _without_pixels(ledger: Ledger) -> pa.Table:
    columns = ["caption_id", "purpose", "seed", "status", "error"]
    if not ledger.parts("generations"):
        return schema.generations(()).empty_table().select(columns)
    return ledger.read("generations", columns=columns)


def _images(ledger: Ledger) -> Images:
    errors = _all(ledger, "errors", schema.ERRORS)
    lost = errors.filter((pc.field("stage") == "embed") & pc.field("row").is_valid())
    ids = [images.image_id(*place) for place in zip(lost["file"].to_pylist(), lost["row"].to_pylist(), strict=True)]
    return Images(embed.listed(ledger), len(ids), pa.array(ids, pa.string()))


def _failures(ledger: Ledger) -> pa.Table:
    """(caption_id, error) of what failed outside the generations."""
    beside = pa.array(["mitigate", "control"])
    of_the_audit = pc.field("caption_id").is_valid() & ~pc.field("stage").isin(beside)
    named = _all(ledger, "errors", schema.ERRORS).filter(of_the_audit)
    return named.select(["caption_id", "message"]).rename_columns(["caption_id", "error"])


def _evidence(run: Run, table: pa.Table, rows: pa.Table) -> pa.Table:
    """The images of verbatim and partial verdicts, read back from their source, as PNG: as they were compared."""
    if run.config.images is None:
        return schema.EVIDENCE.empty_table()
    places = embed.places_of(run.ledger, confirmed(table)["image_id"].drop_null().to_pylist())
    url_of = _urls(rows, places)
    found = []
    for id_, place in sorted(places.items()):
        [content] = images.read(place, run.config.images.column)
        picture = decode(content, run.config.images.crop)
        [row] = place.to_pylist()
        known = {name: row[name] for name in ("image_id", "file", "row", "key")} | {"url": url_of.get(id_)}
        found.append(known | {"sha256": hashlib.sha256(content or b"").hexdigest(), "image": png(np.asarray(picture))})
    return pa.Table.from_pylist(found, schema=schema.EVIDENCE)


def _urls(rows: pa.Table, ids: Iterable[str]) -> dict[str, str]:
    mine = rows.filter(pc.field("image_id").isin(pa.array(list(ids), pa.string())) & pc.field("url").is_valid())
    return dict(zip(mine["image_id"].to_pylist(), mine["url"].to_pylist(), strict=True))
