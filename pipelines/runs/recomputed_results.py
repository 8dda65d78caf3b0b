"""Recompute what the manifest of a run states, from the tables of the run, and compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from pipelines.configuration.settings import absolute
from pipelines.engine.manifest import read
from pipelines.steps import audit_sample
from pipelines.steps.claims import state_claims
from reports.check import Check


def recompute(run: str) -> list[Check]:
    """Recompute the audit sample and the claims of an audit. Returns nothing for an index, or for an unfinished audit.

    Args:
        run: The path or URI of the run, of which every table can be read.
    """
    manifest = read(run)
    if manifest.kind != "audit" or manifest.finished is None:
        return []
    ledger = Ledger(absolute(run, Path.cwd()))
    return [_sample(ledger, manifest), _claims(ledger, manifest)]


def _sample(ledger: Ledger, manifest: RunManifest) -> Check:
    """Check that the audit sample was drawn with the seed that the inputs determine, or with the configured one."""
    name, given = "the audit sample is the one that its seed draws", manifest.resolved["select"]["seed"]
    seed = manifest.seed_of_inputs if given is None else given
    source = "the contents of the inputs" if given is None else "select.seed"
    if manifest.seeds.sample != seed:
        return Check(name, False, f"the manifest says seed {manifest.seeds.sample}, but {source} gives {seed}")
    by_budget, by_sample, total = _numbers(ledger)
    size = min(manifest.resolved["select"]["audit_sample"], total - len(by_budget))
    wrong = np.setxor1d(audit_sample.draw(by_budget, total, size, seed), by_sample)
    detail = (
        f"{len(by_sample):,} of the {total - len(by_budget):,} captions outside the budget, seed {seed} from {source}"
    )
    return Check(name, not len(wrong), detail + (f"; {len(wrong):,} captions differ" if len(wrong) else ""))


def _numbers(ledger: Ledger) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the numbers of the captions in the budget and in the sample, and the number of all captions."""
    found: dict[str, list[np.ndarray]] = {"budget": [], "sample": []}
    total = 0
    for _, scores in ledger.each("scores", ["selected_by"]):
        for word, numbers in found.items():
            chosen = pc.fill_null(pc.equal(scores["selected_by"], word), False)
            numbers.append(total + np.flatnonzero(np.asarray(chosen)))
        total += len(scores)
    budget, sample = (np.concatenate([np.empty(0, np.int64), *numbers]) for numbers in found.values())
    return budget, sample, total


def _claims(ledger: Ledger, manifest: RunManifest) -> Check:
    """Check that the claims, their figures and their sentences follow from the tables."""
    name, stated = "the claims and their sentences follow from the tables", manifest.claims.model_dump()
    wrong = [
        f"{key} is {there!r} in the manifest, and {here!r} by the tables"
        for key, there, here in _differences(stated, state_claims(ledger, manifest).model_dump())
    ]
    more = f"; and {len(wrong) - 1:,} more differences" if len(wrong) > 1 else ""
    return Check(name, not wrong, wrong[0] + more if wrong else f"{len(manifest.claims.claims):,} claims")


def _differences(stated: Any, computed: Any, at: str = "claims") -> Iterator[tuple[str, Any, Any]]:
    """Yield the places at which two values differ, with both values."""
    if isinstance(stated, dict) and isinstance(computed, dict) and stated.keys() == computed.keys():
        for key in stated:
            yield from _differences(stated[key], computed[key], f"{at}.{key}")
    elif isinstance(stated, list) and isinstance(computed, list) and len(stated) == len(computed):
        for number, pair in enumerate(zip(stated, computed, strict=True)):
            yield from _differences(*pair, f"{at}[{number}]")
    elif stated != computed:
        yield at, stated, computed
