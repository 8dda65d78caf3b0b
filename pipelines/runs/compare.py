"""Compare two finished runs of the same captions and seeds, caption by caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.duplicates.components import joined
from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.statistics.paired import paired_test
from audit.verdicts.copies import best_copies, copied_images
from audit.verdicts.thresholds import Threshold, threshold_of_json
from pipelines.configuration.config import Config
from pipelines.runs.finished_run import finished, whole_table
from pipelines.tables import embeddings
from reports.comparison import PAIRS, Comparison

# Verdicts that say whether the model copies.
_COUNTED = (*schema.CONFIRMED_WORDS, "unconfirmed")


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    ledger: Ledger
    manifest: RunManifest
    config: Config

    @property
    def embedder(self) -> str:
        """The embedder that decides."""
        return self.config.confirm.embedders[0]


def compare(first: str, second: str) -> Comparison:
    """Compare two finished runs. Both are judged by the same thresholds: for each kind, the higher of the two.

    Only captions that both runs generated with every seed, and that both could judge, count as pairs.

    Args:
        first: The path or URI of the run to compare with.
        second: The path or URI of the run in question.

    Returns:
        The pairs and the tests.

    Raises:
        AuditError: A run is not finished, or the two differ in captions, seeds or another part of the protocol. The
            message lists all that differs.
    """
    sides = [_open(uri) for uri in (first, second)]
    problems = [*_protocol(*sides), *_same_rows(*sides)]
    if problems:
        raise AuditError(
            f"the runs cannot be compared: {'; '.join(problems)}",
            where=f"{sides[0].ledger.uri} and {sides[1].ledger.uri}",
            hint="Audit again with the same captions, images, seeds, steps, guidance scale and embedder.",
        )
    limits = _common_thresholds(*sides)
    captions, left_out = _pairs(sides, limits)
    copied = [
        np.asarray(pc.is_in(captions["change"], value_set=pa.array([word, "stayed"]))) for word in ("went", "appeared")
    ]
    test = paired_test(copied[0], copied[1], captions["cluster"].to_numpy())
    generate, confirm = sides[0].config.generate, sides[0].config.confirm
    return Comparison(
        runs=(first, second),
        captions=len(captions) + sum(left_out.values()),
        pairs=captions,
        left_out=left_out,
        thresholds=_thresholds(sides, limits),
        differences=list(_differences(*sides)),
        protocol={
            "seeds": generate.seeds,
            "steps": generate.steps,
            "guidance_scale": generate.guidance_scale,
            "embedder": confirm.embedders[0],
        },
        test=asdict(test) | {"worse": test.worse},
    )


def _open(uri: str) -> Side:
    ledger, manifest, config = finished(uri)
    if config.images is None:
        what = "the run compared no training images, so it confirmed nothing"
        raise AuditError(what, where=ledger.uri, hint="Set `images` in its audit.yaml, and audit again.")
    return Side(ledger, manifest.data, config)


def _protocol(first: Side, second: Side) -> Iterator[str]:
    """Say what differs in the protocol, so that a difference in outcomes would not be one between the models."""
    ours, theirs = _settings(first), _settings(second)
    for name, value in ours.items():
        if value != theirs[name]:
            yield f"{name}: {value} and {theirs[name]}"


def _settings(side: Side) -> dict[str, Any]:
    """Return what must be the same in both runs, by the name that a message gives it."""
    config, embedder = side.config, side.embedder
    assert config.images is not None
    return {
        "generate.seeds": config.generate.seeds,
        "generate.steps": config.generate.steps,
        "generate.guidance_scale": config.generate.guidance_scale,
        "bright_ending in generate.detectors": "bright_ending" in config.generate.detectors,  # it changes regions
        "confirm.embedders[0]": embedder,
        "its weights": dict(sorted(side.manifest.models.get(embedder, {}).items())),
        "its background": config.embedder(embedder).background,
        "images.crop": config.images.crop,
        "images.exif": config.images.exif,
        "index.type": config.index.type,
    }


def _same_rows(first: Side, second: Side) -> Iterator[str]:
    """Say how many captions and training images only one of the runs has."""
    for what, table, columns in (
        ("captions", "captions", ["caption_id"]),
        ("training images", embeddings.table(first.embedder), ["image_id", "sha256"]),
    ):
        if first.embedder != second.embedder:
            continue
        one, other = (
            pa.concat_tables(part for _, part in side.ledger.each(table, columns)).combine_chunks()
            for side in (first, second)
        )
        only = [len(a.join(b, columns, join_type="left anti")) for a, b in ((one, other), (other, one))]
        if any(only):
            yield f"{what}: {only[0]:,} only in the first run, {only[1]:,} only in the second"


def _differences(first: Side, second: Side) -> Iterator[tuple[str, str, str]]:
    """Yield what may differ between the runs, and does: the models and how they were loaded."""

    def told(side: Side) -> dict[str, str]:
        found = {"model": side.config.model.path, "LoRA": side.config.lora or "none"}
        found |= {f"model, {part}": digest for part, digest in side.manifest.models.get("model", {}).items()}
        if checkpoint := side.manifest.checkpoints.get("model"):
            found |= {f"scheduler, {name}": str(value) for name, value in checkpoint.scheduler.items()}
            found |= {f"sampling, {name}": str(value) for name, value in checkpoint.sampling.items()}
        return found

    one, other = told(first), told(second)
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield name, one.get(name, "none"), other.get(name, "none")


def _own_thresholds(side: Side) -> dict[str, Threshold]:
    found = side.manifest.thresholds[side.embedder]
    return {kind: threshold_of_json(limit.model_dump()) for kind, limit in found.items()}


def _common_thresholds(first: Side, second: Side) -> dict[str, Threshold]:
    """Return, for each kind, the higher threshold of the two runs. None if one run has none: nothing counts then."""
    ours, theirs = _own_thresholds(first), _own_thresholds(second)
    common = {}
    for kind, limit in ours.items():
        values, floors = ((getattr(limit, name), getattr(theirs[kind], name)) for name in ("value", "floor"))
        known = [floor for floor in floors if floor is not None]
        value = None if None in values else max(values)
        common[kind] = replace(limit, value=value, floor=max(known, default=None))
    return common


def _thresholds(sides: list[Side], limits: Mapping[str, Threshold]) -> dict[str, dict[str, float | None]]:
    first, second = (_own_thresholds(side) for side in sides)
    return {
        kind: {"used": limit.value, "first": first[kind].value, "second": second[kind].value}
        for kind, limit in limits.items()
    }


def _pairs(sides: list[Side], limits: Mapping[str, Threshold]) -> tuple[pa.Table, dict[str, int]]:
    """Return the pairs (schema PAIRS), and the number of the other captions by the reason why they are none."""
    columns = ["caption_id", "caption", "row_count", "verdict", "family"]
    verdicts = [whole_table(side.ledger, "verdicts", columns) for side in sides]
    ids = verdicts[0]["caption_id"].combine_chunks()
    second = verdicts[1].take(pc.index_in(ids, value_set=verdicts[1]["caption_id"].combine_chunks()))
    groups = whole_table(sides[0].ledger, "caption_groups", ["caption_id", "caption_group"])
    group = groups.take(pc.index_in(ids, value_set=groups["caption_id"].combine_chunks()))["caption_group"]
    families = (verdicts[0]["family"], second["family"])
    cluster_N = joined([column.combine_chunks() for column in (group, *families)])

    made = [_seeds(side, ids) for side in sides]
    judged = [np.asarray(pc.is_in(table["verdict"], value_set=pa.array(_COUNTED))) for table in (verdicts[0], second)]
    tried, complete = ([found[at] for found in made] for at in (0, 1))
    usable = complete[0] & complete[1] & judged[0] & judged[1]
    left_out = {
        "generated by neither run": int((~tried[0] & ~tried[1]).sum()),
        "generated by the first run only": int((tried[0] & ~tried[1]).sum()),
        "generated by the second run only": int((~tried[0] & tried[1]).sum()),
        "without a verdict or a seed in one of the runs": int((tried[0] & tried[1] & ~usable).sum()),
    }
    base = verdicts[0].select(["caption_id", "caption", "row_count"]).append_column("cluster", pa.array(cluster_N))
    return _changes(base.filter(pa.array(usable)), [_copies(side, limits) for side in sides], sides), left_out


def _seeds(side: Side, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Tell which captions a run tried to generate, and which it generated with every seed: [N] bool each."""
    made = whole_table(side.ledger, "generations", ["caption_id", "purpose", "seed", "status"])
    made = made.filter(pc.field("purpose") == "discover")
    good = made.filter(pc.field("status") == "ok").group_by("caption_id").aggregate([("seed", "count_distinct")])
    whole = good.filter(pc.field("seed_count_distinct") == len(side.config.generate.seeds))
    found = [pc.is_in(ids, value_set=table["caption_id"].combine_chunks()) for table in (made, whole)]
    return np.asarray(found[0]), np.asarray(found[1])


