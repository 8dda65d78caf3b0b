"""Simulate audits and count how often each stated claim holds: python -m benchmarks.claims.

Every simulated audit has a population of captions whose truth is known, with row counts and families, a screen that
finds most but not all of the copies, a confirm step with false positives, images that are absent, and seeds that fail.
A bound holds at its level if the
share of audits in which it covers the truth is at least its level minus three standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from audit.statistics.claims import claims
from audit.statistics.finite import sequence

PREVALENCE = (0.0, 1e-4, 1e-2, 0.1)
FALSE_POSITIVES = (0.0, 0.002, 0.01)
ABSENT = (0.0, 0.2, 0.4)
FAILED = (0.0, 0.1)
# The captions, the budget, the audit sample and the control captions of an audit; seeds per caption.
CAPTIONS, BUDGET, SAMPLE, CONTROLS, SEEDS = 20_000, 1_000, 1_000, 200, 2
# The screen puts this share of the captions with a copy first, as far as the budget reaches.
FOUND = 0.8
# New seeds per flagged caption.
FRESH = 4
# A seed of a caption with a copy reproduces the image with this probability.
REPRODUCES = 0.7


@dataclass(frozen=True)
class Setting:
    """A kind of audit: shares of captions with a copy, of false positives, of absent images and of failed seeds."""

    prevalence: float
    false_positives: float
    absent: float
    failed: float


def simulate(setting: Setting, rng: np.random.Generator) -> dict[tuple[str, str], tuple[bool, float]]:
    """Simulate one audit.

    Returns:
        (estimand, end) -> whether the claim holds, and the level at which it is stated.
    """
    true_N = np.zeros(CAPTIONS, bool)
    true_N[: round(setting.prevalence * CAPTIONS)] = True
    rows_N = np.minimum(rng.zipf(2.0, CAPTIONS), 1_000)
    family_N = np.where(true_N, rng.integers(0, max(1, true_N.sum() // 3), CAPTIONS), CAPTIONS + np.arange(CAPTIONS))
    # With all images and seeds, the protocol flags every caption with a copy, and others by chance.
    chance_N = ~true_N & (rng.random(CAPTIONS) < setting.false_positives)

    absent_N = rng.random(CAPTIONS) < setting.absent
    failed_NS = rng.random((CAPTIONS, SEEDS)) < setting.failed
    copies_NS = rng.random((CAPTIONS, SEEDS)) < REPRODUCES
    copies_NS[~copies_NS.any(1), 0] = True  # a caption has a copy if one of its seeds shows it
    seen_N = (true_N & ~absent_N & (copies_NS & ~failed_NS).any(1)) | chance_N
    unknown_N = ~seen_N & (absent_N | failed_NS.any(1))

    rank_N = rng.random(CAPTIONS) + (true_N & (rng.random(CAPTIONS) < FOUND))
    order_N = np.argsort(-rank_N)
    census, rest = order_N[:BUDGET], order_N[BUDGET:]
    chosen = np.concatenate([census, rng.choice(rest, SAMPLE, replace=False)])
    again = rng.binomial(FRESH, REPRODUCES * (1 - setting.failed), CAPTIONS) * true_N
    seen, ids = seen_N[chosen], pa.array(chosen).cast(pa.string())
    verdict = np.where(seen, "verbatim", np.where(unknown_N[chosen], "unknown", "unconfirmed"))
    verdicts = pa.table(
        {
            "caption_id": ids,
            "verdict": verdict.astype(object),
            "row_count": rows_N[chosen],
            "family": pa.array(family_N[chosen], mask=~seen).cast(pa.string()),
            "fresh_copies": pa.array(again[chosen], mask=~seen),
            "fresh_generations": pa.array(np.full(len(chosen), FRESH), mask=~seen),
        }
    )
    by = pa.array(["budget"] * BUDGET + ["sample"] * SAMPLE)
    values, counts = np.unique(rows_N[rest], return_counts=True)
    stated = claims(
        verdicts,
        pa.table({"caption_id": ids, "selected_by": by}),
        CAPTIONS,
        dict(zip(values.tolist(), counts.tolist(), strict=True)),
        controls=(CONTROLS, int(rng.binomial(CONTROLS, setting.false_positives))),
        fresh_seeds=FRESH,
    )["claims"]
    families, in_budget = family_N[true_N], family_N[census][true_N[census]]
    flagged = chosen[seen]
    truth = {
        "false_positives": setting.false_positives,
        "copies": int(true_N.sum()),
        "rows": int(rows_N[true_N].sum()),
        "recall": true_N[census].sum() / max(1, true_N.sum()) if true_N.any() else 1.0,
        "recall_families": len(np.unique(in_budget)) / max(1, len(np.unique(families))) if true_N.any() else 1.0,
        "generations": REPRODUCES * true_N[flagged].mean() if len(flagged) else 0.0,
    }
    found = {}
    for claim in stated:
        value, real, end = claim["value"], truth[claim["estimand"]], claim["end"]
        found[claim["estimand"], end] = (value <= real if end == "at_least" else value >= real), claim["level"]
        if (claim["estimand"], end) == ("copies", "at_least") and not true_N.any():
            found["copies", "above zero without a copy"] = (value == 0, 0.975)
    return found


def below_too_often(population: int, limit: int, audits: int, rng: np.random.Generator) -> float:
    """Return how often a sequence that is looked at every 100 captions wrongly says "fewer than `limit`".

    The population has exactly `limit` captions with a copy.
    """
    wrong = 0
    for _ in range(audits):
        at_A = np.sort(rng.choice(population, limit, replace=False))
        for n in range(100, population + 1, 100):
            if sequence(int(np.searchsorted(at_A, n)), n, population, 0.05, limit / population)[1] < limit:
                wrong += 1
                break
    return wrong / audits


def allowed(level: float, audits: int) -> float:
    """Return the highest share of failures that three standard errors allow."""
    return level + 3 * float(np.sqrt(level * (1 - level) / audits))


def main() -> int:
    """Run all settings, print one line per setting, and return 1 if a bound fails too often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audits", type=int, default=1_000, help="simulated audits per setting")
    parser.add_argument("--seed", type=int, default=15)
    given = parser.parse_args()
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    too_often = []
    for number, values in enumerate(itertools.product(PREVALENCE, FALSE_POSITIVES, ABSENT, FAILED)):
        setting = Setting(*values)
        rng = np.random.default_rng([given.seed, number])
        failures: Counter[tuple[str, str]] = Counter()
        levels: dict[tuple[str, str], float] = {}
        for _ in range(given.audits):
            for name, (holds, level) in simulate(setting, rng).items():
                failures[name] += not holds
                levels[name] = level
        for name, level in levels.items():
            # An audit that does not state a claim does not fail it.
            share = failures[name] / given.audits
            worst[name] = max(worst.get(name, (0.0, level)), (share, level))
            if share > allowed(1 - level, given.audits):
                too_often.append((setting, name, share))
        print(setting, {" ".join(name): failures[name] for name in levels if failures[name]}, flush=True)
    print(f"{'claim':40} {'level':>8} {'worst coverage':>15}")
    for name, (share, level) in sorted(worst.items()):
        print(f"{' '.join(name):40} {level:8.4f} {1 - share:15.4f}")
    wrong = below_too_often(20_000, 100, given.audits, np.random.default_rng(given.seed))
    print(
        f"a sequence looked at every 100 captions says a false `below` in {100 * wrong:.1f} % of audits (5 % allowed)"
    )
    for setting, name, share in too_often:
        print(f"FAILS: {setting}: {' '.join(name)}: {share:.4f}")
    return int(bool(too_often) or wrong > allowed(0.05, given.audits))


if __name__ == "__main__":
    sys.exit(main())
