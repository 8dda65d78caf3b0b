"""Explain a caption's score: attention per token and step, entropy next to controls, score without each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from audit.calibration.calibration import Calibration
from audit.calibration.screening import screen_as
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import RUN
from audit.detectors.bright_ending import BrightEnding
from audit.detectors.detector import TrajectoryStep
from audit.detectors.entropy import entropy
from audit.errors import UsageError
from audit.images.png import map_png
from audit.models.conditioning import Conditioning
from audit.models.model import Model
from audit.scoring.batching import Rows
from audit.scoring.generation import denoise, produce
from audit.scoring.progress import CountSteps, Progress
from audit.scoring.screening import screen
from audit.scoring.supported import check_attention

# Shapes: B rows, L layers, K text positions, T steps, P positions (all padding counts as one), N captions.

Floats = npt.NDArray[np.float64]
BAND = (0.05, 0.95)


@dataclass(frozen=True, eq=False)
class Explanation:
    """The explanation of one caption.

    Attributes:
        caption: The caption.
        tokens: Its tokens in the canonical layout (`audit.models.conditioning.Tokens`), with "padding" if there is any.
            The first is named BOS, or EOS in a family without BOS, and "and image" in joint attention.
        attention_PT: Attention to each token in each step, averaged over layers (summed over the padding).
        entropy_T: Entropy over all text positions in each step, in nats.
        band_T2: 5 % and 95 % quantiles of the entropy of control captions; None if none were given.
        control_captions: Number of control captions.
        image: The generated image, PNG.
        region: The map of `bright_ending`, PNG.
        detector: Detector that the score is from.
        score: Score from the calibration, or `caption_response` without one.
        p_unseen: p-value from the calibration; None without one.
        moves: (position of a token, fall of the score without that token), largest fall first.
    """

    caption: str
    tokens: list[str]
    attention_PT: Floats
    entropy_T: Floats
    band_T2: Floats | None
    control_captions: int
    image: bytes
    region: bytes
    detector: str
    score: float
    p_unseen: float | None
    moves: list[tuple[int, float]]


@torch.inference_mode()
def explain(
    model: Model,
    caption: str,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    calibration: Calibration | None = None,
    control_captions: Sequence[str] = (),
    progress: Progress | None = None,
) -> Explanation:
    """Follow one guided run of a caption, and screen the caption without each of its tokens in turn.

    Args:
        model: The model to run.
        caption: The caption to explain.
        seed: Seed of the initial noise.
        steps: Number of denoising steps.
        guidance_scale: Classifier-free guidance scale.
        calibration: Calibration of a screening detector; the screen uses its seeds and resolution.
        control_captions: Run along with the caption, for the band of entropies.
        progress: Called after each step of a run and after each batch of a screen.

    Returns:
        The attention and its entropy in each step, the image, and how far the score falls without each token.

    Raises:
        UsageError: The calibration is of a detector that follows whole runs.
        AuditError: The calibration is of another model, or the model does not show its attention.
    """
    detector = DEFAULT_DETECTOR if calibration is None else calibration.detector
    if detector in RUN:
        what = f"the calibration is of {detector}, which follows whole runs"
        raise UsageError(what, hint=f"Give the calibration of a screening detector, such as {DEFAULT_DETECTOR}.")
    check_attention(model, "an explanation")
    rows = Rows(model, [caption], [seed], 1)
    batch = rows.batch(slice(0, 1))
    attended, bright = _Attended(), BrightEnding(batch.prompt_tokens_B, steps)
    counts = [CountSteps(progress, "follow the caption", batch.rows, steps, 1)] if progress is not None else []
    latents_BCHW, _ = denoise(rows, batch, steps, guidance_scale, [attended, bright, *counts])
    attn_TK = torch.cat(attended.attn_TBK).cpu().numpy()
    tokens = _tokens(model, caption, batch.conditioning)
    parts_PT = [*attn_TK.T[: len(tokens)]]
    if len(tokens) < attn_TK.shape[1]:
        parts_PT.append(attn_TK[:, len(tokens) :].sum(1))
        tokens.append("padding")
    score, p_unseen, moves = _left_out(model, caption, detector, seed, calibration, progress)
    return Explanation(
        caption=caption,
        tokens=tokens,
        attention_PT=np.array(parts_PT),
        entropy_T=entropy(torch.from_numpy(attn_TK)).numpy(),
        band_T2=_band(model, control_captions, seed, steps, guidance_scale, progress),
        control_captions=len(control_captions),
        image=produce(model, latents_BCHW, "image")["values"][0],
        region=map_png(bright.result()["region"][0].cpu().numpy(), *model.latent_shape[1:]),
        detector=detector,
        score=score,
        p_unseen=p_unseen,
        moves=moves,
    )


class _Attended:
    """Keeps the attention of every step, averaged over layers. Use it for few captions only."""

    needs_attention: ClassVar[bool] = True
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False

    def __init__(self) -> None:
        self.attn_TBK: list[Tensor] = []

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        assert seen.attn_BLK is not None
        self.attn_TBK.append(seen.attn_BLK.double().mean(1))


def _band(
    model: Model, captions: Sequence[str], seed: int, steps: int, guidance_scale: float, progress: Progress | None
) -> Floats | None:
    """Compute the 5 % and 95 % quantiles of the captions' entropy in each step: [T, 2]; None without captions."""
    if not captions:
        return None
    rows = Rows(model, captions, [seed], None)

    def follow(at: slice) -> Floats:
        attended = _Attended()
        counts = [CountSteps(progress, "follow control captions", at, steps, len(rows))] if progress is not None else []
        denoise(rows, rows.batch(at), steps, guidance_scale, [attended, *counts])
        return entropy(torch.stack(attended.attn_TBK)).cpu().numpy()

    entropy_TN = np.concatenate(rows.each("explain", follow), axis=1)
    return np.asarray(np.quantile(entropy_TN, BAND, axis=1).T, dtype=np.float64)


