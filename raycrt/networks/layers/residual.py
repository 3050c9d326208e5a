"""The affine maps of residual blocks: `x + V s(W x + b)` is `[W; I]`, an activation on the rows of
W alone, and `[V I]`; between two activations of a block stands `[W 0; 0 I]`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from raycrt.errors import require
from raycrt.networks.layers.affine import AffineMap
from raycrt.networks.layers.diagonal import Identity


def _added(parts: Iterable[Tensor]) -> Tensor:
    return reduce(operator.add, parts)


class Parts(AffineMap):
    """Several maps side by side; the family's common part.

    An entry of a result is computed by one of the maps, or is the sum of one entry of each.
    """

    def __init__(self, parts: Sequence[AffineMap]) -> None:
        super().__init__()
        require(len(parts) > 0, "at least one map", maps=len(parts))
        self.parts = nn.ModuleList(parts)

    @property
    def maps(self) -> list[AffineMap]:
        """The maps in their order, typed."""
        return list(self.parts)  # type: ignore[arg-type]

    @property
    def terms(self) -> int:
        return max(part.terms for part in self.maps) + len(self.maps)

    @property
    def sums_in_float32(self) -> bool:
        return all(part.sums_in_float32 for part in self.maps)

    def rows(self, v: Tensor) -> tuple[Tensor, ...]:
        """`v` (..., out_features) cut into the results of maps side by side."""
        return v.split([part.out_features for part in self.maps], -1)

    def columns(self, v: Tensor) -> tuple[Tensor, ...]:
        """`v` (..., in_features) cut into the inputs of maps side by side."""
        return v.split([part.in_features for part in self.maps], -1)


class Stack(Parts):
    """Maps of one input with their results one after the other: W is `[W_1; W_2; ...]`."""

    def __init__(self, parts: Sequence[AffineMap]) -> None:
        super().__init__(parts)
        sizes = [part.in_features for part in parts]
        require(len(set(sizes)) == 1, "stacked maps have one input", in_features=sizes)
        self.in_features = sizes[0]
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.maps], -1)

    def linear(self, x: Tensor) -> Tensor:
        return torch.cat([part.linear(x) for part in self.maps], -1)

    def transpose(self, cotangent: Tensor) -> Tensor:
        given = self.rows(cotangent)
        return _added(part.transpose(own) for part, own in zip(self.maps, given, strict=True))

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        given = self.rows(weights)
        return _added(
            part.transpose_absolute(own) for part, own in zip(self.maps, given, strict=True)
        )

    def linear_absolute(self, x: Tensor) -> Tensor:
        return torch.cat([part.linear_absolute(x) for part in self.maps], -1)

    def row_norms(self) -> Tensor:
        return torch.cat([part.row_norms() for part in self.maps])

    def matrix(self) -> Tensor:
        return torch.cat([part.matrix() for part in self.maps])

    def offset(self) -> Tensor:
        return torch.cat([part.offset() for part in self.maps])


class Sum(Parts):
    """Maps of consecutive parts of the input with their results added: W is `[W_1 W_2 ...]`."""

    def __init__(self, parts: Sequence[AffineMap]) -> None:
        super().__init__(parts)
        sizes = [part.out_features for part in parts]
        require(len(set(sizes)) == 1, "added results have one size", out_features=sizes)
        self.in_features = sum(part.in_features for part in parts)
        self.out_features = sizes[0]

    def forward(self, x: Tensor) -> Tensor:
        given = self.columns(x)
        return _added(part(own) for part, own in zip(self.maps, given, strict=True))

    def linear(self, x: Tensor) -> Tensor:
        given = self.columns(x)
        return _added(part.linear(own) for part, own in zip(self.maps, given, strict=True))

    def transpose(self, cotangent: Tensor) -> Tensor:
        return torch.cat([part.transpose(cotangent) for part in self.maps], -1)

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return torch.cat([part.transpose_absolute(weights) for part in self.maps], -1)

    def linear_absolute(self, x: Tensor) -> Tensor:
        given = self.columns(x)
        return _added(part.linear_absolute(own) for part, own in zip(self.maps, given, strict=True))

    def row_norms(self) -> Tensor:
        return _added(part.row_norms().square() for part in self.maps).sqrt()

    def matrix(self) -> Tensor:
        return torch.cat([part.matrix() for part in self.maps], 1)

    def offset(self) -> Tensor:
        return _added(part.offset() for part in self.maps)


class DirectSum(Parts):
    """Maps of consecutive parts of the input with their results one after the other: W is
    block-diagonal, `[W_1 0; 0 W_2; ...]`."""

    def __init__(self, parts: Sequence[AffineMap]) -> None:
        super().__init__(parts)
        self.in_features = sum(part.in_features for part in parts)
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        given = zip(self.maps, self.columns(x), strict=True)
        return torch.cat([part(own) for part, own in given], -1)

    def linear(self, x: Tensor) -> Tensor:
        given = zip(self.maps, self.columns(x), strict=True)
        return torch.cat([part.linear(own) for part, own in given], -1)

    def transpose(self, cotangent: Tensor) -> Tensor:
        given = zip(self.maps, self.rows(cotangent), strict=True)
        return torch.cat([part.transpose(own) for part, own in given], -1)

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        given = zip(self.maps, self.rows(weights), strict=True)
        return torch.cat([part.transpose_absolute(own) for part, own in given], -1)

    def linear_absolute(self, x: Tensor) -> Tensor:
        given = zip(self.maps, self.columns(x), strict=True)
        return torch.cat([part.linear_absolute(own) for part, own in given], -1)

    def row_norms(self) -> Tensor:
        return torch.cat([part.row_norms() for part in self.maps])

    def matrix(self) -> Tensor:
        return torch.block_diag(*(part.matrix() for part in self.maps))

    def offset(self) -> Tensor:
        return torch.cat([part.offset() for part in self.maps])


class Selection(Identity):
    """Some of the consecutive parts of the input, each once and in their order.

    `sizes` are those of all parts, `kept` the numbers of those in the result.
    """

    def __init__(self, sizes: Sequence[int], kept: Sequence[int]) -> None:
        super().__init__(sum(sizes[k] for k in kept))
        require(
            list(kept) == sorted(set(kept)), "each part is kept once, in its order", kept=list(kept)
        )
        self.sizes, self.kept = tuple(sizes), tuple(kept)
        self.in_features = sum(sizes)

    def linear(self, x: Tensor) -> Tensor:
        parts = x.split(self.sizes, -1)
        return torch.cat([parts[k] for k in self.kept], -1)

    def transpose(self, cotangent: Tensor) -> Tensor:
        given = iter(cotangent.split([self.sizes[k] for k in self.kept], -1))
        rest = cotangent.shape[:-1]
        return torch.cat(
            [
                next(given) if k in self.kept else cotangent.new_zeros(*rest, size)
                for k, size in enumerate(self.sizes)
            ],
            -1,
        )

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return self.transpose(weights)

    def linear_absolute(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def matrix(self) -> Tensor:
        return self.linear(torch.eye(self.in_features).to(self.like)).T
