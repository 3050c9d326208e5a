"""What the search for points of large radius may spend and leave: no number here enters a proof."""

from __future__ import annotations

from dataclasses import dataclass, fields

from raycrt.errors import require


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Every setting of the certifier that trades time and memory for radius.

    Whatever they are, every radius is proved. Shares are relative unless a line says otherwise.
    `InvalidInput` unless counts are at least 1 and shares at least 0.
    """

    # Directions of the first layer: the fewest that the solver works in, and the share of a typical
    # gradient that they may miss.
    directions: int = 64
    missed: float = 0.15
    # A direction in which the layer acts less than this is left out, and counted as an error.
    negligible: float = 1e-6
    # With more directions than this share of the pixels the detour costs more than it saves.
    few: float = 0.5
    # Nor where what is left out could lower a radius by more than this, for inputs of unit norm.
    left_out: float = 2e-6
    # Norms of gradients: the fewest directions, and how loose bounds of typical ones may be.
    leading: int = 16
    loose: float = 1.05
    # Pairs of classes are prepared where that takes no more numbers.
    pair_numbers: int = 2**24
    # Proofs take gradients in the solver's type where their error is smaller than this.
    close_gradient: float = 2e-3
    # Directions that are kept of a curvature matrix.
    matrix_directions: int = 32
    # Radii this near to the tangent plane of their point are not proved by a matrix as well.
    tight: float = 1e-5
    # How many times a checker's bound of a gradient's error is counted with matrices, as it picks
    # multipliers of its own.
    checked: int = 4
    # Rounding a point to float16 may cost this much of its radius.
    rounded: float = 2e-6

    # A class whose radius exceeds the row's minimum by this stays above it when it is proved.
    clear: float = 1e-4
    # A radius that exceeds the one to decide by this is not raised further.
    beyond: float = 1e-6
    # Length of the steps at which the solver stops in a few coordinates, whose solution is only
    # near that of all; and elsewhere.
    near_settled: float = 1e-1
    settled: float = 4e-3
    # The last point is taken where it certifies this share of the best one's radius.
    last: float = 0.99
    # Points are proved again as they are kept where that may raise a radius by this.
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
    # From a point that certifies less than this share of the best radius the solver goes back to
    # the best point and halves the step, at most so often.
    lost: float = 0.8
    halvings: int = 6

    # A ball reaches this far beyond the radius that it is to prove.
    ball_beyond: float = 1e-6
    # A gain of less than this is no reason for a curvature of its own.
    ball_gain: float = 1e-3
    # A point is on the decision boundary if its margin is this small beside |g| |u|.
    on_boundary: float = 0.05

    # Bytes that a batch of images may take, whatever its stated size: larger ones are cut.
    memory: int = 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.type == "int" else 0
            count = isinstance(value, int) or field.type == "float"
            require(count and value >= least, f"{field.name} >= {least}", **{field.name: value})


TOLERANCES = Tolerances()
