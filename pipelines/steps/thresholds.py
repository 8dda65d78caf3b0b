"""Set the similarities from which images count as copies, from control captions and floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.embedding.floors import KINDS, Floor, floors_of
from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest_entries import ConfirmErrorEntry, ThresholdEntry
from audit.verdicts.confirm_error import ConfirmError, measured, setting_half
from audit.verdicts.control_captions import Control, Tail, alike, examine, plain, separate
from audit.verdicts.thresholds import COLUMNS, Threshold, choose_threshold, control_maxima, threshold_of_json
from pipelines.configuration.config import Config
from pipelines.engine.context import Run
from pipelines.reading.local_copies import fetched
from pipelines.tables import selection

# Maximum number of characters of a control caption in a message.
SHOWN = 100


def floors(config: Config, embedder: str) -> dict[str, Floor]:
    """Return the floors of an embedder by kind: the configured ones, else those known for its weights."""
    given = config.embedder(embedder)
    configured = {kind: getattr(given, f"min_similarity_{kind}") for kind in KINDS}
    known: dict[str, Floor] = {}
    if None in configured.values():
        weights = given.weights if getattr(given, "model", None) else fetched(given.weights)
        known = floors_of(weights, getattr(given, "model", None))
    said = {kind: Floor(value, "configured") for kind, value in configured.items() if value is not None}
    return known | said


def check(config: Config) -> None:
    """Raise AuditError if a floor of the deciding embedder is unknown. Reads at most the header of a file."""
    if config.images is None:
        return
    name = config.confirm.embedders[0]
    missing = [kind for kind in KINDS if kind not in floors(config, name)]
    if missing:
        keys = " and ".join(f"confirm.{name}.min_similarity_{kind}" for kind in missing)
        raise AuditError(
            f"it is not known from which similarity on two pictures look like copies to {name}: no {keys}",
            where=str(config.embedder(name).weights),
            hint=f"Set {keys} (a similarity that different pictures of your kind do not reach), or put sscd first in "
            "confirm.embedders.",
        )


def load(run: Run) -> dict[str, Threshold]:
    """Read the thresholds of the deciding embedder from the manifest, by kind."""
    found = run.manifest.data.thresholds[run.config.confirm.embedders[0]]
    return {kind: threshold_of_json(limit.model_dump()) for kind, limit in found.items()}


class Chosen(NamedTuple):
    """Hold the thresholds by embedder and kind, their warnings, and the measured error of the confirm step."""

    thresholds: dict[str, dict[str, Threshold]]
    notes: list[str]
    error: ConfirmError


def choose(run: Run, matches: pa.Table) -> dict[str, Threshold]:
    """Choose the thresholds of every embedder, write them into the manifest and print their warnings.

    Returns:
        The thresholds of the deciding embedder, by kind. Only this embedder compares regions.
    """
    data = run.manifest.data
    assert data.seeds.sample is not None  # the stage select has set it
    found = chosen(run.ledger, run.config, matches, data.seeds.sample)
    data.thresholds = {
        name: {kind: ThresholdEntry.model_validate(asdict(limit)) for kind, limit in kinds.items()}
        for name, kinds in found.thresholds.items()
    }
    data.confirm_error = ConfirmErrorEntry.model_validate(asdict(found.error))
    for note in found.notes:
        run.progress.say(f"confirm: warning: {note}")
    return found.thresholds[run.config.confirm.embedders[0]]


def chosen(ledger: Ledger, config: Config, matches: pa.Table, seed: int) -> Chosen:
    """Compute the thresholds from one half of the control captions, and their error from the other half.

    Args:
        ledger: The run's tables.
        config: The run's configuration.
        matches: The matches of all generations of the purposes `control` and `discover` (schema MATCHES).
        seed: The seed of the split.
    """
    deciding = config.confirm.embedders[0]
    if config.select.until is not None:
        # Where sampling stops must not change the thresholds.
        sampled = selection.selected(ledger, "sample")["caption_id"].combine_chunks()
        matches = matches.filter(~pc.field("caption_id").isin(sampled))
    setting, measuring = _halves(ledger, matches, seed)
    found: dict[str, dict[str, Threshold]] = {
        name: _of_embedder(ledger, config, setting, name, KINDS if name == deciding else KINDS[:1])
        for name in config.confirm.embedders
    }
    separated = _separated(ledger, config, measuring, deciding, KINDS)
    reproducing = frozenset(control.caption_id for excluded, _, _ in separated.values() for control in excluded)
    error = measured(measuring, deciding, found[deciding], len(config.generate.seeds), reproducing)
    notes = [note for limit in found[deciding].values() for note in limit.notes]
    return Chosen(found, list(dict.fromkeys(notes)), error)


def _halves(ledger: Ledger, matches: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Split the matches of control captions into those that set thresholds and those that measure; both get the rest.

    The matches of audited captions say which images the model copies from their own captions.
    """
    controls = ledger.read("control_screen", columns=["caption_id", "caption_group"])
    generated = matches.filter(pc.field("purpose") == "control")["caption_id"].unique()
    controls = controls.filter(pc.field("caption_id").isin(generated)).group_by(controls.column_names).aggregate([])
    setting = pa.array(sorted(setting_half(controls, seed)), pa.string())
    control, sets = pc.equal(matches["purpose"], "control"), pc.is_in(matches["caption_id"], value_set=setting)
    return matches.filter(pc.or_(pc.invert(control), sets)), matches.filter(pc.invert(pc.and_(control, sets)))


Separated = tuple[list[Control], list[Control], Tail | None]


