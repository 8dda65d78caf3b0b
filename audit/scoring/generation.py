"""Generate images with a full guided run, which yields images and trajectory scores together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from audit.detectors import run_detectors
from audit.detectors.detector import Follower, TrajectoryStep
from audit.errors import UsageError
from audit.images.png import png
from audit.models.conditioning import joined
from audit.models.model import Model
from audit.models.own_pipeline import Ended
from audit.models.schedule import guide
from audit.scoring.batching import Batch, Rows
from audit.scoring.memory import at_once, in_batches, waits_on
from audit.scoring.non_finite import first_not_finite
from audit.scoring.progress import CountSteps, Progress
from audit.scoring.supported import check_supported

# Shapes: B rows, Q image queries, K text positions; C, H and W of the latent, h and w of the image.

OUTPUTS = ("image", "latents")
DECODED_TOGETHER = 4  # at 512 pixels the decoder needs about 1 GiB per image, many times what the UNet needs
ENCODERS = 4  # threads that compress images


@torch.inference_mode()
def generate(
    model: Model,
    captions: Sequence[str],
    seeds: Sequence[int] = (0,),
    steps: int = 50,
    guidance_scale: float = 7.5,
    detectors: Sequence[str] = (),
    output: Literal["image", "latents"] = "image",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """Generate images of captions: one row per caption and seed, caption-major, as in `audit.schema.scored`.

    The sampler is DDIM with eta 0, or Euler for models trained by flow matching. Latents equal those of the family's
    pipeline in diffusers with that scheduler and the same noise (`Model.pipeline`). A pipeline without a family runs by
    its own call, one image at a time, with its own scheduler.

    Args:
        model: The model to run.
        captions: Captions to generate.
        seeds: Seeds of the initial noise.
        steps: Number of denoising steps.
        guidance_scale: Classifier-free guidance scale; 1 or below means no guidance.
        detectors: Names of trajectory detectors to run along.
        output: "image" adds the column `image` (PNG bytes), "latents" adds `latents` (C x H x W values).
        batch_size: Rows per batch; by default 16 on the CPU. On a GPU 64 at first, doubled while that makes rows
            faster, and halved when memory runs out.
        progress: Called after each step of a batch.

    Returns:
        The generations. Values that are not finite are null, and their row has status "error".

    Raises:
        UsageError: The output or a detector is unknown, the number of steps is invalid, or captions, seeds or the
            batch size are.
        AuditError: A detector reads what the model does not show.
    """
    if output not in OUTPUTS:
        raise UsageError(f"output is {output!r}", hint=f"Give one of: {', '.join(OUTPUTS)}.")
    chosen = run_detectors(detectors)
    check_supported(model, chosen)
    rows = Rows(model, captions, seeds, 1 if model.OWN_LOOP else batch_size)
    model.check_steps(steps)  # even if there is nothing to generate

    def run(at: slice) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        batch = rows.batch(at)
        followers = [detector(batch.prompt_tokens_B, steps) for detector in chosen]
        counts = [CountSteps(progress, "generate", at, steps, len(rows))] if progress is not None else []
        latents_BCHW, broken_B = denoise(rows, batch, steps, guidance_scale, [*followers, *counts])
        for row in (broken_B >= 0).nonzero().flatten().tolist():
            _locate(rows, batch.one(row), steps, guidance_scale, int(broken_B[row]))
        results = [follower.result() for follower in followers]
        found = {name: value.cpu().numpy() for part in results for name, value in part.items()}
        # Images are compressed while the next ones are made. At 512 pixels it takes tens of milliseconds per image.
        return found, produce(model, latents_BCHW, output, lambda pixels_hw3: encoder.submit(png, pixels_hw3))

    with ThreadPoolExecutor(ENCODERS) as encoder:
        done = rows.each("generate", run)
    together = [detector.columns for detector in chosen]
    context = rows.context(chosen) | {"steps": steps, "guidance_scale": guidance_scale}
    context["weights"]["vae"] = model.weights_sha256["vae"]
    found, produced = [found for found, _ in done], [produced for _, produced in done]
    if output == "image":
        for part in produced:
            part["values"] = [value.result() for value in part["values"]]
    return rows.table(together, found, context, output=output, produced=produced)


def decode(model: Model, latents_BCHW: Tensor) -> Tensor:
    """Decode latents to images: [B, 3, h, w], values 0 to 1, float32."""
    return (model.decode(latents_BCHW).float() / 2 + 0.5).clamp(0, 1)


def _locate(rows: Rows, one: Batch, steps: int, guidance_scale: float, step: int) -> None:
    """Note where a row, whose latents are not finite from the given step on, stopped being finite."""
    if rows.model.OWN_LOOP:
        rows.broken_at[one.rows.start] = f"latents, step {step + 1} of {steps}"
        return
    latents_1CHW, _ = denoise(rows, one, steps, guidance_scale, (), until=step)
    timestep = rows.model.schedule(steps).timesteps[step]
    found = first_not_finite(rows, one, latents_1CHW, timestep) or "latents"
    rows.broken_at[one.rows.start] = f"{found}, step {step + 1} of {steps} (t = {timestep:g})"


def denoise(
    rows: Rows,
    batch: Batch,
    steps: int,
    guidance_scale: float,
    followers: Sequence[Follower],
    until: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoise a batch. Followers see the conditional branch only.

    Args:
        rows: The rows that the batch belongs to.
        batch: The batch to denoise.
        steps: Number of denoising steps.
        guidance_scale: Classifier-free guidance scale.
        followers: Observe each step.
        until: Stop before this step.

    Returns:
        (final latents [B, C, H, W], first step after which each row's latents are not finite [B], -1 if they are).
    """
    model = rows.model
    if model.OWN_LOOP:
        return _by_pipeline(rows, batch, steps, guidance_scale, followers, until)
    schedule = model.schedule(steps)
    latents_BCHW = rows.noise_SCHW[batch.seed_B]
    size = len(latents_BCHW)
    guided = guidance_scale > 1 and model.GUIDED  # like diffusers: no guidance at 1 or below
    both = guided or any(follower.needs_response for follower in followers)
    conditioning = joined([rows.null.expand(size), batch.conditioning]) if both else batch.conditioning
    conditioning = model.with_guidance(conditioning, guidance_scale)
    conditional = slice(-size, None)
    broken_B = torch.full((size,), -1, device=latents_BCHW.device)
    last = len(schedule.timesteps) - 1
    with ExitStack() as probes:
        probe = end_probe = None
        if any(follower.needs_attention for follower in followers):
            probe = probes.enter_context(model.probe(batch.conditioning, rows=conditional))
        for step, timestep in enumerate(schedule.timesteps[:until]):
            if step == last and any(follower.needs_end for follower in followers):
                end_probe = probes.enter_context(model.end_probe(batch.conditioning, conditional))
            input_BCHW = torch.cat([latents_BCHW] * 2) if both else latents_BCHW
            output_BCHW = model.predict(input_BCHW, timestep, conditioning)
            conditional_BCHW = output_BCHW[-size:]
            response_BCHW = None
            if both:
                response_BCHW = schedule.response(output_BCHW[size:], output_BCHW[:size], step)
                response_BCHW = response_BCHW.masked_fill(batch.same_as_empty_B[:, None, None, None], 0)
            attn_BLK = probe.take() if probe else None
            end_BQ = end_probe.take() if end_probe else None
            noise_BCHW = guide(output_BCHW[:size], conditional_BCHW, guidance_scale) if guided else conditional_BCHW
            before_BCHW = latents_BCHW
            latents_BCHW = schedule.step(noise_BCHW, step, before_BCHW)
            alpha = schedule.alpha(step)
            for follower in followers:
                update_BCHW = latents_BCHW - before_BCHW
                follower.observe(step, TrajectoryStep(attn_BLK, response_BCHW, end_BQ, update_BCHW, alpha))
            bad_B = (broken_B < 0) & ~latents_BCHW.isfinite().flatten(1).all(1)
            broken_B = broken_B.masked_fill(bad_B, step)
    return latents_BCHW, broken_B


