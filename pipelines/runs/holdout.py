"""Set control captions aside before a training, and choose canaries whose repetition is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit import schema
from audit.duplicates.captions import band_keys, caption_groups, caption_id, near_identical
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from audit.statistics.intervals import clopper_pearson
from pipelines.configuration.settings import absolute
from pipelines.engine.manifest import read
from pipelines.reading.dataset import Dataset, sample
from pipelines.reading.slices import Slice

# Shapes: C chosen captions, N captions of a slice, B bands, P pairs.

DOSES = (1, 5, 20, 100)
CONTROLS, CANARIES = "control-captions.parquet", "canaries.parquet"
EXCLUSIONS, TRAINING = "exclusions.parquet", "training-list.parquet"
_PLACE = [("file", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("url", pa.string())]
_CONTROLS = pa.schema([("caption", pa.string()), *_PLACE])
_CANARIES = pa.schema([("caption", pa.string()), ("caption_id", pa.string()), ("dose", pa.int64()), *_PLACE])
_TRAINING = pa.schema([("caption", pa.string()), *_PLACE, ("repeats", pa.int64())])
_REASON = "held out as a control caption, or near-identical to a held-out caption or a canary"


@dataclass(frozen=True)
class HeldOut:
    """What was set aside.

    Attributes:
        controls: Number of control captions.
        canaries: Number of canaries.
        dropped: Number of rows that must not be trained on.
        rows: Number of rows of the training list.
    """

    controls: int
    canaries: int
    dropped: int
    rows: int


def hold_out(dataset: Dataset, folder: Path, controls: int, canaries_per_dose: int, seed: int) -> HeldOut:
    """Write the control captions, the canaries, the training list and the exclusions into a folder.

    Captions are drawn at random. A row whose caption is near-identical to a chosen one leaves the training list too;
    otherwise a control caption would be trained on, and a canary more often than its dose says.

    Args:
        dataset: The dataset.
        folder: A folder that does not exist yet, or is empty.
        controls: Number of control captions.
        canaries_per_dose: Number of canaries for each of DOSES.
        seed: Seed of the draw.

    Raises:
        UsageError: The folder is not empty.
        AuditError: The dataset has too few different captions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError("is not empty", where=str(folder), hint="Choose another --out.")
    chosen = _drawn(dataset, controls + canaries_per_dose * len(DOSES), seed)
    dose_of = {text: DOSES[at % len(DOSES)] for at, text in enumerate(chosen[controls:])}
    wanted, found, dropped = set(chosen), dict[str, dict](), list[dict]()
    rows = 0
    with pq.ParquetWriter(folder / TRAINING, _TRAINING, compression="zstd") as training:
        for part, table in _with_chosen(dataset, chosen):
            repeats = np.where(table["near"].to_numpy(), 0, 1)
            for at in np.flatnonzero(repeats == 0).tolist():
                row = table.slice(at, 1).to_pylist()[0]
                first = row["caption"] in wanted and row["caption"] not in found
                if first:
                    found[row["caption"]] = row | {"file": part.file.name}
                if first and row["caption"] in dose_of:
                    repeats[at] = dose_of[row["caption"]]
                else:
                    dropped.append(row | {"file": part.file.name})
            listed = table.append_column("repeats", pa.array(repeats)).filter(pa.array(repeats > 0))
            listed = listed.append_column("file", pa.repeat(part.file.name, len(listed)))
            training.write_table(listed.select(_TRAINING.names).cast(_TRAINING))
            rows += int(repeats.sum())
    _write(folder, found, set(chosen[:controls]), dose_of)
    if not any(part.file.name.endswith(".tar") for part in dataset.slices):
        _write_exclusions(folder / EXCLUSIONS, dataset, dropped)
    return HeldOut(controls, len(dose_of), len(dropped), rows)


