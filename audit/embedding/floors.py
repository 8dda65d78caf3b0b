"""Floors: from which similarity on two pictures look like copies to an embedder, whatever the control captions say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audit.embedding.published import PUBLISHED as SSCD

# The rule of the literature on diffusion models for SSCD, of generated images: Somepalli et al. (CVPR 2023,
# arXiv 2212.03860, with sscd_disc_large) and most work after it call a similarity above 0.5 a copy. 0.75 is 90 %
# precision of sscd_disc_mixup on DISC (Pizzi et al., arXiv 2202.10261), of edited copies among a million distractors.
PUBLISHED = 0.5
PUBLISHED_SOURCE = "published for SSCD (arXiv 2212.03860)"
KINDS = ("verbatim", "region")


@dataclass(frozen=True)
class Floor:
    """A plain similarity below which nothing is called a copy, and where the number comes from."""

    value: float
    source: str


def floors_of(weights: str | Path, model: str | None = None) -> dict[str, Floor]:
    """The floors, by kind (verbatim | region), that are known for the weights of an embedder.

    Args:
        weights: as for `load_embedder`: the name of a published SSCD model, a file or an open_clip folder.
        model: the open_clip architecture, where `weights` is a file of CLIP weights.

    Returns:
        The published floors for SSCD, the measured floors that a small descriptor carries in the metadata of its
        weights, and nothing for any other embedder. CLIP has none: its similarity is one of subjects, and no
        published threshold tells copies from other pictures of the same subject.

    Raises:
        AuditError: a `.safetensors` file that is not a copy descriptor.
    """
    path = Path(weights)
    if model is None and (str(weights) in SSCD or path.suffix in (".pt", ".pth")):
        return {kind: Floor(PUBLISHED, PUBLISHED_SOURCE) for kind in KINDS}
    if model is None and path.suffix == ".safetensors" and path.is_file():
        from audit.embedding.descriptor import read_floors

        return {kind: Floor(value, "measured for these weights") for kind, value in read_floors(path).items()}
    return {}
