"""One confirmed case of a run, generated again: does it agree with the record?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from audit.errors import AuditError, UsageError
from audit.images.decoding import decode
from audit.record.ledger import Ledger
from pipelines.console.progress import told, waiting
from pipelines.engine.worker import Worker
from pipelines.runs.finished_run import finished
from pipelines.steps import image_search
from pipelines.tables import verdicts

# Batches of other sizes and other machines round differently: so many of 255 levels are still the same picture.
ROUNDING = 3


@dataclass(frozen=True)
class Reproduced:
    """`difference`: the largest of a pixel, in levels of 255; None if the generation was not kept. `recorded` and
    `similarity`: to the training image of the verdict, then and now. `image`: PNG."""

    caption: str
    verdict: str
    seed: int
    recorded: float
    similarity: float
    difference: int | None
    image: bytes

    @property
    def agrees(self) -> bool:
        """The same picture; or, where that was not kept, as like the training image as it was."""
        if self.difference is not None:
            return self.difference <= ROUNDING
        return abs(self.similarity - self.recorded) < 0.01


def reproduce(uri: str, case: str) -> Reproduced:
    """Generates a case as the run did. `case`: a caption, a caption_id or the beginning of one.

    Raises UsageError if the run has no such case, AuditError if the model or the embedder is no longer the run's.
    """
    import audit

    ledger, manifest, config = finished(uri)
    row = _case(ledger, case)
    copy = verdicts.copies_of(ledger, [row])[row["caption_id"]]
    worker, name = Worker(config), config.confirm.embedders[0]
    with waiting("loading the model"):
        manifest.model("model", worker.model.fingerprint)
    manifest.checkpoint("model", worker.about(["model"])["model"])
    embedder = worker.embedder(name)
    manifest.model(name, embedder.fingerprint)
    settings = config.generate
    with told() as progress:
        made = audit.generate(
            worker.model,
            [row["caption"]],
            [copy["seed"]],
            settings.steps,
            settings.guidance_scale,
            detectors=(),
            progress=progress,
        )
    image: bytes | None = made["image"][0].as_py()
    if image is None:
        raise AuditError(f"the generation failed: {made['error'][0].as_py()}", where=row["caption_id"])
    training = verdicts.evidence_of(ledger, [row["image_id"]])[row["image_id"]]
    own_E, other_E = embedder.embed([decode(image), decode(training)])
    similarity = float(own_E @ other_E - image_search.background(worker, name, own_E[None])[0])
    return Reproduced(
        row["caption"],
        row["verdict"],
        copy["seed"],
        copy["similarity"],
        similarity,
        _difference(image, _kept(ledger, row["caption_id"], copy["seed"])),
        image,
    )


def _case(ledger: Ledger, case: str) -> dict[str, Any]:
    """The row of `verdicts`."""
    confirmed = verdicts.confirmed(ledger, ["caption_id", "caption", "verdict", "image_id"])
    named = pc.or_(pc.starts_with(confirmed["caption_id"], case), pc.equal(confirmed["caption"], case))
    found = confirmed.filter(named).to_pylist()
    if len(found) != 1:
        what = "no confirmed caption is" if not found else f"{len(found)} confirmed captions are"
        hint = "Give a caption, or the caption_id of `verdicts`."
        raise UsageError(f"{what} named {case!r}", where=ledger.uri, hint=hint)
    return found[0]


def _kept(ledger: Ledger, caption_id: str, seed: int) -> bytes | None:
    wanted = (pc.field("caption_id") == caption_id) & (pc.field("seed") == seed) & (pc.field("purpose") == "discover")
    for _, part in ledger.each("generations", ["caption_id", "seed", "purpose", "image"]):
        for row in part.filter(wanted).to_pylist():
            return None if row["image"] is None else bytes(row["image"])
    return None


def _difference(image: bytes, kept: bytes | None) -> int | None:
    if kept is None:
        return None
    now, then = (np.asarray(decode(content), np.int16) for content in (image, kept))
    return 255 if now.shape != then.shape else int(np.abs(now - then).max())
