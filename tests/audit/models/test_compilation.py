"""Compiled blocks give the same scores, and attention is read, and forwards end early, as without them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import audit
from audit.errors import UsageError
from audit.models.compilation import compile_blocks
from tests.support.small_unet import flat_unet
from tests.support.toy import MODEL

CAPTIONS = ["a red dog", "table"]


@pytest.fixture(scope="module")
def plain() -> audit.Model:
    """A model with four cross-attention layers, and residual blocks of two shapes."""
    model = audit.load_model(MODEL, resolution=16)
    return replace(model, unet=flat_unet(model.unet.config.cross_attention_dim, "up", layers=3).eval())


@pytest.fixture(scope="module")
def compiled(plain: audit.Model) -> audit.Model:
    model, counter = replace(plain, unet=copy.deepcopy(plain.unet)), CompileCounter()
    compile_blocks(model.unet, backend=counter)
    audit.screen(model, CAPTIONS)
    assert counter.frame_count > 0
    return model


@pytest.mark.parametrize("detector", ["caption_response", "entropy_single_step"])
def test_scores_and_the_end_of_a_forward_do_not_change(
    plain: audit.Model, compiled: audit.Model, detector: str
) -> None:
    expected, ends = audit.screen(plain, CAPTIONS, detectors=[detector]), list[nn.Module]()
    handle = compiled.unet.conv_out.register_forward_hook(lambda module, *_: ends.append(module))
    found = audit.screen(compiled, CAPTIONS, detectors=[detector])
    handle.remove()
    assert found[detector] == expected[detector]
    assert bool(ends) == (detector == "caption_response")


def test_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="no blocks to compile"):
        compile_blocks(nn.Sequential(nn.Linear(2, 2)), "model")


def test_more_variants_than_usual_are_compiled() -> None:
    compile_blocks(flat_unet(), backend="eager")
    assert torch._dynamo.config.recompile_limit >= 256
