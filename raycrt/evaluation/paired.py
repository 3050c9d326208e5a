"""The difference of two runs on the rows that both of them certify.

Both judge the same inputs, so that what tells them apart is the rows that one of them alone gets
right, or certifies: the others say nothing about the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycrt.certification.table import storage
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.intervals import paired_difference, verdict

_COLUMNS = ("index", "label", "prediction", "radius", "input_sha256")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of `rows` rows, `won` count in a run alone and `lost` in the first run alone; the `interval`
    is the 95 % interval of the difference of the shares."""

    rows: int
    won: int
    lost: int
    interval: tuple[float, float]

    @property
    def gap(self) -> float:
        return (self.won - self.lost) / self.rows

    @property
    def verdict(self) -> str:
        """Whether the run is better or worse than the first, if that can be told."""
        return verdict(*self.interval)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The rows of a run: their `index`, `label`, the hash of their `input` (n, 32), and their
    `reach`, the radius of one that is predicted correctly, else -1."""

    index: np.ndarray
    label: np.ndarray
    input: np.ndarray
    reach: np.ndarray

    @staticmethod
    def of(found: Certified) -> Judged | None:
        """One pass over the rows written so far; about 60 bytes of memory for each row. None where
        rows do not state the hashes of their inputs."""
        parts: list[tuple[np.ndarray, ...]] = []
        for table in storage.batches(found.directory, _COLUMNS):
            if "input_sha256" not in table.column_names or table.column("input_sha256").null_count:
                return None
            index, label, prediction, radius = (table.column(n).to_numpy() for n in _COLUMNS[:4])
            hashes = b"".join(table.column("input_sha256").to_pylist())
            inputs = np.frombuffer(hashes, np.uint8).reshape(len(index), -1)
            parts.append((index, label, inputs, np.where(label == prediction, radius, -1.0)))
        index, label, inputs, reach = map(np.concatenate, zip(*parts, strict=True))
        return Judged(index=index, label=label, input=inputs, reach=reach)

    def against(self, first: Judged, radii: Sequence[float]) -> list[Difference] | None:
        """The differences to `first` on the rows that both have: of clean accuracy, then of that
        certified at each of `radii`. None unless these are the same inputs with the same labels."""
        both, here, there = np.intersect1d(
            self.index, first.index, assume_unique=True, return_indices=True
        )
        same = np.array_equal(self.label[here], first.label[there])
        if not len(both) or not same or not np.array_equal(self.input[here], first.input[there]):
            return None
        mine, theirs = self.reach[here], first.reach[there]
        clean = _difference(mine >= 0, theirs >= 0)
        return [clean, *(_difference(mine > radius, theirs > radius) for radius in radii)]


def _difference(mine: np.ndarray, theirs: np.ndarray) -> Difference:
    pairs = ((mine, theirs), (mine, ~theirs), (~mine, theirs))
    both, won, lost = (int((one & other).sum()) for one, other in pairs)
    neither = len(mine) - both - won - lost
    interval = paired_difference(both, won, lost, neither)
    return Difference(rows=len(mine), won=won, lost=lost, interval=interval)
