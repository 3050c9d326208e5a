"""The results of a search as one dictionary: what `raycrt study` prints, draws and writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from raycrt.evaluation.intervals import difference, verdict, wilson
from raycrt.system.places.storage import Place
from raycrt.tuning.analysis import agreement, importance, landscape, study
from raycrt.tuning.analysis.study import TrialRecord

_SHOWN = 10


def of(run: Place) -> dict[str, Any]:
    """The results of the search in the directory `run`, as numbers, lists and dictionaries."""
    spec, trials, record = study.load(run)
    count = {state: sum(t.state == state for t in trials) for state in study.STATES}
    saved = study.saved_epochs(trials, spec)
    seconds, spared = sum(trial.seconds for trial in trials), study.saved_seconds(trials, spec)
    ran = sum(trial.epochs for trial in trials)
    importances = importance.importances(record, trials, spec)
    return {
        "study": record.study_name,
        "radii": list(spec.search.radii),
        "states": count,
        "trials": [
            {**_entry(trial), **_cost(trial), "rungs": trial.rungs, "reason": trial.reason}
            for trial in trials
        ],
        "best": _set_against_the_first(study.ranking(trials)[:_SHOWN]),
        "finalists": _finalists(study.finalists(run)),
        "pareto": _set_against_the_first(study.pareto(trials)),
        "importance_evaluator": importance.EVALUATOR,
        "importances": {
            path: {**asdict(found), "verdict": found.verdict} for path, found in importances.items()
        },
        "importances_left_out": importance.left_out(trials, spec),
        "slices": landscape.slices(trials, spec),
        "marginals": landscape.marginals(trials, spec),
        "contour": landscape.contour(
            trials, spec, {path: found.share for path, found in importances.items()}
        ),
        "history": [
            {
                "number": trial.number,
                "certified": trial.certified,
                "interval": list(trial.interval),
                "best": best,
            }
            for trial, best in study.history(trials)
        ],
        "cost": {
            "seconds": seconds,
            "trials": [_cost(trial) for trial in trials],
            "epochs": ran,
            "epochs_saved_by_pruning": saved,
            "share_saved": saved / (saved + ran) if saved + ran else 0.0,
            "seconds_saved_by_pruning": spared,
        },
        "rung_agreement": {
            epoch: {**asdict(found), "verdict": found.verdict}
            for epoch, found in agreement.agreements(trials).items()
        },
        "failures": [{"number": t.number, "reason": t.reason} for t in trials if t.reason],
    }


def against(entry: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The 95 % interval of `certified` of an entry less that of the `first`, and its verdict.

    Newcombe's of two independent shares; both may be of the same rows, where it is conservative.
    """
    shares = entry["certified"], first["certified"]
    low, high = difference(*shares, int(entry["rows"]), int(first["rows"]))
    return {"difference": [low, high], "verdict": verdict(low, high)}


def to_json(found: dict[str, Any]) -> str:
    """These results as JSON."""
    return json.dumps(found, indent=2) + "\n"


def _set_against_the_first(records: list[TrialRecord]) -> list[dict[str, Any]]:
    entries = [_entry(trial) for trial in records]
    return [{**entry, **against(entry, entries[0])} for entry in entries]


def _finalists(rows: list[study.Row]) -> list[dict[str, Any]]:
    """The finalists with the intervals of their means, and each of their trainings with its own."""
    return [
        {
            **_with_intervals(mean),
            "runs": [_with_intervals(row) for row in rows if row["number"] == mean["number"]],
        }
        for mean in study.standings(rows)
    ]


def _with_intervals(row: study.Row) -> dict[str, Any]:
    certified, clean = (wilson(row[key], int(row["rows"])) for key in ("certified", "clean"))
    return {**row, "interval": list(certified), "clean_interval": list(clean)}


def _cost(trial: TrialRecord) -> dict[str, Any]:
    kept = ("number", "state", "seconds", "epochs")
    return {name: getattr(trial, name) for name in kept}


def _entry(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "certified": trial.certified,
        "interval": list(trial.interval),
        "clean_interval": list(wilson(trial.clean, trial.rows)),
        "certified_at": {f"{radius:g}": share for radius, share in trial.certified_at.items()},
        "certified_at_interval": {
            f"{radius:g}": list(wilson(share, trial.rows))
            for radius, share in trial.certified_at.items()
        },
        "clean": trial.clean,
        "mean_radius": trial.mean_radius,
        "rows": trial.rows,
        "seconds": trial.seconds,
        "params": trial.params,
    }
