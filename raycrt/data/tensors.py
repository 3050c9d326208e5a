"""Data sets as tensors, for networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.data.splits import Arrays, ArraySplits


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` float32 (n, features) or (n, channels, height, width), `labels` int64 (n,).

    Pixels of files are in [0, 1]; numbers that a source has as floats are left as they are.
    """

    images: Tensor
    labels: Tensor

    @staticmethod
    def of(arrays: Arrays) -> Split:
        """The same rows as `arrays`, whose memory is shared."""
        return Split(images=torch.from_numpy(arrays.images), labels=torch.from_numpy(arrays.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> Split:
        return Split(images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training rows, validation rows held out of the training set, and rows for the final test."""

    train: Split
    validation: Split
    test: Split

    @staticmethod
    def of(arrays: ArraySplits) -> Dataset:
        return Dataset(
            train=Split.of(arrays.train),
            validation=Split.of(arrays.validation),
            test=Split.of(arrays.test),
        )

    @property
    def fit(self) -> Split:
        """Training and validation rows together, on which the chosen configuration is trained."""
        return Split(
            images=torch.cat([self.train.images, self.validation.images]),
            labels=torch.cat([self.train.labels, self.validation.labels]),
        )
