"""The page of several runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycrt.errors import InvalidInput
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page import charts, curve, render, scan
from raycrt.evaluation.paired import Difference, Judged
from raycrt.evaluation.tally import over
from raycrt.specs import identity
from raycrt.system.places.storage import Place

COMPARISON = "comparison.html"


def write(runs: Mapping[str, Certified], out: Place) -> Place:
    """Write a page that compares the `runs` by their names into `out`; the file written.

    `InvalidInput` unless there are two of them or more, as many as a chart tells apart.
    """
    if not 2 <= len(runs) <= charts.RUNS:
        raise InvalidInput(f"2 to {charts.RUNS} runs can be compared, but got {len(runs)}")
    first = next(iter(runs.values()))
    scales = {found.spec.data.scale for found in runs.values()}
    if len(scales) > 1:
        raise InvalidInput("runs that are compared must have radii in the same units: data.scale")
    stated = sorted({radius for found in runs.values() for radius in found.spec.certify.at})
    radii, _ = scan.grid(max(found.counts.reach for found in runs.values()), stated)
    points = {
        name: curve.points(over(found.directory, radii).summary()) for name, found in runs.items()
    }
    unit = " (std)" if first.spec.data.scale is not None else ""
    return render.page(
        out / COMPARISON,
        "comparison.html",
        {"curves": charts.comparison(points, unit)},
        runs=runs,
        points={n: [p for p in each if p["radius"] in stated] for n, each in points.items()},
        stated=stated,
        other_rows=_other_rows(runs),
        paired=_paired(runs, stated),
        keys=_differing(runs),
        first=next(iter(runs)),
    )


def names(runs: Sequence[Place]) -> list[str]:
    """A name for each of the `runs`: the end of its path, as much of it as tells them apart."""
    parts = [run.parts for run in runs]
    for number in range(1, max(map(len, parts))):
        ends = ["/".join(part[-number:]) for part in parts]
        if all(ends) and len({*ends}) == len(ends):
            return ends
    return list(map(str, runs))


def _other_rows(runs: Mapping[str, Certified]) -> dict[str, tuple[str, str, str]]:
    """The runs whose specs name other rows than the first: a key, its value there and here."""
    first = next(iter(runs.values())).spec
    found = {
        name: identity.difference(first, run.spec, identity.DATA) for name, run in runs.items()
    }
    return {
        name: (each[0], identity.as_option(each[1]), identity.as_option(each[2]))
        for name, each in found.items()
        if each is not None
    }


def _paired(
    runs: Mapping[str, Certified], radii: Sequence[float]
) -> dict[str, list[Difference] | None]:
    """The differences of each other run to the first; None where they are not of the same rows."""
    (_, first), *others = runs.items()
    judged = Judged.of(first)
    found: dict[str, list[Difference] | None] = {}
    for name, run in others:
        mine = None if judged is None else Judged.of(run)
        found[name] = None if mine is None or judged is None else mine.against(judged, radii)
    return found


def _differing(runs: Mapping[str, Certified]) -> dict[str, list[Any]]:
    """The keys of models and trainings whose values differ between the runs, with each value."""
    facts = [dict(run.weights) for run in runs.values()]
    keys = dict.fromkeys(key for each in facts for key in each)
    values = {key: [each.get(key, "") for each in facts] for key in keys}
    return {key: each for key, each in values.items() if any(v != each[0] for v in each)}
