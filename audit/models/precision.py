"""Choose the dtype that a model runs in. Some quantities stay in float32 whatever the dtype.

Weights and activations of the text encoder, the UNet and the VAE have the model's dtype. The initial noise, the latents
between steps, the scheduler, predicted noise and every score are in float32 or better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from audit.errors import UsageError

if TYPE_CHECKING:  # the configuration uses these names and is read without torch
    import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """Return the dtype to run in on a device.

    Args:
        name: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU with native support (NVIDIA: Ampere and
            newer), float16 on an older GPU, float32 on the CPU.
        device: Device that the model will run on.

    Raises:
        UsageError: The name is none of these.
    """
    import torch

    names = get_args(DtypeName)
    if name not in names:
        raise UsageError(f"dtype is {name!r}", hint=f"Give one of: {', '.join(names)}.")
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype as in `engine.dtype`: "float32", "bfloat16" or "float16"."""
    return str(dtype).removeprefix("torch.")


def use_exact_float32() -> None:
    """Make float32 exact on a GPU: by default, cuDNN computes convolutions with 10 bits of mantissa (TF32).

    cuDNN also keeps to the same algorithms, instead of timing several ones for each shape.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def numerics() -> dict[str, bool]:
    """Return the flags of this process that change how a GPU rounds, for the record."""
    import torch

    return {
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def uses_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a model in this dtype on this device would round products or convolutions to TF32."""
    flags = numerics()
    rounds = flags["tf32_products"] or flags["tf32_convolutions"]
    return rounds and device.type == "cuda" and name_of(dtype) == "float32"


def overflow_hint(dtype: torch.dtype) -> str:
    """Return advice for a value that is not finite if the dtype may be the cause, else an empty string."""
    if name_of(dtype) != "float16":
        return ""
    return "; float16 ends at 65,504: set engine.dtype to bfloat16 or float32"
