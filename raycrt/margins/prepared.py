"""A network prepared for certification: copies in both precisions, the directions of its first
layer, and bounds on rounding errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.error_tables import ErrorTables
from raycrt.bounds.rounding import RoundingErrors, root_upper, squares
from raycrt.bounds.spectral import SLACK
from raycrt.margins.first_layer import Directions, Space, Span, spaces
from raycrt.margins.gradient_norms import Leading, Measure, Pairs
from raycrt.margins.proofs.curvature import Curvature, MatrixCurvature, NumberCurvature
from raycrt.margins.proofs.curvature_matrix import CurvatureMatrices
from raycrt.margins.proofs.proof import RadiusProof
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.floating_point import float32_is_plain
from raycrt.networks.network import Network, Readout


@dataclass(frozen=True, kw_only=True)
class CotangentNorms:
    """Upper bounds (n,), in float64, on the norms of the cotangents computed in a backward pass.

    `between` holds the bounds before and after each matrix, from the top layer down to z_1; `last`
    bounds the norm of the gradient in z_1.
    """

    between: tuple[Tensor, ...]
    last: Tensor

    def take(self, rows: Tensor) -> CotangentNorms:
        return CotangentNorms(between=tuple(b[rows] for b in self.between), last=self.last[rows])

    @staticmethod
    def concatenate(parts: Sequence[CotangentNorms]) -> CotangentNorms:
        return CotangentNorms(
            between=tuple(torch.cat(b) for b in zip(*(p.between for p in parts), strict=True)),
            last=torch.cat([part.last for part in parts]),
        )


def pull_back(
    network: Network, slopes: Sequence[Tensor], cotangent: Tensor, out: Tensor | None = None
) -> tuple[Tensor, CotangentNorms]:
    """The gradient in z_1 (n, width) of `<cotangent, last hidden layer>`, in `out` if given, and
    the norms of the backward pass. `cotangent` is overwritten."""
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
    return gradient, CotangentNorms(between=tuple(between), last=last)


@dataclass(frozen=True, kw_only=True)
class PreparedNetwork:
    """Everything that estimates, proofs and their error bounds need from a network.

    `fast` and `exact` are the network in the solver's type and in float64; proofs compute gradients
    through `backward`, one of the two. Points are proved in `space`; the solver starts in the
    coordinates of `directions`, or in those of the space if None. `measure` bounds gradient norms,
    for all classes at once where there are `pairs`. `distances` bounds the distances between rows
    of the last matrix, `curvature_both` (classes, classes) the curvature of margins from above and
    below. `curvature` proves radii of points, and `tables` bounds the errors of points.
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
    proof: RadiusProof
    tables: ErrorTables
    distances: Tensor
    curvature_both: Tensor
    curvature: Curvature
    tolerances: Tolerances

    @staticmethod
    @torch.no_grad()
    def of(
        network: Network,
        m: Tensor,
        *,
        tolerances: Tolerances,
        solves: bool = True,
        deployed: torch.dtype | None = None,
    ) -> PreparedNetwork:
        """`m` (classes, classes) is the proved curvature of the margins; `deployed` is the type of
        the deployment's arithmetic if radii are to hold for it. Without `solves` nothing is
        estimated, and everything is float64."""
        proof = RadiusProof(errors=RoundingErrors.of(network), deployed=deployed)
        dtype = _solver_type(network) if solves else torch.float64
        fast, exact = network.copied(dtype), network.in_float64()
        readout = exact.readout()
        label = torch.arange(exact.classes, device=readout.rows.device)
        cotangent = readout.margin(label, label.roll(1))
        typical = exact.pull_back_hidden(_middling_slopes(exact, cotangent), cotangent)
        measure, directions, space = spaces(
            exact.layers[0], fast.layers[0], proof.errors, typical, tolerances
        )
        pairs = None
        if isinstance(measure, Leading) and network.depth == 2:
            pairs = Pairs.of(measure, readout, tolerances.pair_numbers)
        tables = ErrorTables.of(proof.errors, space.slack)
        matrices = CurvatureMatrices.of(exact, space, tolerances.matrix_directions)
        curvature: Curvature = NumberCurvature(proof=proof)
        if matrices is not None:
            curvature = MatrixCurvature(
                proof=proof, matrices=matrices, tables=tables, tolerances=tolerances
            )
        prepared = PreparedNetwork(
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
            proof=proof,
            tables=tables,
            distances=readout.distances() * SLACK,
            curvature_both=torch.maximum(m, m.T).to(readout.rows.device),
            curvature=curvature,
            tolerances=tolerances,
        )
        return prepared if prepared._gradients_are_close() else replace(prepared, backward=exact)

    def _gradients_are_close(self) -> bool:
        """Whether proofs lose next to nothing with gradients in the solver's type, judged by the
        margins of neighbouring classes at mid-range slopes."""
        label = torch.arange(self.exact.classes, device=self.distances.device)
        target = label.roll(1)
        cotangent = self.fast_readout.margin(label, target)
        first, norms = pull_back(self.fast, _middling_slopes(self.fast, cotangent), cotangent)
        steepness = squares(self.space.pull(first)).double().sqrt()
        input_norm = torch.full_like(steepness, self.exact.features**0.5)
        error = self.gradient_error(norms, label, target, input_norm, self.fast.dtype) / steepness
        return bool(error.nan_to_num(torch.inf).mean() <= self.tolerances.close_gradient)

    @property
    def rounds(self) -> bool:
        """Whether proofs at iterates account for more rounding than proofs at the stored points."""
        return self.backward is not self.exact or isinstance(self.space, Span)

    def gradient_error(
        self,
        norms: CotangentNorms,
        label: Tensor,
        target: Tensor,
        input_norm: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Upper bounds (n,) on the errors of gradients in the space, computed in `dtype`, from the
        `norms` of the backward pass.

        The margins (label, target) are taken at points of norm `input_norm` (n,). The bound is
        never below that of float64 in all pixels, so it covers the error of a checker too.
        """
        errors, slack = self.proof.errors, self.tables.slack
        sizes = [self.distances[label, target], *norms.between]
        error = errors.pulled_back(sizes, self.tables.hidden(input_norm, dtype), dtype)
        error = errors.at_input(error, norms.last, dtype, slack)
        return torch.maximum(error, self.tables.gradient(input_norm))

    def gradient_norms(self, slopes: Sequence[Tensor], label: Tensor, input_norm: Tensor) -> Tensor:
        """Proved upper bounds (n, classes) on the norms of all margins' gradients at images of norm
        `input_norm` (n,), from the slopes there in the solver's type."""
        errors = self.proof.errors
        hidden = [each[:, None] for each in self.tables.hidden(input_norm, self.fast.dtype)]
        sizes = [self.distances[label]]
        if self.pairs is not None and isinstance(self.measure, Leading):
            given, pulled = self.pairs(slopes[0], label)
            lost = self.pairs.lost(sizes[0])
            computed = self.measure.norm_upper(given, pulled, errors, lost)
        else:
            measured, between = [], []
            own = self.fast_readout.rows.index_select(0, label)
            for other in self.fast_readout.rows:
                gradient, norms = pull_back(self.fast, slopes, own - other)
                measured.append(torch.stack(self.measure(gradient)))
                between.append(norms.between)
            given, pulled = torch.stack(measured, 2)
            computed = self.measure.norm_upper(given, pulled, errors)
            sizes += [torch.stack(each, 1) for each in zip(*between, strict=True)]
        error = errors.spectral[0] * errors.pulled_back(sizes, hidden, self.fast.dtype)
        return computed + torch.maximum(error, self.tables.gradient(input_norm)[:, None])


def _solver_type(network: Network) -> torch.dtype:
    """float32, or float64 where float32 results may be rounded further than sums of products."""
    plain = float32_is_plain() and all(layer.sums_in_float32 for layer in network.layers)
    return torch.float32 if plain else torch.float64


def _middling_slopes(network: Network, like: Tensor) -> list[Tensor]:
    ends = [each.slope_ends(like) for each in network.nonlinearities]
    return [((low + high) / 2).expand(len(like), -1) for low, high in ends]
