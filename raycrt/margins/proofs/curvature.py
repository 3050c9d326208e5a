"""Curvature bounds of margins, behind one interface: the radii that points prove with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.error_tables import ErrorTables
from raycrt.margins.proofs.curvature_matrix import CurvatureMatrices
from raycrt.margins.proofs.proof import Measured, RadiusProof
from raycrt.margins.proofs.radius import Points
from raycrt.margins.tolerances import Tolerances


@dataclass(frozen=True, kw_only=True)
class NumberCurvature:
    """The bound `Hess f >= -m I`, with one number m per margin."""

    proof: RadiusProof

    def radius(
        self, points: Points, measured: Measured, m: Tensor, least: Tensor | None = None
    ) -> Tensor:
        """Radii (n,) proved by `points`, with the errors in `measured`, for margins of curvature m.
        If `least` (n,) is given, radii below it need not be the best that can be proved."""
        return self.proof.at_points(measured, m)


@dataclass(frozen=True, kw_only=True)
class MatrixCurvature(NumberCurvature):
    """The bound `Hess f >= -P` in addition, used where it may prove a larger radius than m."""

    matrices: CurvatureMatrices
    tables: ErrorTables
    tolerances: Tolerances

    def radius(
        self, points: Points, measured: Measured, m: Tensor, least: Tensor | None = None
    ) -> Tensor:
        radius = super().radius(points, measured, m)
        # No curvature bound proves more than the distance to the tangent plane of the point.
        plane = (points.value - points.gu) / points.gg.sqrt()
        able = plane > radius * (1 + self.tolerances.tight)
        if least is not None:
            able &= (radius < least) & (least < plane)
        short = able.nonzero()[:, 0]
        if len(short) == 0:
            return radius
        measured = measured.take(short)
        # The checker picks its own multiplier, so leave it some slack.
        checked = self.tolerances.checked * self.tables.gradient(measured.point_norm)
        measured = replace(measured, gradient_error=torch.maximum(measured.gradient_error, checked))
        matrix = self.matrices.at(
            measured.label, measured.target, points.gradient[short], points.u[short]
        )
        closer = self.proof.by_matrix(measured, matrix)
        radius[short] = torch.maximum(radius[short], closer)
        return radius


Curvature = NumberCurvature | MatrixCurvature
