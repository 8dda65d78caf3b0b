"""Group near-identical captions out of core: shuffle MinHash keys, then compare candidates exactly.

Captions are numbered in the order of their ids, bucket after bucket. Every step maps parts to parts and sorts its
output by the column that the next step reads by: keys of each bucket -> captions that share a key -> their texts ->
near-identical pairs. A union-find over the pairs then names each group after its smallest `caption_id`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.duplicates.captions import BANDS, KEY_BITS, band_keys, near_identical, near_pairs
from audit.duplicates.components import components
from audit.record.ledger import Ledger, Shard, Tables
from pipelines.engine.context import Run
from pipelines.engine.step import Step

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

KEYS, SHARED, CANDIDATES, PAIRS, GROUPS = "_keys", "_shared", "_candidates", "_pairs", "_groups"
KNOWN = "_known_control_captions"
# Number of keys that are held in memory.
KEY_ROWS = 1 << 22
_KEYS = pa.schema([("key", pa.int64()), ("number", pa.int64())])
_CANDIDATES = pa.schema([*_KEYS, ("caption_id", pa.string()), ("caption", pa.string())])
_PAIRS = pa.schema([("number", pa.int64()), ("other", pa.int64()), ("caption_id", pa.string())])
_KNOWN = pa.schema([("text", pa.int64())])
_GROUPS = pa.schema([("number", pa.int64()), ("caption_group", pa.string())])


def run(run: Run) -> None:
    """Write `caption_groups`, with the same parts as `captions`."""
    ledger, buckets = run.ledger, _buckets(run.ledger)
    groups = Step("ingest: groups", "caption_groups", "captions", ledger, _groups)
    if groups.done() >= {bucket.name for bucket in buckets}:
        return  # the working tables may be gone
    ranges = -(-sum(map(len, buckets)) * BANDS // KEY_ROWS)
    keys = [Shard(f"{part:05d}", ranges, part, part + 1) for part in range(ranges)]
    _write_keys(run, buckets)
    run.execute(Step("ingest: shared keys", SHARED, "ranges", ledger, _shared), keys)
    run.execute(Step("ingest: candidates", CANDIDATES, "captions", ledger, _candidates), buckets)
    run.execute(Step("ingest: pairs", PAIRS, "ranges", ledger, _pairs), keys)
    if buckets and not ledger.parts(GROUPS):
        ledger.write(GROUPS, "00000", _connected(ledger.read(PAIRS)))
    run.execute(groups, buckets)


def known(run: Run, texts: list[str]) -> pa.Array:
    """Return which of a few texts are near-identical to a caption of the run, as booleans [N]."""
    ledger, buckets = run.ledger, _buckets(run.ledger)
    keys_NB = band_keys(texts).astype(np.int64)
    step = Step("controls: known captions", KNOWN, "parts", ledger, partial(_known, texts=texts, keys_NB=keys_NB))
    if not step.done() >= {bucket.name for bucket in buckets}:
        _write_keys(run, buckets)
        run.execute(step, [Shard(bucket.name, bucket.source, 0, 1) for bucket in buckets])
    return pc.is_in(pa.array(range(len(texts)), pa.int64()), value_set=ledger.read(KNOWN)["text"].combine_chunks())


def _write_keys(run: Run, buckets: list[Shard]) -> None:
    step = Step("ingest: keys", KEYS, "captions", run.ledger, _keys)
    if not step.done() >= {bucket.name for bucket in buckets}:
        run.execute(step, buckets)


def _keys(worker: Worker, shard: Shard) -> Tables:
    captions = _of(worker, shard)["caption"].to_pylist()
    keys_NB = band_keys(captions).astype(np.int64)
    number_N = shard.source + shard.start + np.arange(len(captions))
    order = np.argsort(keys_NB, axis=None, kind="stable")
    return {KEYS: pa.table([keys_NB.ravel()[order], np.repeat(number_N, BANDS)[order]], schema=_KEYS)}


def _shared(worker: Worker, shard: Shard) -> Tables:
    """Return the keys of one range that several captions have, sorted by the number of the caption."""
    table = worker.ledger.between(KEYS, "key", *_range(shard)).sort_by([("key", "ascending"), ("number", "ascending")])
    key = table["key"].to_numpy()
    same = np.concatenate([[False], key[1:] == key[:-1], [False]])
    return {SHARED: table.filter(pa.array(same[1:] | same[:-1])).sort_by("number")}


def _candidates(worker: Worker, shard: Shard) -> Tables:
    """Return the texts of the captions in one bucket that share a key, sorted by key."""
    first = shard.source + shard.start
    shared = worker.ledger.between(SHARED, "number", first, first + len(shard))
    captions = _of(worker, shard).take(pa.array(shared["number"].to_numpy() - first))
    columns = [shared["key"], shared["number"], captions["caption_id"], captions["caption"]]
    return {CANDIDATES: pa.table(columns, schema=_CANDIDATES).sort_by([("key", "ascending"), ("number", "ascending")])}


def _pairs(worker: Worker, shard: Shard) -> Tables:
    table = worker.ledger.between(CANDIDATES, "key", *_range(shard))
    number_N, first_N, caption_M = np.unique(table["number"].to_numpy(), return_index=True, return_inverse=True)
    texts = table.select(["caption_id", "caption"]).take(pa.array(first_N))
    one_P, other_P = near_pairs(table["key"].to_numpy(), caption_M, texts["caption"].to_pylist()).T
    columns = [number_N[one_P], number_N[other_P], texts["caption_id"].take(pa.array(one_P))]
    return {PAIRS: pa.table(columns, schema=_PAIRS)}


def _connected(pairs: pa.Table) -> pa.Table:
    """Return each caption with near-identical captions, and the id of the first caption that it is connected to."""
    one, other = pairs["number"].to_numpy(), pairs["other"].to_numpy()
    members, roots = components(np.stack([one, other], axis=1))
    # The first caption of a component is the smaller one in all of its pairs, so `caption_id` holds its id.
    ids = pairs["caption_id"].take(pc.index_in(pa.array(roots), value_set=pairs["number"].combine_chunks()))
    return pa.table([members, ids], schema=_GROUPS)


def _groups(worker: Worker, shard: Shard) -> Tables:
    first = shard.source + shard.start
    ids = _of(worker, shard)["caption_id"].combine_chunks()
    groups = worker.ledger.between(GROUPS, "number", first, first + len(shard))
    at = pc.index_in(pa.array(first + np.arange(len(ids))), value_set=groups["number"].combine_chunks())
    names = pc.coalesce(groups["caption_group"].combine_chunks().take(at), ids)
    return {"caption_groups": pa.table([ids, names], schema=schema.CAPTION_GROUPS)}


def _known(worker: Worker, shard: Shard, texts: list[str], keys_NB: np.ndarray) -> Tables:
    keys = worker.ledger.read(KEYS, shard.name)
    keys = keys.filter(pc.is_in(keys["key"], value_set=pa.array(keys_NB.ravel())))
    order = np.argsort(keys_NB, axis=None)
    low, high = (np.searchsorted(keys_NB.ravel()[order], keys["key"].to_numpy(), side) for side in ("left", "right"))
    number_P = np.repeat(keys["number"].to_numpy(), high - low)
    text_P = order[np.concatenate([np.zeros(0, np.int64), *map(np.arange, low, high)])] // BANDS
    number_N, number_P = np.unique(number_P, return_inverse=True)
    captions = worker.ledger.read("captions", shard.name, ["caption"]).take(pa.array(number_N - shard.source))
    pairs_P2 = np.unique(np.stack([text_P, len(texts) + number_P], axis=1), axis=0)
    found = pairs_P2[near_identical([*texts, *captions["caption"].to_pylist()], pairs_P2), 0]
    return {KNOWN: pa.table([np.unique(found)], schema=_KNOWN)}


def _buckets(ledger: Ledger) -> list[Shard]:
    """Return the parts of `captions` as shards; `source` is the number of the first caption."""
    parts = ledger.parts("captions")
    counts = [ledger.rows("captions", name) for name in parts]
    return [
        Shard(name, int(first), 0, count)
        for name, first, count in zip(parts, np.cumsum([0, *counts]), counts, strict=False)
    ]


def _of(worker: Worker, shard: Shard) -> pa.Table:
    return worker.ledger.slice("captions", shard.name, shard.start, shard.stop)


def _range(shard: Shard) -> tuple[int, int]:
    """Return the bounds of one of `shard.source` equal ranges of keys."""
    return (shard.start << KEY_BITS) // shard.source, (shard.stop << KEY_BITS) // shard.source
