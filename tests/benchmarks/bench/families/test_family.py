"""A model that PlantedBench trains is the same model when an audit loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

import audit
from audit.models.pixart import PixArtSigma as AuditedPixArt
from audit.models.sd3 import StableDiffusion3 as AuditedSD3
from audit.models.sdxl import StableDiffusionXL as AuditedXL
from benchmarks.planted.bench.families.family import Family, Texts
from benchmarks.planted.bench.families.pixart import PixArtSigma
from benchmarks.planted.bench.families.sd3 import StableDiffusion3
from benchmarks.planted.bench.families.sdxl import StableDiffusionXL
from benchmarks.planted.loop import fit

VAE = Path("pipelines/demo/bundle/model/vae")
TRAINED = ["", "Red Dog - enamel pin, matte, 5 cm", "a simple flat picture of a table on a white background"]
SHAPE = (12, 8, 8)


@pytest.fixture(scope="module", params=[StableDiffusionXL, PixArtSigma, StableDiffusion3], ids=lambda f: f.__name__)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, audit.Model]:
    """Train a model of each family for two steps, save it, and load it as an audit does."""
    folder = tmp_path_factory.mktemp("family")
    pictures = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = ["red dog, noto", "table on a plate, noto", "glossy dog, fluent", "a simple table, fluent"]
    family = request.param(Texts(pictures, captions, TRAINED, folder / "checkpoints", seed=0, steps=2))

    def loss(_step: int, generator: torch.Generator) -> torch.Tensor:
        latents_BCHW = torch.randn(2, *SHAPE, generator=generator)
        found: torch.Tensor = family.losses(latents_BCHW, torch.tensor([0, 1]), generator).mean()
        return found

    saved = folder / "checkpoints/denoiser.pt"
    fit("network", family.network.parameters(), loss, steps=2, rate=1e-3, seed=0, checkpoint=saved)
    family.save(folder / "model", AutoencoderKL.from_pretrained(VAE))
    return family, audit.load_model(folder / "model")


def test_it_loads_as_its_own_family(both: tuple[Family, audit.Model]) -> None:
    family, model = both
    of = {StableDiffusionXL: AuditedXL, PixArtSigma: AuditedPixArt, StableDiffusion3: AuditedSD3}
    assert type(model) is of[type(family)]
    assert model.latent_shape == SHAPE


@torch.no_grad()
def test_the_audit_gives_the_network_what_it_was_trained_with(both: tuple[Family, audit.Model]) -> None:
    family, model = both
    noisy_BCHW = torch.randn(len(TRAINED), *SHAPE, generator=torch.Generator().manual_seed(1))
    text_B, time_B = torch.arange(len(TRAINED)), torch.full((len(TRAINED),), 500.0)
    trained_BCHW = family.predict(noisy_BCHW, time_B, text_B)
    audited_BCHW = model.predict(noisy_BCHW, 500.0, model.encode(TRAINED))
    empty_1CHW = model.predict(noisy_BCHW[:1], 500.0, model.null())
    torch.testing.assert_close(audited_BCHW[1:], trained_BCHW[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(empty_1CHW, trained_BCHW[:1], rtol=1e-4, atol=1e-5)
    assert (trained_BCHW[1:] - family.predict(noisy_BCHW, time_B, 0 * text_B)[1:]).abs().max() > 1e-4


def test_it_can_be_screened_and_generated_from(both: tuple[Family, audit.Model]) -> None:
    _, model = both
    table = audit.generate(model, TRAINED[1:], [1], steps=2, guidance_scale=4.0, output="latents")
    assert table["status"].to_pylist() == ["ok", "ok"]
    first, second = (torch.tensor(row) for row in table["latents"].to_pylist())
    assert 0.1 < float(first.std()) < 10
    assert not torch.equal(first, second)
    screened = audit.screen(model, TRAINED[1:], [0], ["caption_response", "attention_profile"])
    assert screened["status"].to_pylist() == ["ok", "ok"]
