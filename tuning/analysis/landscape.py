"""Certified accuracy of the complete trials by one parameter and by two: counts and means."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np

from raycrt.evaluation.intervals import wilson
from raycrt.specs import Spec
from raycrt.specs.search import Domain
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.trials import space

_CELLS = 6
# The number of cells of a range in the table of single parameters.
_PARTS = 3
_PREFERRED = ("train.gamma", "model.depth")


def slices(records: list[TrialRecord], spec: Spec) -> dict[str, list[dict[str, Any]]]:
    """For each searched parameter its value and `certified`, with its interval and the number of
    rows, in each complete trial that has it."""
    return {
        path: [
            {
                "number": t.number,
                "value": t.params[path],
                "certified": t.certified,
                "interval": list(t.interval),
                "rows": t.rows,
            }
            for t in records
            if t.complete and path in t.params
        ]
        for path in spec.search.space
    }


def marginals(records: list[TrialRecord], spec: Spec) -> dict[str, list[dict[str, Any]]]:
    """For each searched parameter, the choices or the parts of its range that hold complete trials:
    their number, and the mean and the best of their `certified`, both with intervals."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, points in slices(records, spec).items():
        names, cell = _cells(path, spec.search.space[path], _PARTS)
        parted: list[list[dict[str, Any]]] = [[] for _ in names]
        for point in points:
            parted[cell(point["value"])].append(point)
        found[path] = [
            {"cell": name, **_of_cell(here)}
            for name, here in zip(names, parted, strict=True)
            if here
        ]
    return found


def _of_cell(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The number of some trials, their mean and the best of them."""
    average = mean(point["certified"] for point in points)
    best = max(points, key=lambda point: point["certified"])
    return {
        "trials": len(points),
        "mean": average,
        "mean_interval": list(wilson(average, min(point["rows"] for point in points))),
        "best": best["certified"],
        "best_interval": best["interval"],
    }


def contour(
    records: list[TrialRecord], spec: Spec, importances: dict[str, float]
) -> dict[str, Any] | None:
    """The mean of `certified` over cells of two parameters, and how many complete trials are there.

    They are gamma and depth where both are searched, else the two that matter most. `certified`
    and `trials` have a row for each of `y_cells` and a column for each of `x_cells`; the mean of a
    cell without a trial is null. `half_width` is half the widest of the means' intervals. None
    where fewer than two parameters are searched.
    """
    ordered = sorted(spec.search.space, key=lambda path: -importances.get(path, 0.0))
    if len(ordered) < 2:
        return None
    x, y = _PREFERRED if set(_PREFERRED) <= set(ordered) else ordered[:2]
    columns, column = _cells(x, spec.search.space[x], _CELLS)
    rows, row = _cells(y, spec.search.space[y], _CELLS)
    found: list[list[list[float]]] = [[[] for _ in columns] for _ in rows]
    least = min((trial.rows for trial in records if trial.complete), default=0)
    for trial in records:
        if trial.complete and x in trial.params and y in trial.params:
            found[row(trial.params[y])][column(trial.params[x])].append(trial.certified)
    intervals = [wilson(mean(cell), least) for line in found for cell in line if cell]
    return {
        "x": x,
        "y": y,
        "x_cells": columns,
        "y_cells": rows,
        "certified": [[sum(cell) / len(cell) if cell else None for cell in r] for r in found],
        "trials": [[len(cell) for cell in r] for r in found],
        "half_width": max(((high - low) / 2 for low, high in intervals), default=0.0),
    }


def _cells(path: str, domain: Domain, parts: int) -> tuple[list[str], Callable[[Any], int]]:
    """The names of the cells of a domain, and the function from a value to the index of its cell.

    A range is cut into `parts`, unless it holds fewer than twice as many whole numbers.
    """
    values = domain.choices
    if values is None:
        assert domain.low is not None and domain.high is not None
        whole = space.kind(path) is int and domain.high - domain.low < 2 * parts
        if not whole:
            cut = np.geomspace if domain.log else np.linspace
            edges = cut(float(domain.low), float(domain.high), parts + 1)
            names = [f"{low:.3g} - {high:.3g}" for low, high in pairwise(edges)]
            return names, lambda value: int(np.searchsorted(edges[1:-1], value, side="right"))
        values = tuple(range(int(domain.low), int(domain.high) + 1))
    return [str(value) for value in values], values.index
