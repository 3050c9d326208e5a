"""The page of a run."""

from __future__ import annotations

import math
import shlex
from typing import Any

from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page import attacked, charts, gallery, render, scan, search
from raycrt.evaluation.page.facts import Facts
from raycrt.specs import strict_yaml
from raycrt.system.places.storage import Place

PAGE = "report.html"
# Rows of the ratio from which on a certificate counts as exact.
_EXACT = 0.999


def write(facts: Facts, out: Place) -> Place:
    """Write the page of a run into `out`; the file written."""
    spec = facts.found.spec
    drawn = {
        "curves": charts.curves(facts.points, spec.certify.at, facts.unit, facts.attacked_of),
        "radii": charts.histogram(facts.radii, f"certified l2 radius{facts.unit}"),
    }
    if len(facts.ratios):
        title = "certified radius / attacked distance"
        drawn["ratios"] = charts.histogram(facts.ratio_bins, title)
    ratios = facts.ratios
    exact = float((ratios >= _EXACT).mean()) if len(ratios) else None
    median = float(sorted(ratios)[len(ratios) // 2]) if len(ratios) else None
    told: dict[str, Any] = {
        "facts": facts,
        "spec": spec,
        "exact": exact,
        "median": median,
        "inf": math.inf,
    }
    told |= {"yaml": _yaml(facts.found), "verify": f"raycrt verify {shlex.quote(str(facts.run))}"}
    limits = {"rows": scan.SHOWN, "trials": search.SHOWN, "classes": gallery.CLASSES}
    limits |= {"steps": attacked.STEPS}
    return render.page(out / PAGE, "report.html", drawn, limits=limits, **told)


def _yaml(found: Certified) -> str:
    """The spec in the manifest, without the sections that are unknown."""
    stated = found.manifest["spec"]
    return strict_yaml.write({key: part for key, part in stated.items() if part is not None})
