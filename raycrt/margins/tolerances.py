"""Effort and tolerances of the search for points of large radius; no number here enters a proof."""

from __future__ import annotations

from dataclasses import dataclass, fields

from raycrt.errors import require


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Every setting of the certifier that trades time and memory for radius.

    Every radius is proved whatever the settings. Shares are relative unless stated otherwise.
    Raises `InvalidInput` unless counts are at least 1 and shares at least 0.
    """

    # Directions of the first layer: the minimum number that the solver works in, and the share of
    # a typical gradient that they may miss.
    directions: int = 64
    missed: float = 0.15
    # Directions with a smaller relative singular value are left out and counted as an error.
    negligible: float = 1e-6
    # With more directions than this share of the pixels, using the span costs more than it saves.
    few: float = 0.5
    # The span is not used either if the omitted part could lower a radius by more than this, for
    # inputs of unit norm.
    left_out: float = 2e-6
    # Gradient norms: the minimum number of directions, and how loose bounds may typically be.
    leading: int = 16
    loose: float = 1.05
    # Pairs of classes are prepared if that takes at most this many numbers.
    pair_numbers: int = 2**24
    # Proofs use gradients in the solver's type if their relative error is at most this.
    close_gradient: float = 2e-3
    # Number of directions kept from a curvature matrix.
    matrix_directions: int = 32
    # Radii this close to the distance of the point's tangent plane are not also proved by a matrix.
    tight: float = 1e-5
    # Multiple of a checker's gradient error bound that is counted with matrices, as the checker
    # picks its own multipliers.
    checked: int = 4
    # Rounding a point to float16 may cost this much of its radius.
    rounded: float = 2e-6

    # A class whose radius exceeds the row's minimum by this stays above it when proved.
    clear: float = 1e-4
    # A radius that exceeds the radius to be decided by this is not raised further.
    beyond: float = 1e-6
    # Step lengths at which the solver stops: in a few coordinates, whose solution is only near that
    # in all coordinates, and elsewhere.
    near_settled: float = 1e-1
    settled: float = 4e-3
    # The last point is used where it certifies this share of the best point's radius.
    last: float = 0.99
    # Points are proved again as stored where that may raise a radius by this.
    raised: float = 1e-5
    # The solver leaves a margin whose radius rose by less than `progress` in `patience` steps.
    progress: float = 1e-6
    patience: int = 3
    # The active set is compacted when less than this share of it is still open.
    shrink: float = 0.8
    # Multipliers stay this far below the pole at 1/m.
    below_pole: float = 1e-6
    # Curvatures seen along a step count down to this share of -m.
    least_secant: float = 0.9
    # From a point that certifies less than this share of the best radius, the solver returns to
    # the best point and halves the step, at most `halvings` times.
    lost: float = 0.8
    halvings: int = 6

    # A ball extends this far beyond the radius that it is meant to prove.
    ball_beyond: float = 1e-6
    # A smaller gain does not justify a separate curvature.
    ball_gain: float = 1e-3
    # The best ball of curvature is searched where curvature everywhere proves this share of what an
    # enclosure proves.
    curved: float = 0.7
    # The best ball is searched up to this share, with at most this many balls for its curvature.
    best_ball: float = 5e-3
    balls: int = 6
    # A point counts as on the decision boundary if its margin is this small relative to |g| |u|.
    on_boundary: float = 0.05

    # Bytes that a batch of images may take; larger batches are split, whatever their stated size.
    memory: int = 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.type == "int" else 0
            count = isinstance(value, int) or field.type == "float"
            require(count and value >= least, f"{field.name} >= {least}", **{field.name: value})


TOLERANCES = Tolerances()
