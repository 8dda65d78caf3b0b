"""Recompute what the manifest of a run states, from the tables of the run, and compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from pipelines.configuration.config import Config
from pipelines.configuration.settings import absolute
from pipelines.engine.manifest import read
from pipelines.steps import audit_sample, thresholds
from pipelines.steps.claims import state_claims
from reports.check import Check


def recompute(run: str) -> list[Check]:
    """Recompute the audit sample, the thresholds and the claims of an audit.

    Returns nothing for an index, or for an unfinished audit.

    Args:
        run: The path or URI of the run, of which every table can be read.
    """
    manifest = read(run)
    if manifest.kind != "audit" or manifest.finished is None:
        return []
    ledger = Ledger(absolute(run, Path.cwd()))
    limits = [_thresholds(ledger, manifest)] if manifest.thresholds else []
    return [_sample(ledger, manifest), *limits, _claims(ledger, manifest)]


def _sample(ledger: Ledger, manifest: RunManifest) -> Check:
    """Check that the audit sample was drawn with the seed that the inputs determine, or with the configured one."""
    name, given = "the audit sample is the one that its seed draws", manifest.resolved["select"]["seed"]
    seed = manifest.seed_of_inputs if given is None else given
    source = "the contents of the inputs" if given is None else "select.seed"
    if manifest.seeds.sample != seed:
        return Check(name, False, f"the manifest says seed {manifest.seeds.sample}, but {source} gives {seed}")
    by_budget, by_sample, total = _numbers(ledger)
    size = min(manifest.resolved["select"]["audit_sample"], total - len(by_budget))
    drawn = audit_sample.draw(by_budget, total, size, seed)
    if manifest.resolved["select"]["until"] is not None:
        drawn = drawn[: len(by_sample)]
    wrong = np.setxor1d(drawn, by_sample)
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


def _thresholds(ledger: Ledger, manifest: RunManifest) -> Check:
    """Check that the thresholds and the error of the confirm step follow from the matches of control captions."""
    name = "the thresholds and their measured error follow from the control captions"
    config, seed = Config.model_validate(manifest.resolved), manifest.seeds.sample
    assert seed is not None  # a finished audit has selected
    try:
        found = thresholds.chosen(ledger, config, ledger.read("matches"), seed)
    except AuditError as error:
        return Check(name, True, f"not computed again: {error}", warning=True)
    computed = {
        name: {kind: asdict(limit) for kind, limit in kinds.items()} for name, kinds in found.thresholds.items()
    }
    stated = manifest.model_dump(include={"thresholds", "confirm_error"})
    wrong = [
        *_differences(stated["thresholds"], computed, "thresholds"),
        *_differences(stated["confirm_error"], asdict(found.error), "confirm_error"),
    ]
    return _compared(name, wrong, f"{sum(map(len, computed.values())):,} thresholds")


def _claims(ledger: Ledger, manifest: RunManifest) -> Check:
    """Check that the claims, their figures and their sentences follow from the tables."""
    name, stated = "the claims and their sentences follow from the tables", manifest.claims.model_dump()
    wrong = list(_differences(stated, state_claims(ledger, manifest).model_dump(), "claims"))
    return _compared(name, wrong, f"{len(manifest.claims.claims):,} claims")


def _compared(name: str, wrong: Sequence[tuple[str, Any, Any]], detail: str) -> Check:
    """Return the result of a comparison: its first difference, or the detail if there is none."""
    if not wrong:
        return Check(name, True, detail)
    [(key, stated, computed), *more] = wrong
    text = f"{key} is {stated!r} in the manifest, and {computed!r} by the tables"
    return Check(name, False, text + (f"; and {len(more):,} more differences" if more else ""))


def _differences(stated: Any, computed: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the places at which two values differ, with both values. Tuples are lists in a manifest."""
    if isinstance(computed, tuple):
        computed = list(computed)
    if isinstance(stated, dict) and isinstance(computed, dict) and stated.keys() == computed.keys():
        for key in stated:
            yield from _differences(stated[key], computed[key], f"{at}.{key}")
    elif isinstance(stated, list) and isinstance(computed, list) and len(stated) == len(computed):
        for number, pair in enumerate(zip(stated, computed, strict=True)):
            yield from _differences(*pair, f"{at}[{number}]")
    elif isinstance(stated, float) and isinstance(computed, float):
        if not math.isclose(stated, computed, rel_tol=1e-9, abs_tol=1e-12):  # libraries may round differently
            yield at, stated, computed
    elif stated != computed:
        yield at, stated, computed
