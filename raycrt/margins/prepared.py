"""A network prepared for certification: copies in both precisions, directions of its first layer,
and bounds of rounding errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.error_tables import Bounds
from raycrt.bounds.rounding import root_upper, squares
from raycrt.margins.curvature_matrix import CurvatureMatrices
from raycrt.margins.first_layer import Directions, Space, Span, spaces
from raycrt.margins.gradient_norms import Leading, Measure, Pairs
from raycrt.margins.proof import Prover
from raycrt.networks.network import Network, Readout


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


# Gradients that are off by this, relatively, cost about half its square of a radius.
_CLOSE_GRADIENT = 2e-3


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What estimates, proofs and their error bounds need of a network.

    `fast` and `exact` are the network in the solver's type and in float64, and gradients of proofs
    are taken by way of `backward`, one of the two. Points are proved in `space`; `directions` are
    the coordinates that the solver starts in, those of the space where that is None. `measure`
    bounds lengths of gradients, of all classes at once where there are `pairs`. `distances` bounds
    those of two rows of the last matrix, and `turning` (classes, classes) the curvature of margins
    from above and below; `matrices` bound it by directions.
    """

    fast: Network
    exact: Network
    backward: Network
    fast_readout: Readout
    exact_readout: Readout
    directions: Directions | None
    space: Space
    measure: Measure
    pairs: Pairs | None
    prover: Prover
    bounds: Bounds
    distances: Tensor
    turning: Tensor
    matrices: CurvatureMatrices | None

    @staticmethod
    @torch.no_grad()
    def of(network: Network, dtype: torch.dtype, curvature: Tensor, prover: Prover) -> Arithmetic:
        """`dtype` is the solver's type, `curvature` (classes, classes) the margins' proved one."""
        fast, exact = network.copied(dtype), network.in_float64()
        readout = exact.readout()
        label = torch.arange(exact.classes, device=readout.rows.device)
        cotangent = readout.margin(label, label.roll(1))
        typical = exact.pull_back_hidden(_middling_slopes(exact, cotangent), cotangent)
        measure, directions, space = spaces(exact.layers[0], fast.layers[0], prover.errors, typical)
        pairs = None
        if isinstance(measure, Leading) and network.depth == 2:
            pairs = Pairs.of(measure, readout)
        by = Arithmetic(
            fast=fast,
            exact=exact,
            backward=fast,
            # Rounded once, however many matrices the last layer is made of.
            fast_readout=readout.to(dtype),
            exact_readout=readout,
            directions=directions,
            space=space,
            measure=measure,
            pairs=pairs,
            prover=prover,
            bounds=Bounds.of(prover.errors, space.slack),
            distances=readout.distances() * (1 + 1e-9),
            turning=torch.maximum(curvature, curvature.T).to(readout.rows.device),
            matrices=CurvatureMatrices.of(exact, space),
        )
        return by if by._gradients_are_close() else replace(by, backward=exact)

    def _gradients_are_close(self) -> bool:
        """Whether proofs lose next to nothing by gradients in the solver's type: of neighbouring
        classes' margins at middling slopes."""
        label = torch.arange(self.exact.classes, device=self.distances.device)
        target = label.roll(1)
        cotangent = self.fast_readout.margin(label, target)
        above, way = pull_back(self.fast, _middling_slopes(self.fast, cotangent), cotangent)
        steepness = squares(self.space.pull(above)).double().sqrt()
        length = torch.full_like(steepness, self.exact.features**0.5)
        off = self.off_gradient(way, label, target, length, self.fast.dtype) / steepness
        return bool(off.nan_to_num(torch.inf).mean() <= _CLOSE_GRADIENT)

    @property
    def rounds(self) -> bool:
        """Whether iterates are proved with more rounding than the points that are kept would be."""
        return self.backward is not self.exact or isinstance(self.space, Span)

    def off_gradient(
        self, way: Lengths, label: Tensor, target: Tensor, length: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Bounds (n,) of what gradients in the space, taken in `dtype`, are off by, from the
        lengths on their `way`.

        The margins (label, target) were taken at points of length `length` (n,). What is taken off
        is never less than float64 in all pixels asks for, so that a checker finds it there.
        """
        errors, slack = self.prover.errors, self.bounds.slack
        sizes = [self.distances[label, target], *way.between]
        error = errors.pulled_back(sizes, self.bounds.hidden(length, dtype), dtype)
        off = errors.at_input(error, way.last, dtype, slack)
        return torch.maximum(off, self.bounds.gradient(length))

    def lengths(self, slopes: Sequence[Tensor], label: Tensor, length: Tensor) -> Tensor:
        """Proved bounds (n, classes) of the lengths of all margins' gradients at images of length
        `length` (n,), from the slopes there in the solver's type."""
        errors = self.prover.errors
        off = [each[:, None] for each in self.bounds.hidden(length, self.fast.dtype)]
        sizes = [self.distances[label]]
        if self.pairs is not None and isinstance(self.measure, Leading):
            given, pulled = self.pairs(slopes[0], label)
            lost = self.pairs.lost(sizes[0])
            reach = self.measure.length_upper(given, pulled, errors, lost)
        else:
            measured, ways = [], []
            own = self.fast_readout.rows.index_select(0, label)
            for other in self.fast_readout.rows:
                gradient, way = pull_back(self.fast, slopes, own - other)
                measured.append(torch.stack(self.measure(gradient)))
                ways.append(way.between)
            given, pulled = torch.stack(measured, 2)
            reach = self.measure.length_upper(given, pulled, errors)
            sizes += [torch.stack(each, 1) for each in zip(*ways, strict=True)]
        error = errors.spectral[0] * errors.pulled_back(sizes, off, self.fast.dtype)
        return reach + torch.maximum(error, self.bounds.gradient(length)[:, None])


def _middling_slopes(network: Network, like: Tensor) -> list[Tensor]:
    slope = sum(network.activation.slope_range) / 2
    widths = [layer.out_features for layer in network.layers[:-1]]
    return [like.new_full((len(like), width), slope) for width in widths]
