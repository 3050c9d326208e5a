"""One pass over the rows of a run for what its page shows; memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycrt.certification.table import storage
from raycrt.evaluation.tally import COLUMNS, Tally
from raycrt.system.places.storage import Place

# Rows of a list that are shown; the others are counted.
SHOWN = 200
_COLUMNS = ("index", *COLUMNS, "binding", "status", "key", "input_sha256")
_GOOD = ("certified", "constant")
_SEED = 0
_BINS, _STEPS_OF_A_BIN = 30, 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of certificates, without its proof; `key` and `input_sha256` are empty in versions of
    the format that lack them."""

    index: int
    label: int
    prediction: int
    radius: float
    binding: int
    status: str
    key: str = ""
    input_sha256: bytes = b""

    @property
    def proved(self) -> bool:
        return self.status in _GOOD

    @property
    def right(self) -> bool:
        return self.label == self.prediction


@dataclass(kw_only=True)
class Listed:
    """A `number` of rows, of which the first are held."""

    number: int = 0
    rows: list[Row] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        self.number += len(table)
        first = table.sort_by("index").slice(0, SHOWN)
        self.rows = sorted([*self.rows, *_rows(first)], key=lambda row: row.index)[:SHOWN]


@dataclass(kw_only=True)
class Scan:
    """What a pass over rows finds.

    `curve` has the counts at each radius of a grid. `binding` (classes, classes) counts the proved
    rows of each prediction whose radius each other class gives. `least` and `most` are the rows of
    each class with the smallest and the largest radius, of those that are predicted correctly and
    proved. `wrong` are the proved rows with another prediction than their label, `unproved` those
    without a radius, `sample` those whose number was drawn.
    """

    curve: Tally
    binding: np.ndarray
    least: dict[int, Row] = field(default_factory=dict)
    most: dict[int, Row] = field(default_factory=dict)
    wrong: Listed = field(default_factory=Listed)
    unproved: Listed = field(default_factory=Listed)
    sample: list[Row] = field(default_factory=list)

    @staticmethod
    def of(
        directory: Place, radii: Sequence[float], *, classes: int, drawn: np.ndarray | None = None
    ) -> Scan:
        """Scan the rows written so far, with the curve at `radii`; `drawn` are numbers of rows."""
        found = Scan(
            curve=Tally.of(storage.SCHEMA.empty_table(), radii),
            binding=np.zeros((classes, classes), np.int64),
        )
        for table in storage.batches(directory, _COLUMNS):
            found._add(table, np.empty(0, np.int64) if drawn is None else drawn)
        found.sample.sort(key=lambda row: row.index)
        return found

    def _add(self, table: pa.Table, drawn: np.ndarray) -> None:
        self.curve += Tally.of(table, self.curve.radii)
        index, label, prediction, binding = (
            table.column(name).to_numpy() for name in ("index", "label", "prediction", "binding")
        )
        proved = pc.is_in(table.column("status"), pa.array(_GOOD)).to_numpy(zero_copy_only=False)
        right = label == prediction
        self.wrong.add(table.filter(proved & ~right))
        self.unproved.add(table.filter(~proved))
        self.sample += _rows(table.filter(np.isin(index, drawn)))
        classes = len(self.binding)
        known = proved & _within(prediction, classes) & _within(binding, classes)
        pairs = prediction[known] * classes + binding[known]
        self.binding += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self._extremes(table.filter(proved & right))

    def _extremes(self, table: pa.Table) -> None:
        radius, index = table.column("radius").to_numpy(), table.column("index").to_numpy()
        order = np.lexsort((index, radius))
        label = table.column("label").to_numpy()[order]
        _, first = np.unique(label, return_index=True)
        _, last = np.unique(label[::-1], return_index=True)
        for row in _rows(table.take(order[first])):
            held = self.least.get(row.label, row)
            self.least[row.label] = min(held, row, key=lambda r: (r.radius, r.index))
        for row in _rows(table.take(order[::-1][last])):
            held = self.most.get(row.label, row)
            self.most[row.label] = max(held, row, key=lambda r: (r.radius, r.index))


def drawn(number: int, of: int) -> np.ndarray:
    """`number` of the rows 0 .. `of` - 1, or all, drawn with a fixed seed."""
    generator = np.random.default_rng(_SEED)
    if number >= of:
        return np.arange(of)
    return np.sort(generator.choice(of, number, replace=False, shuffle=False))


def grid(reach: float, stated: Sequence[float]) -> tuple[list[float], list[float]]:
    """Radii for a curve: equal steps from 0 to beyond the `reach` and the `stated` ones, besides
    these; and some of the steps, as edges of the bins of a histogram."""
    steps = np.linspace(0, max(1.05 * reach, *stated), _BINS * _STEPS_OF_A_BIN + 1).tolist()
    return sorted({*steps, *stated}), steps[::_STEPS_OF_A_BIN]


def _within(classes: np.ndarray, number: int) -> np.ndarray:
    return (classes >= 0) & (classes < number)


def _rows(table: pa.Table) -> list[Row]:
    names = [name for name in Row.__dataclass_fields__ if name in table.column_names]
    return [Row(**row) for row in table.select(names).to_pylist()]
