"""Counts over rows of certificates, from which accuracies follow; counts of parts add up.

So a table of any length is summarised some rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import pyarrow as pa

from raycrt.certification.table import storage
from raycrt.errors import require
from raycrt.evaluation.accuracy import Summary
from raycrt.system.places.storage import Place

COLUMNS = ("label", "prediction", "radius", "radius_runner_up")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Of `rows` rows the number that is `right`ly predicted, and of these with a larger radius than
    each of `radii`, against all classes (`certified`) and against the runner-up alone.

    `infinite` counts the right rows with an infinite radius; the finite radii of the right rows add
    up to `total`.
    """

    radii: tuple[float, ...]
    rows: int
    right: int
    infinite: int
    total: float
    certified: np.ndarray
    certified_runner_up: np.ndarray

    @staticmethod
    def of(table: pa.Table, radii: Sequence[float]) -> Tally:
        """The counts over the rows of `table`, which has the `COLUMNS`."""
        label, prediction, radius, runner_up = (table.column(n).to_numpy() for n in COLUMNS)
        right = label == prediction
        proved = radius[right]
        return Tally(
            radii=tuple(radii),
            rows=len(table),
            right=len(proved),
            infinite=int(np.isinf(proved).sum()),
            total=float(proved.sum(where=np.isfinite(proved))),
            certified=_larger(proved, radii),
            certified_runner_up=_larger(runner_up[right], radii),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            radii=self.radii,
            rows=self.rows + other.rows,
            right=self.right + other.right,
            infinite=self.infinite + other.infinite,
            total=self.total + other.total,
            certified=self.certified + other.certified,
            certified_runner_up=self.certified_runner_up + other.certified_runner_up,
        )

    def summary(self) -> Summary:
        """The shares of all rows."""
        finite = self.rows - self.infinite
        return Summary(
            rows=self.rows,
            clean=self._share(self.right),
            mean_radius=self.total / finite if finite else inf,
            infinite=self.infinite,
            certified=self._shares(self.certified),
            certified_runner_up=self._shares(self.certified_runner_up),
        )

    def _shares(self, counts: np.ndarray) -> dict[float, float]:
        return {r: self._share(n) for r, n in zip(self.radii, counts.tolist(), strict=True)}

    def _share(self, number: int) -> float:
        return number / self.rows if self.rows else float("nan")


@dataclass(kw_only=True)
class Counts:
    """What a pass over a certificates directory counts: the `whole`, the rows of each class that
    occurs, the rows of each status, the `largest` finite radius against the runner-up, and the
    `reach`, that against all classes of the right rows."""

    whole: Tally
    by_class: dict[int, Tally]
    statuses: Counter[str]
    largest: float
    reach: float

    @staticmethod
    def of(directory: Place, radii: Sequence[float], images: int) -> Counts:
        """The counts over the rows written so far, at each of `radii`; `InvalidInput` unless each
        is that of another one of so many images."""
        nothing = Tally.of(storage.SCHEMA.empty_table(), radii)
        found = Counts(whole=nothing, by_class={}, statuses=Counter(), largest=0.0, reach=0.0)
        seen = np.zeros(images, bool)
        for rows in storage.batches(directory, ("index", *COLUMNS, "status")):
            index = rows.column("index").to_numpy()
            inside = index[(index >= 0) & (index < images)]
            new = len(np.unique(inside)) == len(index) and not seen[inside].any()
            require(new, "each index 0 .. n - 1 at most once", images=images)
            seen[inside] = True
            found.whole += Tally.of(rows, radii)
            found.statuses.update(rows.column("status").to_pylist())
            right = rows.column("label").to_numpy() == rows.column("prediction").to_numpy()
            proved = rows.column("radius").to_numpy()[right]
            found.reach = float(proved.max(initial=found.reach, where=np.isfinite(proved)))
            radius = rows.column("radius_runner_up").to_numpy()
            found.largest = float(radius.max(initial=found.largest, where=np.isfinite(radius)))
            for label, part in _by_label(rows):
                found.by_class[label] = found.by_class.get(label, nothing) + Tally.of(part, radii)
        return found


def _by_label(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each label that occurs."""
    labels = rows.column("label").to_numpy()
    order = labels.argsort(kind="stable")
    values, firsts = np.unique(labels[order], return_index=True)
    ordered = rows.take(order)
    for label, first, last in zip(values.tolist(), firsts, [*firsts[1:], len(rows)], strict=True):
        yield label, ordered.slice(first, last - first)


def summarise(table: pa.Table, radii: Sequence[float]) -> Summary:
    """Clean and certified accuracy of a table of certificates, stated at each of `radii`."""
    return Tally.of(table, radii).summary()


def over(directory: Place, radii: Sequence[float]) -> Tally:
    """The counts over the rows of a certificates directory that are written so far."""
    nothing = Tally.of(storage.SCHEMA.empty_table(), radii)
    return sum((Tally.of(rows, radii) for rows in storage.batches(directory, COLUMNS)), nothing)


def _larger(proved: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """How many of `proved` are larger than each of `radii`."""
    return len(proved) - np.searchsorted(np.sort(proved), np.asarray(radii, float), side="right")
