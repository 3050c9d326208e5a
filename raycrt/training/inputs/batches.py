"""Where the rows of each step come from: a split in memory, or a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raycrt.data import Split


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's share of a batch of `rows` rows: `inputs` (n, ...) and `labels` (n,)."""

    inputs: Tensor
    labels: Tensor
    rows: int

    def moved_to(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels on the device of `like`, inputs in its type.

        Rows in main memory are copied to a GPU from pages that stay there, while the process goes
        on.
        """
        inputs, labels = (_moved(part, like.device) for part in (self.inputs, self.labels))
        return inputs.to(like.dtype), labels


class Batches(Protocol):
    """The batches of a training: those of one epoch after the other."""

    def __len__(self) -> int:
        """Rows of an epoch, those of all workers."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each batch of `epoch` (from 0): of rows in the `epoch_order`, cut
        into batches, every `size`-th row from its `rank` on."""


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """`Batches` of a split on the device of the network."""

    split: Split
    batch_size: int
    seed: int
    rank: int
    size: int

    def __len__(self) -> int:
        return len(self.split)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = epoch_order(len(self), self.seed, epoch).to(self.split.labels.device)
        for chosen in order.split(self.batch_size):
            ours = self.split.take(chosen[self.rank :: self.size])
            yield Batch(inputs=ours.images, labels=ours.labels, rows=len(chosen))


def _moved(part: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and part.device.type == "cpu":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in an epoch; depends only on seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)
