"""Tell which pipelines can be mitigated, and name the part of a pipeline that cannot."""

from __future__ import annotations

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from audit.attention.probe import cross_attention_layers
from audit.errors import AuditError

# Processors that attend once per layer, with the queries and keys they were tested with (`audit.attention.seam`).
PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)
SUPPORTED = "Mitigation supports Stable Diffusion 1.x, 2.x and XL pipelines (UNet2DConditionModel + CLIPTextModel)."


def checked_unet(pipeline: DiffusionPipeline) -> UNet2DConditionModel:
    """Return the UNet of a pipeline, after checking that the pipeline's present parts can be mitigated.

    Raises:
        AuditError: A part of the pipeline, or an attention processor, is not supported.
    """
    kind = type(pipeline).__name__
    unet, encoder = getattr(pipeline, "unet", None), getattr(pipeline, "text_encoder", None)
    unet = getattr(unet, "_orig_mod", unet)  # unwrap torch.compile
    others = {name: getattr(pipeline, name, None) for name in ("text_encoder_2", "text_encoder_3", "controlnet")}
    extra = [
        name
        for name, part in others.items()
        if part is not None and not (name == "text_encoder_2" and isinstance(part, CLIPTextModelWithProjection))
    ]
    if not isinstance(unet, UNet2DConditionModel) or not isinstance(encoder, CLIPTextModel) or extra:
        denoiser = getattr(pipeline, "transformer", unet) if unet is None else unet
        found = " + ".join([type(denoiser).__name__, type(encoder).__name__, *extra])
        raise AuditError(f"{kind} has {found}", hint=SUPPORTED, kind="unsupported_model")
    for name, processor in unet.attn_processors.items():
        if type(processor).__name__ not in PROCESSORS:
            what = f"the attention processor {type(processor).__name__} cannot be mitigated"
            hint = f"Remove it (unload_ip_adapter, set_attn_processor). Supported: {', '.join(PROCESSORS)}."
            raise AuditError(what, where=name, hint=hint, kind="unsupported_model")
    if not cross_attention_layers(unet):
        what = "the UNet has no cross-attention layers"
        raise AuditError(what, where=kind, hint=SUPPORTED, kind="unsupported_model")
    return unet
