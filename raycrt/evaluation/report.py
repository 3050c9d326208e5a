"""The report of a run: Markdown with headline and tables, and a plot of certified accuracy."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from raycrt import data
from raycrt.certification import storage
from raycrt.errors import require
from raycrt.evaluation.accuracy import Summary
from raycrt.evaluation.tally import COLUMNS, Counts, Tally
from raycrt.specs import Spec, validate
from raycrt.specs.provenance import Training
from raycrt.system import outputs
from raycrt.system.storage import Place, content

_TRIALS_SHOWN = 20
_CHECK = "Radii are those that the rows state; `raycrt verify` proves each of them again.\n"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The headline, lines about rows with a status other than `certified`, the files written."""

    headline: str
    summary: Summary
    remarks: list[str]
    markdown: Place
    plot: Place


def write(directory: Place, out: Place, *, trials_csv: Place | None = None) -> Report:
    """Write `report.md` and `certified_accuracy.png` into `out` from a certificates directory.

    Rows are read some at a time. Of a run that is not complete the rows written so far are
    reported, which the report says.
    """
    manifest = storage.read_manifest(directory)
    spec = validate({key: part for key, part in manifest["spec"].items() if part is not None})
    found = Counts.of(directory, spec.certify.at, manifest["rows"])
    rows = found.whole.rows
    require(rows > 0, "a report is about rows that are written", directory=str(directory))
    outputs.made(out)
    summary = found.whole.summary()
    if manifest["spec"]["model"] is not None:
        spec.save(out, without=() if manifest.get("training") else ("train", "search"))
    plot = out / "certified_accuracy.png"
    draw(directory, plot, spec.certify.at, found.largest)
    rate = rows / manifest["seconds"] if manifest.get("seconds") else None
    first = headline(summary, rate)
    parts = [f"# {spec.data.title}: certified accuracy\n", first + "\n", _radii(summary), _CHECK]
    remarks = storage.remarks(found.statuses)
    if rows != manifest["rows"] or manifest.get("complete") is not True:
        remarks.insert(0, f"{rows} of {manifest['rows']} rows are certified so far.")
    if spec.data.scale is not None:
        parts.insert(2, f"Radii are in {spec.data.units}.\n")
    if remarks:
        parts.append("\n".join(f"- {line}" for line in remarks) + "\n")
    parts.append(f"![certified accuracy against radius]({plot.name})\n")
    parts.append(_classes(found.by_class, spec, summary))
    parts.append(_model(manifest))
    if trials_csv is not None:
        parts.append(_trials(trials_csv))
    markdown = out / "report.md"
    outputs.write_atomically(markdown, "\n".join(parts).encode())
    return Report(headline=first, summary=summary, remarks=remarks, markdown=markdown, plot=plot)


def headline(summary: Summary, images_per_second: float | None) -> str:
    """One line: clean accuracy, certified accuracy at the stated radii, mean radius, and the speed
    where it is known."""
    infinite = f" (and {summary.infinite} infinite)" if summary.infinite else ""
    radii = ", ".join(f"{100 * share:.2f} % at {r:g}" for r, share in summary.certified.items())
    speed = f"{images_per_second:.0f} images/s with start-up; " if images_per_second else ""
    return (
        f"clean {100 * summary.clean:.2f} %; certified (all classes) {radii}; "
        f"mean radius {summary.mean_radius:.4f}{infinite}; {speed}{summary.rows} test images"
    )


def draw(directory: Place, file: Place, stated: tuple[float, ...], largest: float) -> None:
    """Write a PNG of certified accuracy against the radius, for all classes and for the runner-up
    alone, with a line at each of the `stated` radii; `largest` is the largest finite radius."""
    from matplotlib.figure import Figure

    radii = np.linspace(0, max(1.05 * largest, stated[-1]), 400).tolist()
    tallies = (Tally.of(rows, radii) for rows in storage.batches(directory, COLUMNS))
    found = reduce(add, tallies).summary()
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


def _model(manifest: dict[str, Any]) -> str:
    model, training = manifest["spec"]["model"], manifest.get("training")
    lines = ["## Model\n", "| key | value |", "|---|---|"]
    if model is None:
        lines.append("| model | not one that a spec can describe |")
    lines += [f"| model.{k} | {v} |" for k, v in (model or {}).items()]
    if training is None:
        lines.append("| training | unknown: the weights come from elsewhere |")
    else:
        made = Training.model_validate(training)
        lines += [f"| train.{k} | {v} |" for k, v in training["train"].items()]
        lines += [f"| data.{k} | {v} |" for k, v in _trained_on(made).items()]
        lines.append(f"| trained on | {made.sentence or 'training and validation rows'} |")
        lines.append(f"| seed | {made.run.seed} |")
    lines.append(f"| weights SHA-256 | `{manifest['weights_sha256']}` |")
    return "\n".join(lines) + "\n"


def _trained_on(made: Training) -> dict[str, object]:
    """The keys of the data of a training that its data set uses, without its facts."""
    used = data.uses(made.data) - {"directory", "download", "shape", "class_names"}
    own = made.data.model_dump(mode="json")
    return {
        key: own[key] for key in own if (key in used and own[key] is not None) or key == "limit"
    }


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