def _left_out(
    model: Model,
    caption: str,
    detector: str,
    seed: int,
    calibration: Calibration | None,
    progress: Progress | None,
) -> tuple[float, float | None, list[tuple[int, float]]]:
    """Return the caption's score, its p-value, and the score's fall without each word; other tokens are kept."""
    words = model.words(caption)
    without = {
        place: str(model.word_tokenizer.decode(words[: place - 1] + words[place:]))
        for place in range(1, len(words) + 1)
    }
    texts = list(dict.fromkeys([caption, *without.values()]))
    p_of: dict[str, float] = {}
    if calibration is None:
        table = screen(model, texts, [seed], [detector], progress=progress)
        values = table[detector].to_pylist()
    else:
        table = calibration.score(screen_as(calibration, model, texts, progress=progress))
        values = table["score"].to_pylist()
        p_of = dict(zip(table["caption"].to_pylist(), table["p_unseen"].to_pylist(), strict=True))
    score_of = dict(zip(table["caption"].to_pylist(), values, strict=True))
    moves = [(place, score_of[caption] - score_of[text]) for place, text in without.items()]
    return score_of[caption], p_of.get(caption), sorted(moves, key=lambda move: -move[1])


def _tokens(model: Model, caption: str, conditioning: Conditioning) -> list[str]:
    """Name what stands at each position of the canonical layout, up to the padding."""
    tokens = conditioning.tokens
    assert tokens is not None
    sink = "BOS" if tokens.order_BK is None or tokens.order_BK[0, 0] != tokens.end_B[0] else "EOS"
    words = model.word_texts(caption)
    ends = int(tokens.mask_BK.sum()) - 1 - len(words)
    return [f"{sink} and image" if model.places.joint else sink, *words, *["EOS"] * ends]
