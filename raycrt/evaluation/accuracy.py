"""Clean and certified accuracy: shares of rows predicted correctly, and certified at a radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of all rows: `clean`, predicted correctly; `certified`, for each radius, predicted
    correctly with a larger certified radius. `mean_radius` is the mean of the finite radii, in
    units of the input, and counts a wrong row as 0; it is infinite if no radius is finite."""

    clean: float
    certified: dict[float, float]
    mean_radius: float


def accuracy(
    prediction: Tensor, labels: Tensor, radius: Tensor, radii: Sequence[float]
) -> Accuracy:
    """The accuracy of `prediction` (n,) with the certified `radius` (n,), at each of `radii`.

    `labels` (n,) are the true classes. A radius counts as certified at r if it is larger than r.
    """
    right = prediction == labels
    proved = torch.where(right, radius, 0.0)
    finite = proved[torch.isfinite(proved)]
    return Accuracy(
        clean=share(right),
        certified={r: share(proved > r) for r in radii},
        mean_radius=float(finite.mean()) if len(finite) else inf,
    )


def share(rows: Tensor) -> float:
    """The share of `rows` (n,) that are true."""
    return float(rows.double().mean())


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The accuracy that a table of certificates states, for all classes and for the runner-up.

    `infinite` counts the rows that are predicted correctly with an infinite radius.
    """

    rows: int
    clean: float
    mean_radius: float
    infinite: int
    certified: dict[float, float]
    certified_runner_up: dict[float, float]
