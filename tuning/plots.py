"""What a search has found, as pictures: `raycrt study RUN` draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raycrt.spec import Spec

_SIZE = (6.0, 4.0)


def draw(found: dict[str, Any], spec: Spec, out: Path) -> list[Path]:
    """Write a PNG for each view of `tables.summary` that has something to show into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    radii = ", ".join(f"{radius:g}" for radius in found["radii"])
    label = f"certified at {radii}, %"
    written: list[Path] = []

    def keep(name: str, figure: Figure) -> None:
        written.append(out / f"{name}.png")
        figure.savefig(written[-1], dpi=120)

    if found["history"]:
        figure, axes = _figure()
        steps = found["history"]
        axes.step([s["number"] for s in steps], _percent(s["best"] for s in steps), where="post")
        axes.set(xlabel="trial", ylabel=f"best {label}")
        keep("history", figure)
    if found["importances"]:
        figure, axes = _figure()
        axes.barh(list(found["importances"])[::-1], list(found["importances"].values())[::-1])
        axes.set(xlabel="share of variance (fANOVA)", xlim=(0, 1))
        keep("importances", figure)
    if found["pareto"]:
        figure, axes = _figure()
        clean = _percent(entry["clean"] for entry in found["pareto"])
        axes.plot(clean, _percent(e["certified"] for e in found["pareto"]), marker="o")
        axes.set(xlabel="clean, %", ylabel=label, title="Pareto front")
        keep("pareto", figure)
    if any(found["slices"].values()):
        keep("slices", _slices(found["slices"], spec, label))
    if found["contour"]:
        keep("contour", _contour(found["contour"], label))
    return written


def _slices(slices: dict[str, list[dict[str, Any]]], spec: Spec, label: str) -> Figure:
    figure = Figure(figsize=(3 * len(slices), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
    for axes, (path, points) in zip(all_axes, slices.items(), strict=True):
        domain = spec.search.space[path]
        values = [
            point["value"] if domain.choices is None else str(point["value"]) for point in points
        ]
        axes.scatter(values, _percent(point["certified"] for point in points), s=14)
        axes.set_xlabel(path)
        if domain.log:
            axes.set_xscale("log")
    all_axes[0].set_ylabel(label)
    return figure


def _contour(contour: dict[str, Any], label: str) -> Figure:
    figure, axes = _figure()
    shares = 100 * np.array(contour["certified"], dtype=float)
    image = axes.imshow(shares, origin="lower", aspect="auto")
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


def _percent(shares: Any) -> list[float]:
    return [100 * share for share in shares]
