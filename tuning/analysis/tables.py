"""The results of a search, printed as tables that are no wider than the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from raycrt.evaluation.intervals import SAME
from raycrt.specs import Spec
from raycrt.specs.short_names import short_names
from raycrt.tuning.analysis import agreement, importance
from raycrt.tuning.analysis.agreement import Agreement

_SHOWN = 10
_CERTIFIED, _CLEAN = "certified, % (95 %)", "clean, % (95 %)"


def show(found: dict[str, Any], spec: Spec, console: Console) -> None:
    """Print the results of one search, a `summary`."""
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    console.print(f"study {found['study']}: {states}", highlight=False)
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    best = found["best"]
    _print_trials(f"best trials (certified at {radii})", best, console)
    if len(best) > 1:
        console.print(_told_apart(best), highlight=False)
    if len(found["radii"]) > 1:
        _print_radii(best, console)
    _print_parameters("parameters of the best trials", best, spec, console)
    _print_trials("Pareto front, certified against clean", found["pareto"], console)
    shown = [entry["number"] for entry in best]
    others = [entry for entry in found["pareto"] if entry["number"] not in shown]
    _print_parameters("parameters of others on the front", others, spec, console)
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


def share(value: float, interval: Sequence[float]) -> str:
    """A share and its interval in per cent: 80.7 (79.6 - 81.8)."""
    low, high = (100 * bound for bound in interval)
    return f"{100 * value:.1f} ({low:.1f} - {high:.1f})"


def print_columns(
    title: str, first: tuple[str, list[str]], columns: list[tuple[str, list[str]]], console: Console
) -> None:
    """Print a table as several where it is too wide, each with the `first` column and as many of
    the others as fit; a column is its head and its cells."""
    left = list(columns)
    while left:
        fitting = 1
        while fitting < len(left) and _width([first, *left[: fitting + 1]]) <= console.width:
            fitting += 1
        part = [first, *left[:fitting]]
        table = Table(*(head for head, _ in part), title=title)
        for row in zip(*(cells for _, cells in part), strict=True):
            table.add_row(*row)
        console.print(table)
        title, left = f"{title.removesuffix(', continued')}, continued", left[fitting:]


def _width(columns: list[tuple[str, list[str]]]) -> int:
    """The width of a table with borders."""
    return 1 + sum(3 + max(map(len, [head, *cells])) for head, cells in columns)


def _told_apart(best: list[dict[str, Any]]) -> str:
    """How many of the best trials may be as good as the first."""
    first, *others = best
    same = sum(entry["verdict"] == SAME for entry in others)
    return (
        f"on {first['rows']} validation rows {same} of the other {len(others)} trials cannot be "
        f"told apart from trial {first['number']}: the 95 % interval of the difference holds 0"
    )


def _numbers(entries: list[dict[str, Any]]) -> tuple[str, list[str]]:
    return "trial", [str(entry["number"]) for entry in entries]


def _print_trials(title: str, entries: list[dict[str, Any]], console: Console) -> None:
    columns = [
        (_CERTIFIED, [share(e["certified"], e["interval"]) for e in entries]),
        (_CLEAN, [share(e["clean"], e["clean_interval"]) for e in entries]),
        ("mean radius", [f"{e['mean_radius']:.3f}" for e in entries]),
        ("s", [f"{e['seconds']:.1f}" for e in entries]),
    ]
    print_columns(title, _numbers(entries), columns, console)


def _print_radii(entries: list[dict[str, Any]], console: Console) -> None:
    columns = [
        (
            f"at {radius}",
            [share(e["certified_at"][radius], e["certified_at_interval"][radius]) for e in entries],
        )
        for radius in (entries[0]["certified_at"] if entries else ())
    ]
    print_columns("certified at each radius, % (95 %)", _numbers(entries), columns, console)


def _print_parameters(
    title: str, entries: list[dict[str, Any]], spec: Spec, console: Console
) -> None:
    paths = [path for path in spec.search.space if any(path in e["params"] for e in entries)]
    short = short_names(spec.search.space)
    columns = [
        (short[path], [_value(entry["params"].get(path, "")) for entry in entries])
        for path in paths
    ]
    print_columns(title, _numbers(entries), columns, console)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _verdict(values: dict[str, Any]) -> str:
    known = {name: values[name] for name in ("trials", "tau", "interval")}
    return agreement.sentence(Agreement(**known))


def _print_importances(
    importances: dict[str, dict[str, Any]], complete: int, console: Console
) -> None:
    title = f"importance for the best tenth ({importance.EVALUATOR}, as in optuna-dashboard)"
    title += f", {complete} complete trials, {importance.FEWEST} needed"
    table = Table("parameter", "share", "95 %", "evidence", title=title)
    for path, found in importances.items():
        told = ("", "")
        if found["interval"] is not None:
            told = f"{found['share']:.2f}", "{:.2f} - {:.2f}".format(*found["interval"])
        table.add_row(path, *told, found["verdict"])
    if table.row_count:
        console.print(table)
    else:
        console.print(f"{title}: no trials, or all equal", highlight=False)


def _print_finalists(entries: list[dict[str, Any]], console: Console) -> None:
    """Print the finalists; the interval is that of the mean over the seeds, for the rows of one."""
    rows = entries[0]["rows"]
    title = f"finals: means over the seeds, {rows} rows counted once"
    table = Table("trial", "seed", _CERTIFIED, _CLEAN, "mean radius", title=title)
    for entry in entries:
        for name, run in (("mean", entry), *((str(run["seed"]), run) for run in entry["runs"])):
            table.add_row(
                str(entry["number"]) if name == "mean" else "",
                name,
                share(run["certified"], run["interval"]),
                share(run["clean"], run["clean_interval"]),
                f"{run['mean_radius']:.3f}",
            )
        table.add_section()
    console.print(table)


def _print_marginals(marginals: dict[str, list[dict[str, Any]]], console: Console) -> None:
    title = "certified by parameter, % (95 %)"
    table = Table(Column("parameter", overflow="fold"), "trials", "mean", "best", title=title)
    for path, cells in marginals.items():
        table.add_row(path)
        for cell in cells:
            shares = [share(cell[key], cell[f"{key}_interval"]) for key in ("mean", "best")]
            table.add_row(f"  {cell['cell']}", str(cell["trials"]), *shares)
        table.add_section()
    if table.row_count:
        console.print(table)


def _print_history(steps: list[dict[str, Any]], console: Console) -> None:
    """Print each trial that was better than all trials before it."""
    table = Table("trial", f"best {_CERTIFIED}", title="history")
    best = -1.0
    for step in steps:
        if step["best"] > best:
            best = step["best"]
            table.add_row(str(step["number"]), share(best, step["interval"]))
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
    columns = [
        (
            name,
            [
                "" if row[column] is None else f"{100 * row[column]:.1f} ({counts[column]})"
                for row, counts in zip(contour["certified"], contour["trials"], strict=True)
            ],
        )
        for column, name in enumerate(contour["x_cells"])
    ]
    title = f"certified, %, by {contour['x']} and {contour['y']} (trials)"
    print_columns(title, (contour["y"], contour["y_cells"]), columns, console)
    console.print(
        f"95 % intervals of these means reach {100 * contour['half_width']:.1f} points or less to "
        "either side",
        highlight=False,
    )
