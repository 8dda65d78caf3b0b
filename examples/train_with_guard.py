"""Fine-tune Stable Diffusion on a folder of images without memorizing them: diffusers' loop plus two lines.

    python examples/train_with_guard.py --model runwayml/stable-diffusion-v1-5 --data my-images --out my-model

`--control-captions` is a file of captions that are not trained on, one per line. Samples are then compared with these.
`--data` is an image folder in the format of `datasets`: images and a metadata.jsonl with `file_name` and `text`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torchvision.transforms import v2

import audit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="diffusers folder or hub id to start from")
parser.add_argument("--data", required=True, type=Path)
parser.add_argument("--out", required=True, type=Path)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=1e-5)
parser.add_argument("--control-captions", type=Path, help="file of captions that are not trained on, one per line")
parser.add_argument("--max-quantile", type=float, default=0.99)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline = StableDiffusionPipeline.from_pretrained(args.model, use_safetensors=True, safety_checker=None)
unet, vae, text_encoder = pipeline.unet.to(device), pipeline.vae.to(device), pipeline.text_encoder.to(device)
vae.requires_grad_(False)
text_encoder.requires_grad_(False)
unet.train()
noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate)

side = unet.config.sample_size * pipeline.vae_scale_factor
to_pixels = v2.Compose(
    [
        v2.Resize(side),
        v2.CenterCrop(side),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),
    ]
)
examples = [json.loads(line) for line in (args.data / "metadata.jsonl").read_text().splitlines()]


def encode(captions: list[str]) -> torch.Tensor:
    """Return the hidden states of captions."""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return text_encoder(tokens.to(device))[0]


control_captions = args.control_captions.read_text().splitlines() if args.control_captions else []


def hidden_states(count: int) -> torch.Tensor:
    """Return the hidden states of `count` control captions, drawn at random."""
    return encode([control_captions[i] for i in torch.randint(len(control_captions), (count,))])


guard = audit.TrainingGuard(  # the first line
    unet,
    max_quantile=args.max_quantile,
    control_captions=hidden_states if control_captions else None,
    log=args.out / "guard",
)

for step in range(args.steps):
    batch = [examples[i] for i in torch.randint(len(examples), (args.batch_size,))]
    pixels = torch.stack([to_pixels(Image.open(args.data / row["file_name"]).convert("RGB")) for row in batch])
    with torch.no_grad():
        latents = vae.encode(pixels.to(device)).latent_dist.sample() * vae.config.scaling_factor
    hidden = encode([row["text"] for row in batch])
    noise = torch.randn_like(latents)
    timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (len(batch),), device=device)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    target = noise
    if noise_scheduler.config.prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(latents, noise, timesteps)

    prediction = unet(noisy, timesteps, hidden).sample
    loss_per_sample = (prediction.float() - target.float()).square().mean((1, 2, 3))
    weights = guard.weights(ids=[row["file_name"] for row in batch])  # the second line
    loss = (weights * loss_per_sample).mean()

    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step + 1 == args.steps:
        print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}", flush=True)

guard.close()
print(f"{guard.silenced} of {guard.seen} samples had no weight; they are listed in {args.out / 'guard'}")
pipeline.save_pretrained(args.out)
