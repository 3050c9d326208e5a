"""The plots of a search that `raycrt study RUN` draws.

Every measured share has its 95 % interval, and an axis is at least as wide as the intervals on it,
so that a difference looks large only if it is. Optuna's own plots have no intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raycrt.specs import Spec
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place

_SIZE = (6.0, 4.0)


def draw(found: dict[str, Any], spec: Spec, out: Place) -> list[Place]:
    """Write a PNG into `out` for each non-empty part of a `summary`; return the files."""
    outputs.made(out)
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    label = f"certified at {radii}, %"
    written: list[Place] = []

    def keep(name: str, figure: Figure) -> None:
        written.append(out / f"{name}.png")
        outputs.write_figure(written[-1], figure, 120)

    if found["history"]:
        keep("history", _history(found["history"], label))
    if found["importances"]:
        keep("importances", _importances(found["importances"], found["importance_evaluator"]))
    if found["pareto"]:
        keep("pareto", _pareto(found["pareto"], label))
    if any(found["slices"].values()):
        keep("slices", _slices(found["slices"], spec, label))
    if found["contour"]:
        keep("contour", _contour(found["contour"], label, _range(found["history"])))
    return written


def _history(steps: list[dict[str, Any]], label: str) -> Figure:
    figure, axes = _figure()
    numbers = [step["number"] for step in steps]
    _points(axes, numbers, steps, label="complete trial, 95 %")
    axes.step(numbers, _percent(s["best"] for s in steps), where="post", color="C1", label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=label)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _importances(importances: dict[str, dict[str, Any]], evaluator: str) -> Figure:
    figure, axes = _figure()
    for path, found in reversed(importances.items()):
        interval = found["interval"]
        axes.barh(path, 0 if interval is None else found["share"], color="C0")
        if interval is not None:
            axes.plot(interval, (path, path), color="black", linewidth=1.5)
    axes.set(xlabel=f"share of importance for the best tenth ({evaluator})", xlim=(0, 1))
    if any(found["interval"] is None for found in importances.values()):
        axes.set_title("without a bar: too few trials to tell")
    return figure


def _pareto(front: list[dict[str, Any]], label: str) -> Figure:
    figure, axes = _figure()
    clean = _percent(entry["clean"] for entry in front)
    intervals = [entry["clean_interval"] for entry in front]
    widths = _errors(clean, intervals)
    axes.plot(clean, _percent(entry["certified"] for entry in front), color="C0")
    _points(axes, clean, front, xerr=widths)
    axes.set(xlabel="clean, %", ylabel=label, title="Pareto front, 95 % intervals")
    return figure


def _slices(slices: dict[str, list[dict[str, Any]]], spec: Spec, label: str) -> Figure:
    figure = Figure(figsize=(3 * len(slices), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
    for axes, (path, points) in zip(all_axes, slices.items(), strict=True):
        domain = spec.search.space[path]
        values = [
            point["value"] if domain.choices is None else str(point["value"]) for point in points
        ]
        _points(axes, values, points)
        axes.set_xlabel(path)
        if domain.log:
            axes.set_xscale("log")
    all_axes[0].set_ylabel(label)
    return figure


def _contour(contour: dict[str, Any], label: str, colours: tuple[float, float]) -> Figure:
    figure, axes = _figure()
    shares = 100 * np.array(contour["certified"], dtype=float)
    low, high = colours
    image = axes.imshow(shares, origin="lower", aspect="auto", vmin=low, vmax=high)
    for row, counts in enumerate(contour["trials"]):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color="white")
    axes.set_xticks(range(len(contour["x_cells"])), contour["x_cells"], rotation=30, ha="right")
    axes.set_yticks(range(len(contour["y_cells"])), contour["y_cells"])
    axes.set(xlabel=contour["x"], ylabel=contour["y"], title="in white: complete trials")
    figure.colorbar(image, ax=axes, label=label)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _points(axes: Axes, x: Sequence[Any], entries: Sequence[dict[str, Any]], **more: Any) -> None:
    """A point at `certified` of each entry, with its interval."""
    shares = _percent(entry["certified"] for entry in entries)
    bars = _errors(shares, [entry["interval"] for entry in entries])
    axes.errorbar(x, shares, bars, fmt="o", color="C0", ecolor="0.7", markersize=4, **more)


def _errors(shares: list[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """The distances (2, n) from each share down and up to the ends of its interval, in per cent."""
    low, high = 100 * np.array(intervals, dtype=float).reshape(-1, 2).T
    # Wilson's interval holds the share up to rounding.
    return np.array([shares - low, high - shares]).clip(0)


def _range(entries: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The lowest and highest end of all intervals, in per cent."""
    bounds = [100 * bound for entry in entries for bound in entry["interval"]]
    return (min(bounds), max(bounds)) if bounds else (0.0, 100.0)


def _percent(shares: Any) -> list[float]:
    return [100 * share for share in shares]
