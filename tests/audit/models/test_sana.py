"""SANA runs as its own pipeline does, with the instruction that the pipeline puts before captions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

import audit
from audit.costs.flops import generation_cost, screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.models.noise import initial_latent
from audit.models.sana import INSTRUCTION
from tests.support.checkpoints import set_config
from tests.support.families import GUIDANCE, STEPS, Conformance, Unrounded
from tests.support.tiny_sana import GEMMA_WIDTH, SIZE, tiny_gemma_tokenizer, tiny_sana

CAPTION = "a red dog on a table"


class SanaConformance(Conformance):
    def latents(self, model: Any, caption: str, noise_1CHW: Tensor) -> Tensor:
        """Return the final latents [1, C, H, W] of the pipeline, which rounds outputs and latents to float32."""
        with Unrounded():
            found: Tensor = model.call_pipeline(model.pipeline(), [caption], noise_1CHW, STEPS, GUIDANCE)
        return found


class TestSana(SanaConformance):
    make = staticmethod(tiny_sana)


class TestSanaOfOtherShapes(SanaConformance):
    """With query and key norms, position embeddings, patches, learned variances and another scale of the time."""

    RESOLUTION = (32, 64)
    make = staticmethod(
        partial(
            tiny_sana,
            qk_norm="rms_norm_across_heads",
            interpolation_scale=1.0,
            patch_size=2,
            out_channels=8,
            timestep_scale=0.5,
        )
    )
