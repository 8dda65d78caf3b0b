"""What a network is given of captions, whatever its family: batches of tensors, and the tokens that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.models.transfers import to_device

Rows = slice | Tensor

# Shapes: B rows, K text positions.


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of captions, on the CPU, and where attention to them belongs in the canonical layout.

    The canonical layout is [sink, words, END and padding]. The sink is the position that attends to no word: BOS, or
    END in a family without BOS. In joint attention, the attention to the image is added to it.

    Attributes:
        ids_BK: Token ids. Those of several tokenizers are side by side, so that there may be more than K.
        mask_BK: 1 for tokens, 0 for padding, at each text position that the image attends to.
        counts_B: Number of words plus two, so that END and padding begin at position `counts_B - 1`.
        end_B: Text position of END, as the network numbers its keys.
        order_BK: For each position of the canonical layout, the text position that belongs there; None if both layouts
            are the same.
    """

    ids_BK: Tensor
    mask_BK: Tensor
    counts_B: Tensor
    end_B: Tensor
    order_BK: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids_BK)

    def __getitem__(self, rows: Rows) -> Tokens:
        order_BK = None if self.order_BK is None else self.order_BK[rows]
        return Tokens(self.ids_BK[rows], self.mask_BK[rows], self.counts_B[rows], self.end_B[rows], order_BK)

    def same_as(self, other: Tokens | None) -> Tensor:
        """Tell which rows have the tokens of a single other row: [B] bool. None is no text, and the same as nothing."""
        if other is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return (self.ids_BK == other.ids_BK).all(1)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a network is given of captions, one row each.

    Attributes:
        tensors: The tensors by name, [B, ...] each, on the model's device.
        tokens: The tokens of the captions; None if the tensors are those of no text.
    """

    tensors: Mapping[str, Tensor]
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Rows) -> Conditioning:
        tensors = {
            name: tensor[rows if isinstance(rows, slice) else to_device(rows, tensor.device)]
            for name, tensor in self.tensors.items()
        }
        return Conditioning(tensors, None if self.tokens is None else self.tokens[rows])

    def to(self, device: torch.device) -> Conditioning:
        """Move the tensors to a device."""
        return Conditioning({name: to_device(tensor, device) for name, tensor in self.tensors.items()}, self.tokens)

    def expand(self, size: int) -> Conditioning:
        """Repeat a single row, without copying the tensors."""
        tensors = {name: tensor.expand(size, *tensor.shape[1:]) for name, tensor in self.tensors.items()}
        tokens = None if self.tokens is None else self.tokens[torch.zeros(size, dtype=torch.long)]
        return Conditioning(tensors, tokens)

    def towards(self, other: Conditioning, share: float) -> Conditioning:
        """Move by a share of the way towards a single other row. Tensors of whole numbers, such as masks, stay."""
        moved = {
            name: other.tensors[name] + (1 - share) * (tensor - other.tensors[name])
            if tensor.is_floating_point()
            else tensor
            for name, tensor in self.tensors.items()
        }
        return Conditioning(moved, self.tokens)

    def distance(self, other: Conditioning) -> Tensor:
        """Compute the Euclidean distance of each row from a single other row: [B], summed in float64."""
        parts = [
            (tensor - other.tensors[name]).double().reshape(len(tensor), -1)
            for name, tensor in self.tensors.items()
            if tensor.is_floating_point()
        ]
        return torch.cat(parts, dim=1).norm(dim=1)

    def isfinite(self) -> bool:
        """Tell whether all values are finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Join the rows of several conditionings. The tokens are left out, because one of them may be of no text."""
    return Conditioning({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})
