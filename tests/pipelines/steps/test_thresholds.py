"""Which floor an embedder has, and that none means a refusal before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from audit.embedding.floors import PUBLISHED, floors_of
from audit.errors import AuditError
from pipelines.configuration.config import Config
from pipelines.demo.demo import bundle
from pipelines.steps import thresholds
from tests.support.toy import settings_of


def config_of(**sscd: Any) -> Config:
    return Config.model_validate(settings_of(confirm={"sscd": sscd}))


@pytest.fixture
def unmeasured(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(path)
    return str(path)


def test_sscd_has_the_published_floor_and_clip_has_none() -> None:
    for weights in ("sscd_disc_mixup", "sscd_disc_large", "elsewhere/sscd.torchvision.pt"):
        assert {kind: floor.value for kind, floor in floors_of(weights).items()} == {
            "verbatim": PUBLISHED,
            "region": PUBLISHED,
        }
    assert floors_of("ViT-B-32/laion2b_s34b_b79k") == floors_of("clip.pt", "ViT-B-32") == {}


def test_the_shipped_descriptor_carries_what_was_measured_for_it() -> None:
    floors = floors_of(bundle() / "embedders/sscd.safetensors")
    assert set(floors) == {"verbatim", "region"}
    assert all(0.5 < floor.value < 0.9 for floor in floors.values())
    thresholds.check(config_of(weights=str(bundle() / "embedders/sscd.safetensors")))


def test_an_embedder_without_a_floor_does_not_decide(unmeasured: str) -> None:
    with pytest.raises(
        AuditError,
        match=r"(?s)no confirm.sscd.min_similarity_verbatim and confirm.sscd.min_similarity_region.*Set confirm.sscd",
    ):
        thresholds.check(config_of(weights=unmeasured))
    with pytest.raises(AuditError, match=r"no confirm.sscd.min_similarity_region\n"):
        thresholds.check(config_of(weights=unmeasured, min_similarity_verbatim=0.8))
    config = config_of(weights=unmeasured, min_similarity_verbatim=0.8, min_similarity_region=0.7)
    thresholds.check(config)
    assert {floor.source for floor in thresholds.floors(config, "sscd").values()} == {"configured"}
    thresholds.check(Config.model_validate(settings_of(images=None, confirm={"sscd": {"weights": unmeasured}})))