def _drawn(dataset: Dataset, count: int, seed: int) -> list[str]:
    """Draw distinct captions, no two of them near-identical."""
    ordered = sample(dataset, count + count // 2 + 100, seed)  # a few more, as near-identical ones are left out
    first_of = dict(zip(reversed(caption_groups(ordered)), reversed(ordered), strict=True))
    firsts = set(first_of.values())
    chosen = [text for text in ordered if text in firsts][:count]
    if len(chosen) < count:
        what = f"{count:,} captions are to be set aside, but the dataset has only {len(chosen):,} different ones"
        raise AuditError(what, hint="Ask for fewer with --count and --canaries.")
    return chosen


def _with_chosen(dataset: Dataset, chosen: Sequence[str]) -> Iterator[tuple[Slice, pa.Table]]:
    """Yield each slice with a column `near`: whether the caption is near-identical to a chosen one."""
    keys_CB = band_keys(chosen)
    key_M, chosen_M = keys_CB.ravel(), np.repeat(np.arange(len(chosen)), keys_CB.shape[1])
    order = np.argsort(key_M)
    key_M, chosen_M = key_M[order], chosen_M[order]
    for part, table in dataset.each():
        texts = table["caption"].to_pylist()
        keys_NB = band_keys(texts)
        low, high = (np.searchsorted(key_M, keys_NB.ravel(), side) for side in ("left", "right"))
        text_P = np.repeat(np.arange(len(texts)).repeat(keys_NB.shape[1]), high - low)
        other_P = chosen_M[np.concatenate([np.zeros(0, np.int64), *map(np.arange, low, high)])]
        pairs_P2 = np.unique(np.stack([other_P, len(chosen) + text_P], axis=1), axis=0)
        near_N = np.zeros(len(texts), bool)
        near_N[pairs_P2[near_identical([*chosen, *texts], pairs_P2), 1] - len(chosen)] = True
        yield part, table.append_column("near", pa.array(near_N))


def _write(folder: Path, found: dict[str, dict], controls: set[str], dose_of: dict[str, int]) -> None:
    held = [row for text, row in sorted(found.items()) if text in controls]
    pq.write_table(pa.Table.from_pylist(held, schema=_CONTROLS), folder / CONTROLS, compression="zstd")
    canaries = [found[text] | {"caption_id": caption_id(text), "dose": dose} for text, dose in sorted(dose_of.items())]
    pq.write_table(pa.Table.from_pylist(canaries, schema=_CANARIES), folder / CANARIES, compression="zstd")


def _write_exclusions(path: Path, dataset: Dataset, dropped: list[dict]) -> None:
    """Write the rows to drop as `crossaudit exclusions` does, for `crossaudit clean`."""
    rows = {
        (row["file"], row["row"]): {
            **dict.fromkeys(schema.EXCLUSIONS.names),
            **{name: row[name] for name in ("file", "row", "key")},
            "caption_id": caption_id(row["caption"]),
            "action": "drop",
            "why": _REASON,
        }
        for row in dropped
    }
    files: dict[str, int] = {}
    for part in dataset.slices:
        files[part.file.name] = files.get(part.file.name, 0) + part.rows
    notes: dict[str, Any] = {
        "policy": "holdout",
        "caption": dataset.options.caption,
        "delimiter": dataset.options.delimiter,
        "files": files,
        "images": {},
        "folders": {},
        "shared": [],
    }
    table = pa.Table.from_pylist([rows[place] for place in sorted(rows)], schema=schema.EXCLUSIONS)
    pq.write_table(table.replace_schema_metadata({schema.METADATA_KEY: json.dumps(notes).encode()}), path)


def read_verdicts(run: str) -> pa.Table:
    """Read `caption_id` and `verdict` of a finished run. Raises AuditError if it is not finished."""
    manifest = read(run)
    if not manifest.finished:
        raise AuditError("the run is not finished", where=run, hint="Finish it with `crossaudit run` first.")
    return Ledger(absolute(run, Path.cwd())).read("verdicts", columns=["caption_id", "verdict"])


def misses(verdicts: pa.Table, canaries: pa.Table) -> pa.Table:
    """Count the canaries that an audit missed, by dose.

    Args:
        verdicts: `caption_id` and `verdict` of the run that audited the trained model.
        canaries: The canaries, with `caption_id` and `dose`.

    Returns:
        `dose`, `canaries` (those in the run), `confirmed`, `miss_rate`, `low`, `high` (95 %, Clopper-Pearson), by dose.
    """
    joined = canaries.select(["caption_id", "dose"]).join(verdicts, "caption_id", join_type="inner")
    found = []
    for dose in sorted(set(joined["dose"].to_pylist())):
        mine = joined.filter(pc.equal(joined["dose"], dose))
        confirmed = pc.sum(pc.is_in(mine["verdict"], value_set=pa.array(schema.CONFIRMED_WORDS))).as_py()
        missed = len(mine) - confirmed
        low, high = clopper_pearson(missed, len(mine))
        known = {"dose": dose, "canaries": len(mine), "confirmed": confirmed}
        found.append(known | {"miss_rate": missed / len(mine), "low": low, "high": high})
    return pa.Table.from_pylist(found)
