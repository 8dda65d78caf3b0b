from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

import audit
from audit.errors import UsageError
from audit.mitigation.serving import PLAIN, SERVED, Setting, serve, to_measure

CAPTIONS = ["a dog", "a serene beach at sunrise, 35mm"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=int)


def test_plain_images_are_those_of_generate_in_its_order(model: audit.Model) -> None:
    served = serve(model, CAPTIONS, seeds=[3, 1], steps=4, batch_size=3)
    made = audit.generate(model, CAPTIONS, seeds=[3, 1], steps=4)
    assert served.schema.equals(SERVED)
    assert served.select(["caption", "seed"]).equals(made.select(["caption", "seed"]))
    for ours, theirs in zip(served["image"].to_pylist(), made["image"].to_pylist(), strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_a_setting_is_that_of_mitigated(model: audit.Model) -> None:
    from audit.models.noise import initial_latents
    from audit.scoring.generation import produce

    pipeline = model.pipeline()
    with audit.mitigated(pipeline, audit.Rescale(bos_scale=3.0, keep="words")):
        noise = initial_latents([1], model.latent_shape, model.device)
        latents = pipeline(CAPTIONS[:1], latents=noise, num_inference_steps=4, output_type="latent").images
    served = serve(model, CAPTIONS[:1], seeds=[1], steps=4, setting=Setting(audit.Rescale(3.0, "words")))
    plain = serve(model, CAPTIONS[:1], seeds=[1], steps=4)
    assert served["image"].to_pylist() == produce(model, latents, "image")["values"]
    assert served["image"].to_pylist() != plain["image"].to_pylist()


def test_the_images_of_a_batch_share_its_seconds(model: audit.Model) -> None:
    began = time.perf_counter()
    seconds = serve(model, CAPTIONS, seeds=[0, 1], steps=1, batch_size=3)["seconds"].to_pylist()
    assert seconds[0] == seconds[1] == seconds[2] > 0
    assert seconds[3] > 0
    assert sum(seconds) < time.perf_counter() - began


def test_an_image_that_is_not_finite_is_null(model: audit.Model) -> None:
    served = serve(model, CAPTIONS[:1], steps=2, guidance_scale=float("inf"))
    assert served["image"].to_pylist() == [None]


def test_plain_and_every_method_is_measured_once() -> None:
    double, padding = audit.Rescale(2.0, "eos"), audit.Padding()
    same_as_plain = audit.Rescale(1.0, "all")
    found = to_measure([double, padding, double, same_as_plain])
    assert found == [PLAIN, Setting(double), Setting(padding)]
    assert [(setting.name, setting.settings) for setting in found] == [
        ("none", ""),
        ("rescale", "bos_scale=2.0, keep=eos"),
        ("padding", "token=!, zero_eos=True, zero_share=0.0"),
    ]
    assert len({setting.slug for setting in found}) == 3


def test_plain_alone_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="there is nothing to measure"):
        to_measure([audit.Rescale(1.0, "all")])
