"""The way back from a margin to z_1, with the lengths that bound its rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.network import Network
from raycrt.rounding import root_upper, squares


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Bounds (n,), float64, of the lengths of cotangents as they were computed on the way back.

    `between` holds those before and after each matrix, from the top to z_1, and `last` is the
    gradient's in z_1.
    """

    between: tuple[Tensor, ...]
    last: Tensor

    def take(self, rows: Tensor) -> Lengths:
        return Lengths(between=tuple(b[rows] for b in self.between), last=self.last[rows])

    @staticmethod
    def concatenate(parts: Sequence[Lengths]) -> Lengths:
        return Lengths(
            between=tuple(torch.cat(b) for b in zip(*(p.between for p in parts), strict=True)),
            last=torch.cat([part.last for part in parts]),
        )


def pull_back(
    network: Network, slopes: Sequence[Tensor], cotangent: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Lengths]:
    """The gradient in z_1 (n, width) of `<cotangent, last hidden layer>`, in the memory of `out` if
    that is given, and the lengths on the way. The memory of `cotangent` is used up."""
    between = []
    for k in range(network.depth - 2, 0, -1):
        layer = network.layers[k]
        before = cotangent.mul_(slopes[k])
        cotangent = layer.transpose(before)
        between += [
            root_upper(squares(before), layer.out_features),
            root_upper(squares(cotangent), layer.in_features),
        ]
    gradient = torch.mul(cotangent, slopes[0], out=cotangent if out is None else out)
    last = root_upper(squares(gradient), network.layers[0].out_features)
    return gradient, Lengths(between=tuple(between), last=last)
