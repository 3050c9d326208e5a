"""The report of a run: Markdown with headline and tables, and a plot of certified accuracy."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv

from raycrt import data
from raycrt.evaluation.accuracy import Summary
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.tally import Tally, over
from raycrt.specs import Spec
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place, content

_TRIALS_SHOWN = 20
_CHECK = "Radii are those that the rows state; `raycrt verify` proves each of them again.\n"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the rows state, and the files written."""

    found: Certified
    markdown: Place
    plot: Place

    @property
    def headline(self) -> str:
        return self.found.headline

    @property
    def remarks(self) -> list[str]:
        """Lines about rows that are missing or have a status other than `certified`."""
        return self.found.remarks

    @property
    def summary(self) -> Summary:
        return self.found.summary


def write(directory: Place, out: Place, *, trials_csv: Place | None = None) -> Report:
    """Write `report.md` and `certified_accuracy.png` into `out` from a certificates directory.

    Rows are read some at a time. Of a run that is not complete the rows written so far are
    reported, which the report says.
    """
    found = Certified.of(directory)
    spec, manifest = found.spec, found.manifest
    outputs.made(out)
    if manifest["spec"]["model"] is not None:
        spec.save(out, without=() if found.training else ("train", "search"))
    plot = out / "certified_accuracy.png"
    draw(directory, plot, spec.certify.at, found.counts.largest)
    title = f"# {spec.data.title}: certified accuracy\n"
    parts = [title, found.headline + "\n", _radii(found.summary), _CHECK]
    if spec.data.scale is not None:
        parts.insert(2, f"Radii are in {spec.data.units}.\n")
    if found.remarks:
        parts.append("\n".join(f"- {line}" for line in found.remarks) + "\n")
    parts.append(f"![certified accuracy against radius]({plot.name})\n")
    parts.append(_classes(found.counts.by_class, spec, found.summary))
    parts.append(_model(found))
    if trials_csv is not None:
        parts.append(_trials(trials_csv))
    markdown = out / "report.md"
    outputs.write_atomically(markdown, "\n".join(parts).encode())
    return Report(found=found, markdown=markdown, plot=plot)


def draw(directory: Place, file: Place, stated: tuple[float, ...], largest: float) -> None:
    """Write a PNG of certified accuracy against the radius, for all classes and for the runner-up
    alone, with a line at each of the `stated` radii; `largest` is the largest finite radius."""
    from matplotlib.figure import Figure

    radii = np.linspace(0, max(1.05 * largest, stated[-1]), 400).tolist()
    found = over(directory, radii).summary()
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(radii, _percent(found.certified), label="all classes (proved)")
    axes.plot(
        radii,
        _percent(found.certified_runner_up),
        linestyle="--",
        label="runner-up only (not a proof)",
    )
    for radius in stated:
        axes.axvline(radius, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel="l2 radius", ylabel="certified accuracy, %", ylim=(0, 100), xlim=(0, radii[-1]))
    axes.legend()
    outputs.write_figure(file, figure, 150)


def _percent(shares: dict[float, float]) -> list[float]:
    return [100 * share for share in shares.values()]


def _radii(summary: Summary) -> str:
    lines = [
        "| l2 radius | certified, all classes | runner-up only |",
        "|---|---|---|",
        f"| 0 (clean) | {100 * summary.clean:.2f} % | {100 * summary.clean:.2f} % |",
    ]
    for r, share in summary.certified.items():
        other = summary.certified_runner_up[r]
        lines.append(f"| {r:g} | {100 * share:.2f} % | {100 * other:.2f} % |")
    return "\n".join(lines) + "\n"


def _classes(by_class: dict[int, Tally], spec: Spec, whole: Summary) -> str:
    """Accuracy of the rows of each class, and of all."""
    radii = spec.certify.at
    lines = [
        "## Classes\n",
        "| class | rows | clean | " + " | ".join(f"certified at {r:g}" for r in radii) + " |",
        "|" + "---|" * (3 + len(radii)),
    ]
    for label, name in enumerate(data.class_names(spec.data)):
        own = by_class.get(label)
        lines.append(_of_class(_cell(name), own.summary() if own else None, radii))
    return "\n".join([*lines, _of_class("all", whole, radii)]) + "\n"


def _of_class(name: str, found: Summary | None, radii: tuple[float, ...]) -> str:
    if found is None:
        return f"| {name} | 0 |" + " |" * (1 + len(radii))
    shares = [found.clean, *(found.certified[r] for r in radii)]
    return f"| {name} | {found.rows} | " + " | ".join(f"{100 * s:.2f} %" for s in shares) + " |"


def _model(found: Certified) -> str:
    lines = ["## Model\n", "| key | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in found.weights]
    lines.append(f"| weights SHA-256 | `{found.manifest['weights_sha256']}` |")
    return "\n".join(lines) + "\n"


def _trials(file: Place) -> str:
    typed = csv.ConvertOptions(column_types={"certified": pa.float64()})
    trials = csv.read_csv(io.BytesIO(content(file)), convert_options=typed)
    shown = trials.sort_by([("certified", "descending")]).slice(0, _TRIALS_SHOWN)
    names = shown.column_names
    lines = ["## Trials\n", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in shown.to_pylist()]
    if len(trials) > len(shown):
        lines.append(f"\n{len(trials) - len(shown)} more in `{file.name}`.")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value).replace("|", r"\|")
