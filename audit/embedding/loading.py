"""Load an embedder according to the format of its weights."""

from __future__ import annotations

from pathlib import Path

from audit.embedding.embedder import Embedder, embedder_of
from audit.embedding.published import PUBLISHED, find
from audit.errors import AuditError
from audit.models.hub_ids import is_hub_id


def load_embedder(
    name: str,
    weights: str | Path,
    device: str = "cpu",
    *,
    resize: str = "square_320",
    torchscript: bool = False,
    model: str | None = None,
) -> Embedder:
    """Load an embedder from its weights. No code in a pickle is ever run.

    Args:
        name: Name of the embedder in the audit.
        weights: One of: the name of a published SSCD model, found in the cache (audit/embedding/published.py); an SSCD
            file, `.torchvision.pt` or, with `torchscript`, `.torchscript.pt` (sscd.py); a `.safetensors` file of
            `CopyDescriptor` (descriptor.py); an open_clip folder, its `name/tag`, or with `model` a file with its
            weights (clip.py).
        device: Device to run on.
        resize: How SSCD resizes images: square_320 | short_288.
        torchscript: Whether TorchScript, which is a program, may be run.
        model: The open_clip architecture of a weights file.

    Returns:
        The embedder, on `device`.

    Raises:
        AuditError: The weights are none of these, or do not load.
    """
    known = find(str(weights)) if str(weights) in PUBLISHED else None
    path = known or Path(weights)
    if model is not None or path.is_dir() or (not path.exists() and is_hub_id(str(weights))):
        from audit.embedding.clip import load_clip

        return load_clip(name, str(weights), device, model)
    where = f"embedder {name}: {path}"
    if not path.exists():
        raise AuditError("no such file or folder", where=where, hint=f"Set confirm.{name}.weights to the weights.")
    if path.suffix == ".safetensors":
        from audit.embedding.descriptor import CopyDescriptor

        descriptor = CopyDescriptor.load(path).to(device)
        preparation = f"square {descriptor.config.image_size}, bicubic"
        return embedder_of(name, {path.name: path}, preparation, descriptor.preprocess, descriptor, device)
    if path.suffix in (".pt", ".pth"):
        from audit.embedding.sscd import load_sscd

        return load_sscd(name, path, device, resize, torchscript)
    raise AuditError(
        "neither .safetensors nor .pt: other formats are refused, because opening them may run code",
        where=where,
        hint="Give the weights of a copy descriptor, of SSCD (.torchvision.pt), or an open_clip folder.",
    )