def _separated(
    ledger: Ledger, config: Config, matches: pa.Table, name: str, kinds: Sequence[str]
) -> dict[str, Separated]:
    """Separate, by kind, the control captions that really reproduce an image from the others."""
    known = floors(config, name)
    return {
        kind: separate(control_maxima(matches, name, kind), _examined(ledger, matches, name, kind, known.get(kind)))
        for kind in kinds
    }


def _of_embedder(
    ledger: Ledger, config: Config, matches: pa.Table, name: str, kinds: Sequence[str]
) -> dict[str, Threshold]:
    known, rate = floors(config, name), config.confirm.control_rate
    normalised = config.embedder(name).background is not None
    found = _separated(ledger, config, matches, name, kinds)
    # A control caption that really reproduces an image must not set the threshold of regions either.
    excluded = {control.caption_id for out, _, _ in found.values() for control in out}
    limits = {}
    for kind in kinds:
        out, kept, tail = found[kind]
        maxima = control_maxima(matches, name, kind)
        left = maxima.filter(~pc.field("caption_id").isin(pa.array(sorted(excluded), pa.string())))
        maxima_M = left["similarity"].to_numpy(zero_copy_only=False).astype(np.float64)
        limit = choose_threshold(kind, maxima_M, rate, known.get(kind), normalised=normalised and kind == "verbatim")
        limit = replace(limit, embedder=name, controls=len(maxima), excluded=tuple(out), tail=tail)
        limits[kind] = replace(limit, notes=tuple(_notes(limit, kept, rate)))
    return limits


def _examined(ledger: Ledger, matches: pa.Table, embedder: str, kind: str, floor: Floor | None) -> list[Control]:
    """Return the control captions that look like copies, with any further evidence that they are."""
    if floor is None:
        return []
    column = COLUMNS[kind]
    matches_of = alike(matches, embedder, column, floor.value)
    if not matches_of:
        return []
    images = pa.array(sorted({rows[0]["image_id"] for rows in matches_of.values()}), pa.string())
    rows = ledger.dataset("rows", schema.ROWS).to_table(["caption_id", "image_id"], pc.field("image_id").isin(images))
    ids = pa.array(sorted(set(rows["caption_id"].to_pylist())), pa.string())
    texts = ledger.dataset("captions", schema.CAPTIONS).to_table(
        ["caption_id", "caption"], pc.field("caption_id").isin(ids)
    )
    text_of = dict(zip(texts["caption_id"].to_pylist(), texts["caption"].to_pylist(), strict=True))
    own = {(row["caption_id"], row["image_id"]) for row in rows.to_pylist()}
    trained = pa.table(
        {
            "image_id": pa.array([image for _, image in sorted(own)], pa.string()),
            "caption": pa.array([text_of[id_] for id_, _ in sorted(own)], pa.string()),
        }
    )
    made = matches.filter((pc.field("purpose") == "discover") & (pc.field("embedder") == embedder))
    made = made.filter(pa.array(np.nan_to_num(plain(made, column), nan=-np.inf) >= floor.value))
    pairs = set(zip(made["caption_id"].to_pylist(), made["image_id"].to_pylist(), strict=True))
    controls = ledger.read("control_screen", columns=["caption_id", "caption"])
    caption_of = dict(zip(controls["caption_id"].to_pylist(), controls["caption"].to_pylist(), strict=True))
    reproduced = frozenset(image for _, image in own & pairs)
    return examine(matches_of, column, floor.value, caption_of, trained, reproduced)


def _notes(limit: Threshold, kept: Sequence[Control], rate: float) -> list[str]:
    name = {"verbatim": "verbatim", "region": "partial"}[limit.kind]
    notes = []
    if limit.excluded:
        first = limit.excluded[0]
        notes.append(
            f"{len(limit.excluded)} of {limit.controls} control captions really reproduce a training image and are not "
            f"used for the threshold of `{name}`: {_some(limit.excluded)}; {'; '.join(first.reasons)}. Check that the "
            "model was not trained on them (manifest.json lists them all)."
        )
    if limit.value is None:
        notes.append(
            f"No control caption has the similarity that decides `{name}`. What pictures reach by chance is therefore "
            f"unknown, there is no threshold, and this similarity makes no caption `{name}`. Generate each caption "
            f"with two or more seeds, or set confirm.{limit.embedder}.min_similarity_{limit.kind}."
        )
    setting = [control for control in kept if limit.value is not None and control.similarity >= limit.value]
    if setting:
        notes.append(
            f"The threshold of `{name}`, {limit.value:.3f}, is set by {_some(setting)}, far above the other control "
            f"captions (expected from them: {_expected(limit.tail, rate)}). Only the similarity suggests that it "
            "reproduces an image, so it is kept. Review it: less similar images count only as near misses."
        )
    if limit.controls and limit.used < 1 / rate - 1 - 1e-9:
        notes.append(
            f"The threshold of `{name}` is based on {limit.used} control captions, too few for a rate of {rate:g}: "
            f"its actual rate is {1 / (limit.used + 1):.3g}."
        )
    elif not limit.controls:
        notes.append(f"No control caption was generated, so the threshold of `{name}` is the floor.")
    return notes


def _some(controls: Sequence[Control]) -> str:
    first = f"the control caption {controls[0].caption[:SHOWN]!r} ({controls[0].similarity:.3f})"
    return first if len(controls) == 1 else f"{first} and {len(controls) - 1} more"


def _expected(tail: Tail | None, rate: float) -> str:
    return "nothing" if tail is None else f"{tail.quantile(rate):.3f} at a rate of {rate:g}"
