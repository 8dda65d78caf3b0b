"""A second rank for distributed training. This module imports nothing but torch, so that its process starts soon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def one_of_two_ranks(rank: int, folder: Path) -> Iterator[None]:
    """Join a group of two processes that share a folder."""
    store = f"file://{folder}/group"
    patience = timedelta(minutes=5)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    yield
    torch.distributed.destroy_process_group()


def train_as_the_other(_: int, parameters: list[nn.Parameter], groups: dict[int, Path]) -> None:
    """Run one step of training in each group.

    Args:
        parameters: Those of the network that the process at the other end trains.
        groups: The folder of each group, by the rank to have in it.
    """
    torch.set_num_threads(1)
    for rank, folder in groups.items():
        with one_of_two_ranks(rank, folder):
            DistributedDataParallel(_Sum(parameters))().backward()


class _Sum(nn.Module):
    """The sum of its parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)

    def forward(self) -> Tensor:
        return torch.stack([part.sum() for part in self.parts]).sum()
