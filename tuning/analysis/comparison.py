"""Several searches side by side: what each found, its cost, and whether they can be told apart.

A search is judged by its finals where it has some, whose trainings no trial's choice has favoured,
and else by its best trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from raycrt.errors import require
from raycrt.specs import Spec
from raycrt.system.places.storage import Place
from raycrt.tuning.analysis import study, summary, tables

FIRST = "the first"


def of(runs: Sequence[Place]) -> dict[str, Any]:
    """The searches of `runs` as numbers, lists and dictionaries, the first one as the baseline.

    `InvalidInput` unless all are of one data set and the same radii, and have a complete trial.
    """
    specs = [Spec.load(study.home(run)) for run in runs]
    for run, spec in zip(runs, specs, strict=True):
        require(
            _judged_on(spec) == _judged_on(specs[0]),
            "searches that are compared have one data set, split and search.radius",
            first=str(runs[0]),
            other=str(run),
        )
    found = [_entry(run) for run in runs]
    for entry in found:
        entry |= summary.against(entry, found[0])
    found[0]["verdict"] = FIRST
    return {"radii": list(specs[0].search.radii), "searches": found}


def show(found: dict[str, Any], console: Console) -> None:
    """Print a comparison."""
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    title = f"certified at {radii}, % (95 %)"
    table = Table("", "of", title, "clean, % (95 %)", "against a")
    for letter, entry in zip(_letters(), found["searches"], strict=False):
        shares = [
            tables.share(entry["certified"], entry["interval"]),
            tables.share(entry["clean"], entry["clean_interval"]),
        ]
        table.add_row(letter, entry["judged_by"], *shares, _against(entry))
    console.print(table)
    table = Table("", "complete", "pruned", "failed", "epochs", "s", "run")
    for letter, entry in zip(_letters(), found["searches"], strict=False):
        states, cost = entry["states"], entry["cost"]
        counts = [states[state] for state in ("complete", "pruned", "failed")]
        table.add_row(
            letter, *map(str, counts), str(cost["epochs"]), f"{cost['seconds']:.0f}", entry["run"]
        )
    console.print(table)


def _letters() -> list[str]:
    return [chr(ord("a") + number) for number in range(26)]


def _against(entry: dict[str, Any]) -> str:
    if entry["verdict"] == FIRST:
        return ""
    low, high = (100 * bound for bound in entry["difference"])
    return f"{entry['verdict']} ({low:+.1f} to {high:+.1f})"


def _judged_on(spec: Spec) -> tuple[object, ...]:
    data = spec.data.model_dump(mode="json", exclude={"directory", "download", "path"})
    return data, spec.search.radii


def _entry(run: Place) -> dict[str, Any]:
    """What one search found: its best finalist, or its best trial."""
    found = summary.of(run)
    judged = found["finalists"] or found["best"]
    require(bool(judged), "a search that is compared has a complete trial", run=str(run))
    kept = ("number", "certified", "interval", "clean", "clean_interval", "rows")
    params = {trial["number"]: trial["params"] for trial in found["trials"]}
    return {
        "run": str(run),
        "study": found["study"],
        "params": params[judged[0]["number"]],
        "judged_by": "finals" if found["finalists"] else "best trial",
        **{key: judged[0][key] for key in kept},
        "states": found["states"],
        "cost": {key: found["cost"][key] for key in ("seconds", "epochs")},
    }
