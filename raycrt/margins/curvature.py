"""What is known of the curvature of margins, behind one question: which radii do points prove?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.error_tables import ErrorTables
from raycrt.margins.curvature_matrix import CurvatureMatrices
from raycrt.margins.proof import Measured, RadiusProof
from raycrt.margins.radius import Points
from raycrt.margins.tolerances import Tolerances


@dataclass(frozen=True, kw_only=True)
class NumberCurvature:
    """`Hess f >= -m I`, with a number m for each margin."""

    proof: RadiusProof

    def radius(
        self, points: Points, measured: Measured, m: Tensor, least: Tensor | None = None
    ) -> Tensor:
        """Radii (n,) that `points`, with the errors in `measured`, prove of margins of curvature m.
        Below `least` (n,), if it is given, they need not be the best."""
        return self.proof.at_points(measured, m)


@dataclass(frozen=True, kw_only=True)
class MatrixCurvature(NumberCurvature):
    """`Hess f >= -P` as well, which is looked at where it may prove more than m does."""

    matrices: CurvatureMatrices
    tables: ErrorTables
    tolerances: Tolerances

    def radius(
        self, points: Points, measured: Measured, m: Tensor, least: Tensor | None = None
    ) -> Tensor:
        radius = super().radius(points, measured, m)
        # No curvature proves more than the distance of the point's tangent plane.
        plane = (points.value - points.gu) / points.gg.sqrt()
        able = plane > radius * (1 + self.tolerances.tight)
        if least is not None:
            able &= (radius < least) & (least < plane)
        short = able.nonzero()[:, 0]
        if len(short) == 0:
            return radius
        measured = measured.take(short)
        # The checker picks its own multiplier, so leave it a margin.
        checked = self.tolerances.checked * self.tables.gradient(measured.point_norm)
        measured = replace(measured, gradient_error=torch.maximum(measured.gradient_error, checked))
        matrix = self.matrices.at(
            measured.label, measured.target, points.gradient[short], points.u[short]
        )
        closer = self.proof.by_matrix(measured, matrix)
        radius[short] = torch.maximum(radius[short], closer)
        return radius


Curvature = NumberCurvature | MatrixCurvature