def _copies(side: Side, limits: Mapping[str, Threshold]) -> pa.Table:
    return best_copies(copied_images(whole_table(side.ledger, "matches"), side.embedder, limits))


def _changes(captions: pa.Table, best: list[pa.Table], sides: list[Side]) -> pa.Table:
    """Add to each caption what changed, and the generations and the image that show it."""
    ids = captions["caption_id"].combine_chunks()
    a, b = (table.take(pc.index_in(ids, value_set=table["caption_id"].combine_chunks())) for table in best)
    in_a, in_b = (pc.is_valid(table["image_id"]) for table in (a, b))
    usual = pa.scalar(sides[0].config.generate.seeds[0], pa.int64())

    def shown(name: str) -> pa.ChunkedArray:
        return pc.coalesce(b[name], a[name])

    columns = {name: captions[name] for name in captions.column_names} | {
        "change": pc.if_else(
            pc.and_(in_a, in_b), "stayed", pc.if_else(in_b, "appeared", pc.if_else(in_a, "went", "neither"))
        ),
        "image_id": shown("image_id"),
        "seed_a": pc.coalesce(a["seed"], b["seed"], usual),
        "seed_b": pc.coalesce(b["seed"], a["seed"], usual),
        "similarity": pc.if_else(
            pc.equal(shown("copy_type"), "partial"),
            pc.coalesce(shown("region_similarity"), shown("similarity")),
            shown("similarity"),
        ),
        "copy_type": shown("copy_type"),
    }
    return pa.table({name: columns[name] for name in PAIRS.names}).cast(PAIRS)