def _by_pipeline(
    rows: Rows,
    batch: Batch,
    steps: int,
    guidance_scale: float,
    followers: Sequence[Follower],
    until: int | None,
) -> tuple[Tensor, Tensor]:
    """Denoise a batch of one row by the call of its pipeline (see `denoise`). Followers see latents only."""
    caption, seed = divmod(batch.rows.start, len(rows.seeds))
    latents_1CHW = rows.noise_SCHW[seed : seed + 1]
    broken_1 = torch.full((1,), -1, device=latents_1CHW.device)

    def observe(step: int, before_1CHW: Tensor, after_1CHW: Tensor) -> None:
        nonlocal latents_1CHW
        device = latents_1CHW.device
        latents_1CHW = after_1CHW.float().to(device)
        update_1CHW = latents_1CHW - before_1CHW.float().to(device)
        for follower in followers:
            follower.observe(step, TrajectoryStep(update_BCHW=update_1CHW))
        bad_1 = (broken_1 < 0) & ~latents_1CHW.isfinite().flatten(1).all(1)
        broken_1.masked_fill_(bad_1, step)
        if step + 1 == until:
            raise Ended

    rows.model.run_own_loop(rows.captions[caption], latents_1CHW, rows.seeds[seed], steps, guidance_scale, observe)
    return latents_1CHW, broken_1


def produce(
    model: Model, latents_BCHW: Tensor, output: str, encode: Callable[[npt.NDArray[np.uint8]], Any] = png
) -> dict[str, Any]:
    """Turn latents into the output of each row, and tell which rows are finite.

    If memory runs out, fewer images are decoded at a time, so that the latents need not be made again.

    Args:
        model: The model whose autoencoder decodes.
        latents_BCHW: The final latents.
        output: "image" to decode the latents, "latents" to return them.
        encode: Encodes an image [h, w, 3].

    Returns:
        `values`, a list of B latents (float32, [C H W]) or encoded images, and `finite`, [B] bool.
    """
    finite_B = latents_BCHW.isfinite().flatten(1).all(1).cpu().numpy()
    if output == "latents":
        return {"values": list(latents_BCHW.float().flatten(1).cpu().numpy()), "finite": finite_B}

    def images(at: slice) -> tuple[list[Any], npt.NDArray[np.bool_]]:
        image_B3hw = decode(model, latents_BCHW[at])
        pixels_Bhw3 = (image_B3hw.nan_to_num() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        decoded_B = image_B3hw.isfinite().flatten(1).all(1).cpu().numpy()
        return [encode(pixels_hw3) for pixels_hw3 in pixels_Bhw3], decoded_B

    rows, waits = len(latents_BCHW), waits_on(model.device)
    parts = in_batches(rows, DECODED_TOGETHER, at_once(images), lambda smaller: None, waits)
    finite_B &= np.concatenate([decoded_B for _, decoded_B in parts])
    return {"values": [image for images, _ in parts for image in images], "finite": finite_B}
