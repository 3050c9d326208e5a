"""The tables of a search, as the run has them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from math import inf

from raycrt.specs.short_names import short_names
from raycrt.system.places.storage import Place, content

# Rows of a table that are shown.
SHOWN = 500
# Columns that are shown before the others, and columns of shares; `_AT` begins those at a radius.
_FIRST = ("number", "seed", "state", "certified", "clean", "mean_radius")
_SHARES, _AT = ("certified", "clean"), "certified_at/"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column by its `name` in the file, the `title` it has on the page, and whether it is of
    `shares`."""

    name: str
    title: str
    shares: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """The `columns` that hold something, the first of `number` rows as text, best first, and for
    each the number of validation rows that its shares were `measured` on, 0 where none is stated.
    """

    columns: list[Column]
    rows: list[list[str]]
    measured: list[int]
    number: int


def tables(run: Place) -> dict[str, Table]:
    """The tables of the search in `run` by their names, of those that are there."""
    files = {"Trials": "trials.csv", "Finalists": "finalists.csv"}
    found = {name: run / "search" / file for name, file in files.items()}
    return {name: _read(file) for name, file in found.items() if file.is_file()}


def _read(file: Place) -> Table:
    lines = list(csv.reader(io.StringIO(content(file).decode())))
    names, rows = (lines[0], lines[1:]) if lines else ([], [])
    if "certified" in names:
        best = names.index("certified")
        rows.sort(key=lambda row: -_number(row[best]))
    filled = [name for k, name in enumerate(names) if any(row[k] for row in rows)]
    shown = [*(name for name in _FIRST if name in filled)]
    shown += [name for name in filled if name not in shown]
    order = [names.index(name) for name in shown]
    return Table(
        columns=_columns(shown),
        rows=[[row[k] for k in order] for row in rows[:SHOWN]],
        measured=[_count(dict(zip(names, row, strict=False))) for row in rows[:SHOWN]],
        number=len(rows),
    )


def _columns(names: list[str]) -> list[Column]:
    at = {name: name.removeprefix(_AT) for name in names if name.startswith(_AT)}
    titles = short_names(name for name in names if name not in at)
    titles |= {"number": "trial", "mean_radius": "mean radius", "seconds": "s"}
    titles |= {name: f"certified at {radius}" for name, radius in at.items()}
    return [Column(name=n, title=titles[n], shares=n in at or n in _SHARES) for n in names]


def _count(row: dict[str, str]) -> int:
    return int(text) if (text := row.get("rows", "")).isdigit() else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -inf
