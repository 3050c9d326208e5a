"""What a search has found, as one dictionary for scripts and as tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raycrt.spec import Spec
from tuning import landscape, study
from tuning.study import TrialRecord

_SHOWN = 10


def summary(run: Path) -> dict[str, Any]:
    """Everything `raycrt study` says, in plain numbers, lists and dictionaries."""
    spec, trials, record = study.load(run)
    count = {state: sum(t.state == state for t in trials) for state in study.STATES}
    saved = study.saved_epochs(trials, spec)
    ran = sum(trial.epochs for trial in trials)
    importances = study.importances(record)
    return {
        "study": record.study_name,
        "radii": list(spec.search.radii),
        "states": count,
        "best": [_entry(trial) for trial in study.ranking(trials)[:_SHOWN]],
        "finalists": study.standings(study.finalists(run)),
        "pareto": [_entry(trial) for trial in study.pareto(trials)],
        "importances": importances,
        "slices": landscape.slices(trials, spec),
        "contour": landscape.contour(trials, spec, importances),
        "history": [{"number": n, "best": value} for n, value in study.history(trials)],
        "cost": {
            "seconds": sum(trial.seconds for trial in trials),
            "trials": [
                {"number": t.number, "seconds": t.seconds, "epochs": t.epochs} for t in trials
            ],
            "epochs": ran,
            "epochs_saved_by_pruning": saved,
            "share_saved": saved / (saved + ran) if saved + ran else 0.0,
        },
        "rung_agreement": {
            epoch: {"tau": tau, "trials": count}
            for epoch, (tau, count) in study.agreement(trials).items()
        },
        "failures": [{"number": t.number, "reason": t.reason} for t in trials if t.reason],
    }


def show(found: dict[str, Any], spec: Spec, console: Console) -> None:
    """Print `summary` for people."""
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    console.print(f"study {found['study']}: {states}", highlight=False)
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    _print_trials(f"best trials (certified at {radii})", found["best"], spec, console)
    _print_trials("Pareto front, certified against clean", found["pareto"], spec, console)
    if found["finalists"]:
        table = Table("trial", "certified", "clean", "seeds", title="finals")
        for row in found["finalists"]:
            shares = (f"{row['certified']:.1%}", f"{row['clean']:.1%}")
            table.add_row(str(row["number"]), *shares, str(row["seeds"]))
        console.print(table)
    if found["contour"]:
        _print_contour(found["contour"], console)
    weights = ", ".join(f"{name} {share:.2f}" for name, share in found["importances"].items())
    taus = ", ".join(
        f"epoch {epoch} {pair['tau']:.2f} ({pair['trials']} trials)"
        for epoch, pair in found["rung_agreement"].items()
    )
    few = "too few trials"
    console.print(f"importance (fANOVA): {weights or few}", highlight=False)
    console.print(f"Kendall tau of a rung with the end: {taus or few}", highlight=False)
    cost = found["cost"]
    console.print(
        f"cost: {cost['seconds']:.0f} s of trials, {cost['epochs']} epochs; pruning saved "
        f"{cost['epochs_saved_by_pruning']} ({cost['share_saved']:.0%})",
        highlight=False,
    )
    for failure in found["failures"]:
        console.print(f"trial {failure['number']} failed: {failure['reason']}", markup=False)


def _print_contour(contour: dict[str, Any], console: Console) -> None:
    """The mean of `certified` in each cell and of how many trials; nothing where there is none."""
    title = f"certified by {contour['x']} and {contour['y']} (trials)"
    table = Table(contour["y"], *contour["x_cells"], title=title)
    for name, shares, counts in zip(
        contour["y_cells"], contour["certified"], contour["trials"], strict=True
    ):
        pairs = zip(shares, counts, strict=True)
        table.add_row(name, *("" if s is None else f"{s:.1%} ({n})" for s, n in pairs))
    console.print(table)


def _entry(trial: TrialRecord) -> dict[str, Any]:
    low, high = study.wilson(trial.certified, trial.rows)
    return {
        "number": trial.number,
        "certified": trial.certified,
        "interval": [low, high],
        "certified_at": {f"{radius:g}": share for radius, share in trial.certified_at.items()},
        "clean": trial.clean,
        "mean_radius": trial.mean_radius,
        "seconds": trial.seconds,
        "params": trial.params,
    }


def _print_trials(title: str, entries: list[dict[str, Any]], spec: Spec, console: Console) -> None:
    radii = [f"{radius:g}" for radius in spec.search.radii]
    several = radii if len(radii) > 1 else []
    at = [f"at {radius}" for radius in several]
    head = ["trial", "certified", "95 %", *at, "clean", "radius", "s"]
    table = Table(*head, "parameters", title=title)
    for entry in entries:
        low, high = entry["interval"]
        params = (
            f"{path.split('.')[-1]} {value:.3g}"
            if isinstance(value, float)
            else f"{path.split('.')[-1]} {value}"
            for path, value in entry["params"].items()
        )
        table.add_row(
            str(entry["number"]),
            f"{entry['certified']:.1%}",
            f"{100 * low:.1f} - {100 * high:.1f}",
            *(f"{entry['certified_at'].get(radius, 0.0):.1%}" for radius in several),
            f"{entry['clean']:.1%}",
            f"{entry['mean_radius']:.3f}",
            f"{entry['seconds']:.1f}",
            ", ".join(params),
        )
    console.print(table)
