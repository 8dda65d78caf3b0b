"""Score whether the caption pushes the noise where the model goes without it (Asthana and Belagiannis, ICLR 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen

if TYPE_CHECKING:
    from torch import Tensor

POSITION = 47  # the third-to-last timestep of the 50-step schedule (t = 41 of SD)


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute the cosine along channels of `eps(∅)` and `eps(c) - eps(∅)`, averaged over positions: [B].

    The forward runs on the initial noise, which is not what the model expects at that timestep. The cosine with a zero
    vector is 0.
    """
    import torch

    unconditional_BCHW, response_BCHW = (
        seen.unconditional_BCHW[POSITION].double(),
        seen.response_BCHW[POSITION].double(),
    )
    product_BHW = (unconditional_BCHW * response_BCHW).sum(1)
    norms_BHW = unconditional_BCHW.norm(dim=1) * response_BCHW.norm(dim=1)
    return {"noise_alignment": torch.where(norms_BHW == 0, 0.0, product_BHW / norms_BHW).mean((1, 2))}


DETECTOR = ScreenDetector(
    name="noise_alignment",
    version=1,
    columns=("noise_alignment",),
    measure=measure,
    features=lambda columns: columns["noise_alignment"][:, None],
    source="Asthana and Belagiannis, ICLR 2026",
    cost="1, 1 without caption once a seed",
    response=(POSITION,),
    distance="either",
)
