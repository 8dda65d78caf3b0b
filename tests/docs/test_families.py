"""README lists every family of models, and says truly which were measured on planted models."""

from __future__ import annotations

import re

from audit.models.registry import FAMILIES, family_named
from tests.support.paths import ROOT

ROW = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionImg2ImgPipeline": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3 and 3.5",
    "FluxPipeline": "FLUX.1 dev and schnell",
    "PixArtAlphaPipeline": "PixArt-Alpha and PixArt-Sigma",
    "PixArtSigmaPipeline": "PixArt-Alpha and PixArt-Sigma",
    "SanaPipeline": "SANA",
}


def test_readme_says_which_families_were_measured_on_planted_models() -> None:
    rows = re.findall(r"^\| (.+?) \| (yes|no)\b.*\|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    measured = {ROW[name]: "yes" if family_named(name).PLANTED else "no" for name in FAMILIES}
    assert dict(rows) == measured
