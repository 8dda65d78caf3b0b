"""Embed images as unit vectors whose inner product is the similarity of two images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from audit.errors import AuditError
from audit.models.files import sha256_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")

BATCH = 64
# Largest number of pixels per batch: batches of larger inputs are smaller.
BATCH_PIXELS = BATCH * 320 * 320


@dataclass(frozen=True)
class Embedder:
    """A network with its own preprocessing.

    Attributes:
        name: Name of the embedder in the audit.
        width: Length of a vector.
        sha256: Hash of every file that the vectors depend on, by file name.
        preprocess: Converts an image to a tensor [C, H, W].
        encode: Maps a batch [B, C, H, W] to vectors [B, width].
        device: Device to run on.
        encode_text: Maps B texts to vectors [B, width] in the same space; None if the network has no text encoder.
        preparation: Describes what `preprocess` does.
    """

    name: str
    width: int
    sha256: dict[str, str]
    preprocess: Callable[[Image.Image], Tensor]
    encode: Callable[[Tensor], Tensor]
    device: str = "cpu"
    encode_text: Callable[[Sequence[str]], Tensor] | None = None
    preparation: str = ""

    @property
    def fingerprint(self) -> dict[str, str]:
        """Everything that distinguishes its vectors from those of another embedder, by part."""
        from audit.images.decoding import VERSION

        return self.sha256 | {"preprocessing": f"{VERSION}: {self.preparation}"}

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed images of any mode and size: float32 [N, width], rows of norm 1.

        Raises:
            AuditError: A vector is not finite.
        """
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        found = [self.vectors([self.preprocess(image) for image in part]) for part in parts]
        return np.concatenate([np.empty((0, self.width), np.float32), *found])

    def vectors(self, inputs: Sequence[Tensor]) -> np.ndarray:
        """Embed N preprocessed images, tensors [C, H, W] whose sizes may differ: float32 [N, width], rows of norm 1."""
        import torch

        vectors_NE = np.empty((len(inputs), self.width), dtype=np.float32)
        for places in _batches(inputs):
            batch_BCHW = torch.stack([inputs[n] for n in places])
            vectors_NE[places] = self._unit(self.encode, batch_BCHW.to(self.device))
        return vectors_NE

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 [N, width], rows of norm 1.

        The inner product with an image's vector is the CLIP score (Hessel et al., 2021, without its factor of 2.5).

        Raises:
            AuditError: The network has no text encoder, or a vector is not finite.
        """
        encode = self.encode_text
        if encode is None:
            what = f"embedder {self.name} has no text encoder that works offline"
            raise AuditError(what, hint="Give an open_clip model with a tokenizer of its own.", kind="embedding")
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        found = [self._unit(encode, part) for part in parts]
        return np.concatenate([np.empty((0, self.width), np.float32), *found])

    def _unit(self, encode: Callable[[T], Tensor], batch: T) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors_BE = torch.nn.functional.normalize(encode(batch).float(), dim=1).cpu().numpy()
        if not np.isfinite(vectors_BE).all():
            raise AuditError(f"embedder {self.name} returned a vector that is not finite", kind="embedding")
        return vectors_BE


def _batches(inputs: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of inputs in batches of equal shape."""
    alike = defaultdict(list)
    for n, input_CHW in enumerate(inputs):
        alike[input_CHW.shape].append(n)
    for shape, places in alike.items():
        size = min(BATCH, max(1, BATCH_PIXELS // shape[1:].numel()))
        for start in range(0, len(places), size):
            yield places[start : start + size]


def embedder_of(
    name: str,
    files: dict[str, Path],
    preparation: str,
    preprocess: Callable[[Image.Image], Tensor],
    encode: Callable[[Tensor], Tensor],
    device: str,
    encode_text: Callable[[Sequence[str]], Tensor] | None = None,
) -> Embedder:
    """Make an Embedder; hash its files and find its width by encoding a grey picture.

    Args:
        name: Name of the embedder in the audit.
        files: Files that the vectors depend on, by name.
        preparation: Describes what `preprocess` does.
        preprocess: Converts an image to a tensor [C, H, W].
        encode: Maps a batch [B, C, H, W] to vectors [B, width].
        device: Device to run on.
        encode_text: Maps texts to vectors in the same space, if the network can.

    Returns:
        The embedder, with its width and the hashes of its files.
    """
    import torch
    from PIL import Image

    with torch.inference_mode():
        width = int(encode(preprocess(Image.new("RGB", (64, 64), "grey"))[None].to(device)).shape[1])
    sha256 = {part: sha256_of([path]) for part, path in files.items()}
    return Embedder(name, width, sha256, preprocess, encode, device, encode_text, preparation)
