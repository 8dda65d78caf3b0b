"""Keep the answers of raters: one part of the table `reviews` per rater, written again with each answer."""

from __future__ import annotations

import re
import threading
from typing import Any

import pyarrow as pa

from audit import schema
from audit.errors import UsageError
from audit.record.ledger import Ledger
from pipelines.console.numbers import now
from pipelines.review.pairs import shuffled

REVIEWS = "reviews"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def rater_named(name: str) -> str:
    """Return a rater's name in lower case.

    Raises:
        UsageError: The name cannot be the name of a file on every system.
    """
    known = name.strip().lower()
    if not _NAME.fullmatch(known):
        hint = "Use up to 40 letters a-z, digits, - and _, such as initials. The name appears in the report."
        raise UsageError(f"{name[:80]!r} is not a name for a rater", hint=hint)
    return known


class Answers:
    """The answers to the pairs of one run.

    Each rater sees the pairs in an order of their own, which follows from their name: a restart continues it.
    """

    def __init__(self, ledger: Ledger, pairs: pa.Table) -> None:
        self._ledger, self._lock = ledger, threading.Lock()
        self._pairs = {row["pair"]: row for row in pairs.drop_columns("image").to_pylist()}

    def order(self, rater: str) -> list[str]:
        """Return the names of all pairs in the order in which a rater sees them."""
        return sorted(self._pairs, key=lambda pair: shuffled("order", rater, pair))

    def of(self, rater: str) -> list[str | None]:
        """Return a rater's answers in the order of `order`; None for a pair without one."""
        given = self._given(rater)
        return [given[pair]["answer"] if pair in given else None for pair in self.order(rater)]

    def give(self, rater: str, number: int, answer: str, seconds: float) -> None:
        """Store an answer. When this returns, the answer is on disk.

        Args:
            rater: The rater.
            number: The place of the pair in `order`.
            answer: One of ANSWER_WORDS.
            seconds: How long the rater looked at the pair.
        """
        pair = self.order(rater)[number]
        with self._lock:
            given = self._given(rater)
            before = given.get(pair)
            changed = before is not None and before["answer"] != answer
            known = {name: self._pairs[pair][name] for name in ("pair", "pair_type", "caption_id", "image_id")}
            given[pair] = known | {
                "rater": rater,
                "answer": answer,
                "changes": (before["changes"] if before else 0) + changed,
                "seconds": seconds,
                "answered": now(),
            }
            self._ledger.write(REVIEWS, rater, pa.Table.from_pylist(list(given.values()), schema=schema.REVIEWS))

    def _given(self, rater: str) -> dict[str, dict[str, Any]]:
        """Return the rows of a rater by pair, as they are on disk: another process may have written some of them."""
        if rater not in self._ledger.parts(REVIEWS):
            return {}
        return {row["pair"]: row for row in self._ledger.read(REVIEWS, rater).to_pylist()}
