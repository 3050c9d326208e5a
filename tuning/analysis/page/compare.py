"""Writes the page of several searches that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycrt.evaluation.page import render
from raycrt.evaluation.page.compare import COMPARISON, names
from raycrt.system.places.storage import Place
from raycrt.tuning.analysis.page import charts


def write(found: dict[str, Any], runs: Sequence[Place], out: Place) -> Place:
    """Write the page of the searches in `runs`, with their `comparison`, into `out`; the file."""
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    named = dict(zip(names(runs), found["searches"], strict=True))
    return render.page(
        out / COMPARISON,
        "searches.html",
        {"searches": charts.searches(named, f"certified at {radii}, %")},
        home="raycrt.tuning.analysis.page",
        searches=named,
        radii=radii,
        first=next(iter(named)),
        paths=dict.fromkeys(path for entry in named.values() for path in entry["params"]),
    )
