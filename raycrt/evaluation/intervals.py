"""Intervals of 95 % of shares of rows, and of their differences, for the sampling of the rows."""

from __future__ import annotations

from math import hypot, sqrt
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)
BETTER, WORSE, SAME = "better", "worse", "cannot be told apart"


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on `rows` independent rows.

    For a mean of several shares of the same rows (over radii or seeds) it is conservative: a row's
    mean lies in [0, 1], so its variance is at most that of a binary outcome.
    """
    if rows == 0:
        return 0.0, 1.0
    z2 = Z95**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z95 / (1 + z2 / rows) * sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference(share: float, other: float, rows: int, other_rows: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of `share` less `other`, observed on so many independent rows each.

    The hybrid score interval (1998, Statistics in Medicine 17, 873-890, method 10). Where both are
    measured on the same rows it is conservative; `paired_difference` is then narrower.
    """
    (low, high), (other_low, other_high) = wilson(share, rows), wilson(other, other_rows)
    gap = share - other
    below = hypot(share - low, other_high - other)
    return gap - below, gap + hypot(high - share, other - other_low)


def paired_difference(both: int, mine: int, theirs: int, neither: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two shares of the same rows.

    Of these `both` count in both shares, `mine` in the first alone, `theirs` in the second alone.
    The hybrid score interval with a corrected correlation (1998, Statistics in Medicine 17,
    2635-2650, method 10).
    """
    rows = both + mine + theirs + neither
    share, other = (both + mine) / rows, (both + theirs) / rows
    (low, high), (other_low, other_high) = wilson(share, rows), wilson(other, rows)
    agreement = float(both * neither - mine * theirs)
    if agreement > 0:
        agreement = max(agreement - rows / 2, 0)
    margins = (both + mine) * (theirs + neither) * (both + theirs) * (mine + neither)
    phi = agreement / sqrt(margins) if margins else 0.0

    def width(one: float, two: float) -> float:
        return sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))

    gap = (mine - theirs) / rows
    return gap - width(share - low, other_high - other), gap + width(
        high - share, other - other_low
    )


def verdict(low: float, high: float) -> str:
    """What the interval of a difference says."""
    return BETTER if low > 0 else WORSE if high < 0 else SAME
