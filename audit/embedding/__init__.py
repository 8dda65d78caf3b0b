"""Image embedders: images to unit vectors whose inner product says how alike two images are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from audit.errors import AuditError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")

BATCH = 64
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


@dataclass(frozen=True)
class Embedder:
    """A network with its own preprocessing.

    `width`: length of a vector; `sha256`: of every file that the vectors depend on, by file name;
    `preprocess`: one image to a tensor [C, H, W]; `encode`: a batch [B, C, H, W] to [B, width];
    `encode_text`: B texts to [B, width], in the same space, for a network that knows texts.
    """

    name: str
    width: int
    sha256: dict[str, str]
    preprocess: Callable[[Image.Image], Tensor]
    encode: Callable[[Tensor], Tensor]
    device: str = "cpu"
    encode_text: Callable[[Sequence[str]], Tensor] | None = None

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Images of any mode and size to float32 [N, width], rows of norm 1; AuditError if a vector is not finite."""
        import torch

        def encode(part: Sequence[Image.Image]) -> Tensor:
            return self.encode(torch.stack([self.preprocess(image) for image in part]).to(self.device))

        return self._vectors(images, encode)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 [N, width], rows of norm 1: their inner product with an image's vector is the CLIP score
        (Hessel et al., 2021, without its factor of 2.5). Raises AuditError if the network knows no texts."""
        if self.encode_text is None:
            what = f"embedder {self.name} has no text encoder that works offline"
            raise AuditError(what, do="Give an open_clip folder with a tokenizer of its own.", kind="embedding")
        return self._vectors(texts, self.encode_text)

    def _vectors(self, items: Sequence[T], encode: Callable[[Sequence[T]], Tensor]) -> np.ndarray:
        import torch

        vectors_NE = np.empty((len(items), self.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(items), BATCH):
                encoded_BE = torch.nn.functional.normalize(encode(items[start : start + BATCH]).float(), dim=1)
                vectors_NE[start : start + BATCH] = encoded_BE.cpu().numpy()
        if not np.isfinite(vectors_NE).all():
            raise AuditError(f"embedder {self.name} gave a vector that is not finite", kind="embedding")
        return vectors_NE


def load_embedder(name: str, weights: str | Path, device: str = "cpu") -> Embedder:
    """The embedder in a local file or folder, under the name that the audit calls it by.

    A .safetensors file is a CopyDescriptor (audit/embedding/descriptor.py); a folder holds an open_clip
    model (audit/embedding/clip.py). Raises AuditError for anything else; a pickle is never opened.
    """
    path = Path(weights)
    where = f"embedder {name}: {path}"
    if not path.exists():
        raise AuditError("no such file or folder", where=where, do=f"Set confirm.{name}.weights to the weights.")
    encode_text = None
    if path.is_dir():
        from audit.embedding.clip import CONFIG, WEIGHTS, load_clip

        preprocess, encode, encode_text = load_clip(path, device)
        files = [path / CONFIG, path / WEIGHTS]
    elif path.suffix in PICKLES:
        raise AuditError(
            "a pickle can run code when it is opened, so it is refused", where=where, do="Convert it to .safetensors."
        )
    else:
        from audit.embedding.descriptor import CopyDescriptor

        descriptor = CopyDescriptor.load(path).to(device)
        preprocess, encode = descriptor.preprocess, descriptor
        files = [path]
    width = _width(preprocess, encode, device)
    sha256 = {file.name: _sha256(file) for file in files}
    return Embedder(name, width, sha256, preprocess, encode, device, encode_text)


def _width(preprocess: Callable[[Image.Image], Tensor], encode: Callable[[Tensor], Tensor], device: str) -> int:
    import torch
    from PIL import Image

    with torch.inference_mode():
        return int(encode(preprocess(Image.new("RGB", (64, 64)))[None].to(device)).shape[1])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
