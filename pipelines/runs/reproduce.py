"""Regenerate one confirmed case of a run and compare it with the record."""

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
from pipelines.runs.finished_run import finished, on_this_machine
from pipelines.steps import image_search
from pipelines.tables import verdicts

# Other batch sizes and other machines round differently. Up to this many levels of 255, it is the same picture.
ROUNDING = 3


@dataclass(frozen=True)
class Reproduced:
    """A case that was generated again.

    Attributes:
        caption: The caption.
        verdict: Its verdict.
        seed: The seed of the generation.
        recorded: Similarity of the run's generation to the training image of the verdict.
        similarity: Similarity of the new generation to the same image.
        difference: The largest pixel difference in levels of 255; None if the run's generation was not kept.
        image: The new generation, as PNG.
    """

    caption: str
    verdict: str
    seed: int
    recorded: float
    similarity: float
    difference: int | None
    image: bytes

    @property
    def agrees(self) -> bool:
        """Whether the picture is the same or, if the run's picture was not kept, its similarity is the same."""
        if self.difference is not None:
            return self.difference <= ROUNDING
        return abs(self.similarity - self.recorded) < 0.01


def reproduce(uri: str, case: str) -> Reproduced:
    """Regenerate a case as the run did.

    Args:
        uri: The path or URI of a finished run.
        case: A caption, a caption_id, or a prefix of a caption_id.

    Raises:
        UsageError: The run has no such case.
        AuditError: The model or the embedder has changed since the run.
    """
    import audit

    ledger, manifest, config = finished(uri)
    row = _case(ledger, case)
    copy = verdicts.copies_of(ledger, [row])[row["caption_id"]]
    worker, name = Worker(on_this_machine(config)), config.confirm.embedders[0]
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
    """Return the row of `verdicts` that a case names."""
    confirmed = verdicts.confirmed(ledger, ["caption_id", "caption", "verdict", "image_id"])
    named = pc.or_(pc.starts_with(confirmed["caption_id"], case), pc.equal(confirmed["caption"], case))
    found = confirmed.filter(named).to_pylist()
    if len(found) != 1:
        what = "no confirmed caption matches" if not found else f"{len(found)} confirmed captions match"
        hint = "Pass a caption, or a caption_id from the table `verdicts`."
        raise UsageError(f"{what} {case!r}", where=ledger.uri, hint=hint)
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
