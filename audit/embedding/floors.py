"""Look up floors: the similarity below which two pictures never count as copies, whatever the control captions say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audit.embedding.descriptor_header import read_floors
from audit.embedding.published import PUBLISHED as SSCD

# Literature on diffusion models judges generated images by SSCD: Somepalli et al. (CVPR 2023, arXiv 2212.03860, with
# sscd_disc_large) and most later work call a similarity above 0.5 a copy. At 0.75, sscd_disc_mixup has 90 % precision
# on DISC (Pizzi et al., arXiv 2202.10261), a dataset of edited copies among a million distractors.
PUBLISHED = 0.5
PUBLISHED_SOURCE = "published for SSCD (arXiv 2212.03860)"
KINDS = ("verbatim", "region")


@dataclass(frozen=True)
class Floor:
    """The plain similarity below which nothing counts as a copy, and the source of the number."""

    value: float
    source: str


def floors_of(weights: str | Path, model: str | None = None) -> dict[str, Floor]:
    """Return the floors that are known for the weights of an embedder, by kind (verbatim | region).

    Args:
        weights: As for `load_embedder`: the name of a published SSCD model, a file or an open_clip folder.
        model: The open_clip architecture, if `weights` is a file of CLIP weights.

    Returns:
        For SSCD, the published floors. For a small descriptor, the measured floors in the metadata of its weights. For
        any other embedder, nothing. CLIP has no floor: it measures similarity of subjects, and no published threshold
        separates copies from other pictures of the same subject.

    Raises:
        AuditError: A `.safetensors` file is not a copy descriptor.
    """
    path = Path(weights)
    if model is None and (str(weights) in SSCD or path.suffix in (".pt", ".pth")):
        return {kind: Floor(PUBLISHED, PUBLISHED_SOURCE) for kind in KINDS}
    if model is None and path.suffix == ".safetensors" and path.is_file():
        return {kind: Floor(value, "measured for these weights") for kind, value in read_floors(path).items()}
    return {}
