"""The model card of a bundle: Markdown with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycrt.certification.certificate import Status
from raycrt.evaluation.accuracy import Summary
from raycrt.specs import Spec, strict_yaml

_TEXT = """# Certified classifier of {title}

{rows} test rows, each with a proved l2 radius within which no perturbation changes the prediction.

| l2 radius | certified, all classes | runner-up class only |
|---|---|---|
{table}

Radii are l2 distances {units}. A row counts as certified at r if it is predicted correctly and its
radius is larger than r. Of the rows, {statuses}.

## The guarantee

If row i has the status `certified` and radius r, then no input that differs from input i by less
than r in l2 norm is predicted as another class, whatever that class is. This is a theorem about the
network with its stored weights, {arithmetic}; the rounding of the proof is accounted for.

## Its limits

It does not say that a prediction is correct. It says nothing about other norms, rotations or other
inputs. {deployment}

## To verify it

    pip install 'raycrt[verify]'
    raycrt verify FILE.zip{data}

This proves every radius again, by code that shares nothing with the solver that found them. The
text of this card is not proved: the numbers that count are those in `certificates/`.

## Files

{files}

Made by raycrt {version}, commit {commit}.
"""
_FILES = {
    "train/model.safetensors": "the weights",
    "train/spec.yaml": "the layers, and the training where it is known",
    "model.onnx": "the same network as ONNX: `input` (n, {shape}) to `logits`",
    "certificates/": "a row for each test input, and their manifest",
    "data/": "the certified inputs (float32) and labels",
    "report/": "the report of the run",
    "bundle.json": "SHA-256 of every file, hash of the data, versions, the verdict of the checker",
}


def written(
    spec: Spec,
    summary: Summary,
    statuses: Mapping[str, int],
    *,
    shape: tuple[int, ...],
    names: list[str],
    origin: Mapping[str, object],
    license: str | None,
    included: bool,
) -> str:
    """The card of a bundle with the files `names`, about a model of inputs of `shape`."""
    exact = spec.certify.deployment == "exact"
    title = spec.data.title
    listed = {
        name: text.format(shape=", ".join(map(str, shape)))
        for name, text in _FILES.items()
        if any(other.startswith(name) for other in (*names, "bundle.json"))
    }
    body = _TEXT.format(
        title=title,
        rows=summary.rows,
        table="\n".join(
            f"| {radius} | {_percent(all_classes)} | {_percent(runner_up)} |"
            for radius, all_classes, runner_up in _shares(summary)
        ),
        units="of pixels in [0, 1]" if spec.data.name else "in the units of the data",
        statuses=", ".join(f"{number} are `{name}`" for name, number in statuses.items()),
        arithmetic="in exact arithmetic" if exact else "as float32 arithmetic computes it",
        deployment="Nor does it speak of the rounding of a float32 deployment." if exact else "",
        data="" if included else _own_data(spec),
        files="\n".join(f"- `{name}`: {text}" for name, text in listed.items()),
        version=origin["raycrt"],
        commit=origin["commit"] or "unknown",
    )
    return f"---\n{strict_yaml.write(_front(spec, summary, shape, license))}---\n\n{body}"


def statuses_of(column: list[str]) -> dict[str, int]:
    """The number of rows of each status that occurs, in the order of `Status`."""
    counts = {status.name.lower(): column.count(status.name.lower()) for status in Status}
    return {name: number for name, number in counts.items() if number}


def _own_data(spec: Spec) -> str:
    if spec.data.name == "digits":
        return "        # the data comes with scikit-learn: pip install scikit-learn"
    return " --data-dir PLACE        # of the data; or --data FILE.npz, with inputs and labels"


def _shares(summary: Summary) -> list[tuple[str, float, float]]:
    certified = [
        (f"{r:g}", share, summary.certified_runner_up[r]) for r, share in summary.certified.items()
    ]
    return [("0 (clean)", summary.clean, summary.clean), *certified]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _front(
    spec: Spec, summary: Summary, shape: tuple[int, ...], license: str | None
) -> dict[str, Any]:
    task = "image-classification" if len(shape) == 3 else "tabular-classification"
    metrics = [{"type": "accuracy", "name": "clean accuracy", "value": summary.clean}]
    metrics += [
        {
            "type": "certified_accuracy",
            "name": f"certified accuracy at l2 radius {r:g}, all classes",
            "value": share,
        }
        for r, share in summary.certified.items()
    ]
    dataset = {"type": spec.data.title, "name": spec.data.title, "split": "test"}
    result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
    return {
        "library_name": "raycrt",
        **({} if license is None else {"license": license}),
        "tags": ["certified-robustness", "l2", "curvature", task],
        "metrics": ["accuracy", "certified_accuracy"],
        "model-index": [
            {"name": f"certified classifier of {spec.data.title}", "results": [result]}
        ],
    }
