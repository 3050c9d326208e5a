"""Writes the page of a search."""

from __future__ import annotations

from typing import Any

from raycrt.evaluation.intervals import SAME
from raycrt.evaluation.page import render
from raycrt.specs import Spec
from raycrt.specs.short_names import short_names
from raycrt.system.places.storage import Place
from raycrt.tuning.analysis import importance
from raycrt.tuning.analysis.page import charts, together

PAGE = "study.html"


def write(found: dict[str, Any], spec: Spec, out: Place) -> Place:
    """Write the page of the search with the results `found`, a `summary`, into `out`; the file."""
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    label = f"certified at {radii}, %"
    trials = found["trials"]
    drawn = {
        "history": charts.history(trials, found["history"], label),
        "cost": charts.cost(trials),
    }
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if complete:
        drawn |= {
            "parallel": together.parallel(trials, spec),
            "pareto": charts.pareto(trials, found["pareto"], label),
            "rungs": charts.rungs(trials, label),
        }
        for number, (path, domain) in enumerate(spec.search.space.items()):
            drawn[f"slice-{number}"] = charts.slices(trials, path, domain, label)
    if any(each["interval"] is not None for each in found["importances"].values()):
        drawn["importances"] = charts.importances(found["importances"])
    if found["finalists"]:
        drawn["finals"] = charts.finals(found["finalists"], label)
    planes: dict[str, str] = {}
    if found["contour"] and complete:
        paths = found["contour"]["x"], found["contour"]["y"]
        level = together.levels(spec, paths)
        by, values = level or ("", [None])
        for number, value in enumerate(values):
            some = [t for t in complete if level is None or t["params"].get(by) == value]
            if some:
                planes[f"plane-{number}"] = "" if level is None else f"{by}: {value}"
                drawn[f"plane-{number}"] = together.contour(some, spec, paths, complete)
    return render.page(
        out / PAGE,
        "study.html",
        drawn,
        home="raycrt.tuning.analysis.page",
        found=found,
        spec=spec,
        title=spec.data.title,
        radii=radii,
        planes=planes,
        names=short_names(spec.search.space),
        reasons=any(trial["reason"] for trial in trials),
        slices={f"slice-{k}": path for k, path in enumerate(spec.search.space)},
        needed=importance.FEWEST,
        same=SAME,
    )
