"""The results of a search, as a dictionary and as printed tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from raycrt.specs import Spec
from raycrt.system.storage import Place
from tuning.analysis import agreement, importance, landscape, study
from tuning.analysis.agreement import Agreement
from tuning.analysis.study import TrialRecord

_SHOWN = 10


def summary(run: Place) -> dict[str, Any]:
    """Everything that `raycrt study` prints, as numbers, lists and dictionaries."""
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
        "best": [_entry(trial) for trial in study.ranking(trials)[:_SHOWN]],
        "finalists": _finalists(study.finalists(run)),
        "pareto": [_entry(trial) for trial in study.pareto(trials)],
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


def to_json(found: dict[str, Any]) -> str:
    """`summary` as JSON."""
    return json.dumps(found, indent=2) + "\n"


def show(found: dict[str, Any], spec: Spec, console: Console) -> None:
    """Print `summary` as tables."""
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    console.print(f"study {found['study']}: {states}", highlight=False)
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    _print_trials(f"best trials (certified at {radii})", found["best"], spec, console)
    _print_trials("Pareto front, certified against clean", found["pareto"], spec, console)
    if found["finalists"]:
        _print_finalists(found["finalists"], console)
    _print_marginals(found["marginals"], console)
    if found["contour"]:
        _print_contour(found["contour"], console)
    _print_history(found["history"], console)
    _print_cost(found["cost"], console)
    _print_importances(found["importances"], found["states"]["complete"], console)
    for path, why in found["importances_left_out"].items():
        console.print(f"left out: {path}, {why}", highlight=False, markup=False)
    for epoch, values in found["rung_agreement"].items():
        console.print(f"rung at epoch {epoch}: {_verdict(values)}", highlight=False, markup=False)
    for failure in found["failures"]:
        console.print(f"trial {failure['number']} failed: {failure['reason']}", markup=False)


def _verdict(values: dict[str, Any]) -> str:
    known = {name: values[name] for name in ("trials", "tau", "interval")}
    return f"{values['verdict']} with the end, {agreement.words(Agreement(**known))}"


def _print_importances(
    importances: dict[str, dict[str, Any]], complete: int, console: Console
) -> None:
    title = f"importance for the best tenth ({importance.EVALUATOR}, as in optuna-dashboard)"
    title += f", {complete} complete trials, {importance.FEWEST} needed"
    table = Table("parameter", "share", "95 %", "evidence", title=title)
    for path, found in importances.items():
        interval = "" if found["interval"] is None else "{:.2f} - {:.2f}".format(*found["interval"])
        table.add_row(path, f"{found['share']:.2f}", interval, found["verdict"])
    if table.row_count:
        console.print(table)
    else:
        console.print(f"{title}: no trials, or all equal", highlight=False)


def _print_finalists(entries: list[dict[str, Any]], console: Console) -> None:
    """Print the finalists; the interval is that of the mean over the seeds, for the rows of one."""
    head = ("trial", "certified", "95 %", "clean", "radius", "seeds", "each seed")
    rows = entries[0]["rows"]
    table = Table(*head, title=f"finals: means over the seeds, {rows} rows counted once")
    for entry in entries:
        shares = f"{entry['certified']:.1%}", _percents(entry["interval"]), f"{entry['clean']:.1%}"
        each = ", ".join(
            f"{run['certified']:.1%} ({_percents(run['interval'])})" for run in entry["runs"]
        )
        radius = f"{entry['mean_radius']:.3f}"
        table.add_row(str(entry["number"]), *shares, radius, str(entry["seeds"]), each)
    console.print(table)


def _print_marginals(marginals: dict[str, list[dict[str, Any]]], console: Console) -> None:
    table = Table("parameter", "value", "trials", "mean", "best", title="certified by parameter")
    for path, cells in marginals.items():
        for index, cell in enumerate(cells):
            shares = f"{cell['mean']:.1%}", f"{cell['best']:.1%}"
            name = "" if index else path
            table.add_row(name, cell["cell"], str(cell["trials"]), *shares)
        table.add_section()
    if table.row_count:
        console.print(table)


def _print_history(steps: list[dict[str, Any]], console: Console) -> None:
    """Print each trial that was better than all trials before it."""
    table = Table("trial", "best certified", title="history")
    best = -1.0
    for step in steps:
        if step["best"] > best:
            best = step["best"]
            table.add_row(str(step["number"]), f"{best:.1%}")
    if table.row_count:
        console.print(table)


def _print_cost(cost: dict[str, Any], console: Console) -> None:
    """Print the most expensive trials, and the total cost."""
    costly = sorted(cost["trials"], key=lambda trial: -trial["seconds"])[:_SHOWN]
    title = f"cost per trial: the {len(costly)} most expensive of {len(cost['trials'])}"
    table = Table("trial", "state", "epochs", "s", "s per epoch", title=title)
    for trial in costly:
        pace = "" if trial["epochs"] == 0 else f"{trial['seconds'] / trial['epochs']:.2f}"
        values = trial["number"], trial["state"], trial["epochs"]
        table.add_row(*map(str, values), f"{trial['seconds']:.1f}", pace)
    console.print(table)
    console.print(
        f"cost: {cost['seconds']:.0f} s of trials, {cost['epochs']} epochs; pruning saved "
        f"{cost['epochs_saved_by_pruning']} epochs ({cost['share_saved']:.0%}), about "
        f"{cost['seconds_saved_by_pruning']:.0f} s",
        highlight=False,
    )


def _print_contour(contour: dict[str, Any], console: Console) -> None:
    """Print the mean of `certified` and the number of trials in each cell that holds trials."""
    title = f"certified by {contour['x']} and {contour['y']} (trials)"
    table = Table(contour["y"], *contour["x_cells"], title=title)
    for name, shares, counts in zip(
        contour["y_cells"], contour["certified"], contour["trials"], strict=True
    ):
        pairs = zip(shares, counts, strict=True)
        table.add_row(name, *("" if s is None else f"{s:.1%} ({n})" for s, n in pairs))
    console.print(table)


def _finalists(rows: list[study.Row]) -> list[dict[str, Any]]:
    """The finalists with the intervals of their means, and each of their trainings with its own."""
    found: list[dict[str, Any]] = []
    for mean in study.standings(rows):
        runs = [row for row in rows if row["number"] == mean["number"]]
        each = [{**row, "interval": _interval(row)} for row in runs]
        found.append({**mean, "interval": _interval(mean), "runs": each})
    return found


def _interval(row: study.Row) -> list[float]:
    return list(study.wilson(row["certified"], int(row["rows"])))


def _cost(trial: TrialRecord) -> dict[str, Any]:
    kept = ("number", "state", "seconds", "epochs")
    return {name: getattr(trial, name) for name in kept}


def _percents(interval: list[float]) -> str:
    return "{:.1f} - {:.1f}".format(*(100 * bound for bound in interval))


def _entry(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "certified": trial.certified,
        "interval": list(trial.interval),
        "clean_interval": list(study.wilson(trial.clean, trial.rows)),
        "certified_at": {f"{radius:g}": share for radius, share in trial.certified_at.items()},
        "clean": trial.clean,
        "mean_radius": trial.mean_radius,
        "seconds": trial.seconds,
        "params": trial.params,
    }


def _print_trials(title: str, entries: list[dict[str, Any]], spec: Spec, console: Console) -> None:
    radii = [f"{radius:g}" for radius in spec.search.radii]
    several = radii if len(radii) > 1 else []
    stated = [f"at {radius}" for radius in several]
    head = ["trial", "certified", "95 %", *stated, "clean", "radius", "s"]
    table = Table(*head, "parameters", title=title)
    for entry in entries:
        params = (
            f"{path.split('.')[-1]} {value:.3g}"
            if isinstance(value, float)
            else f"{path.split('.')[-1]} {value}"
            for path, value in entry["params"].items()
        )
        table.add_row(
            str(entry["number"]),
            f"{entry['certified']:.1%}",
            _percents(entry["interval"]),
            *(f"{entry['certified_at'].get(radius, 0.0):.1%}" for radius in several),
            f"{entry['clean']:.1%}",
            f"{entry['mean_radius']:.3f}",
            f"{entry['seconds']:.1f}",
            ", ".join(params),
        )
    console.print(table)
