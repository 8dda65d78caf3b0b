"""The paper's released code is the authority: its numbers on two tiny models (tests/data/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import audit
from audit.detectors import RUN
from audit.detectors.detector import TrajectoryStep


@pytest.fixture(scope="module", params=["tiny-sd1", "tiny-sd2"])
def case(request: pytest.FixtureRequest, expected: dict[str, Any]) -> tuple[audit.Model, list[dict[str, Any]], str]:
    model = request.getfixturevalue({"tiny-sd1": "sd1", "tiny-sd2": "sd2"}[request.param])
    return model, expected[request.param], request.param


def keyed(table: Any) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["caption"], row["seed"]): row for row in table.to_pylist()}


def asked(pairs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {
        "captions": list(dict.fromkeys(pair["caption"] for pair in pairs)),
        "seeds": sorted({pair["seed"] for pair in pairs}),
    }


def test_single_step_entropy_and_prompt_tokens_are_those_of_the_paper(case: Any) -> None:
    model, pairs, _ = case
    found = keyed(audit.screen(model, **asked(pairs), detectors=["entropy_single_step"]))
    for pair in pairs:
        row = found[pair["caption"], pair["seed"]]
        assert row["prompt_tokens"] == pair["prompt_tokens"]
        assert row["entropy_single_step"] == pytest.approx(pair["E"], abs=1e-5)


class Recorder:
    """A run detector that keeps the attention of every step."""

    name, version, columns = "recorder", 1, ()
    needs_attention, needs_response, needs_end = True, False, False
    steps: ClassVar[list[torch.Tensor]] = []

    def __init__(self, prompt_tokens_B: torch.Tensor, steps: int) -> None:
        self.steps.clear()

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        assert seen.attn_BLK is not None
        self.steps.append(seen.attn_BLK)

    def result(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture(scope="module")
def generated(case: Any) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """The rows of a long and the empty caption after 50 steps with seed 0, and the attention of the first: [T, L, K].

    Of SD 2, the first alone.
    """
    model, pairs, name = case
    first, *_, empty = asked(pairs)["captions"]
    captions = [first, empty] if name == "tiny-sd1" else [first]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUN, "recorder", Recorder)
        table = audit.generate(model, captions, detectors=["entropy_trajectory", "recorder"], output="latents")
    return {row["caption"]: row for row in table.to_pylist()}, torch.stack(
        [attn_BLK[0] for attn_BLK in Recorder.steps]
    ).numpy()


@pytest.mark.slow
def test_trajectory_entropy_and_its_parts_are_those_of_the_paper(case: Any, generated: Any) -> None:
    _, pairs, name = case
    found, _ = generated
    assert len(found) == (2 if name == "tiny-sd1" else 1)
    for pair in (pair for pair in pairs if pair["seed"] == 0 and pair["caption"] in found):
        row = found[pair["caption"]]
        assert row["prompt_tokens"] == pair["prompt_tokens"]
        for column, name in (
            ("entropy_trajectory", "D_abs"),
            ("entropy_trajectory_signed", "D_signed"),
            ("entropy_last", "entropy_last"),
            ("summary_change", "delta_summary"),
        ):
            assert row[column] == pytest.approx(pair[name], abs=1e-5), column
        assert np.mean(row["latents"]) == pytest.approx(pair["final_latent_mean"], abs=1e-4)
        assert np.std(row["latents"]) == pytest.approx(pair["final_latent_std"], abs=1e-4)


def test_attention_of_every_layer_and_step_and_the_final_latent_are_those_of_the_paper(
    case: Any, generated: Any, data: Path
) -> None:
    _, pairs, name = case
    found, attn_TLK = generated
    reference = np.load(data / f"{name}-attention.npz")
    np.testing.assert_allclose(attn_TLK, reference["layer_mean"], atol=1e-5, rtol=0)
    latents = found[pairs[0]["caption"]]["latents"]
    np.testing.assert_allclose(latents, reference["final_latent"].ravel(), atol=5e-4, rtol=0)


def test_entropy_steps_and_token_attention_are_those_of_the_reference_attention(
    case: Any, generated: Any, data: Path
) -> None:
    _, pairs, name = case
    layers_TLK = np.load(data / f"{name}-attention.npz")["layer_mean"].astype(np.float64)
    row = generated[0][pairs[0]["caption"]]
    attn_TK = layers_TLK.mean(1)
    np.testing.assert_allclose(row["entropy_steps"], -(attn_TK * np.log(attn_TK)).sum(1), atol=1e-5)
    np.testing.assert_allclose(row["token_attention"], attn_TK[-10:].mean(0), atol=1e-5)
