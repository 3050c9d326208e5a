"""A data set in words and as a picture: shape, range, rows of each class, the first inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycrt.data.splits import NAMES, Arrays, ArraySplits, mixed
from raycrt.specs import DataSpec

_ROWS, _COLUMNS = 3, 8
# Deviations of features whose largest is this many times the least have units of their own.
_UNEVEN = 10
_AXES = {1: "features", 3: "channels, height, width"}


def lines(dataset: ArraySplits, names: tuple[str, ...]) -> list[str]:
    """Shape and range of the inputs, and a table of the rows of each class in each split."""
    splits, given = {name: getattr(dataset, name) for name in NAMES}, _given(dataset)
    first, images = next((name, split.images) for name, split in given.items())
    shape = tuple(images.shape[1:])
    low = min(float(split.images.min()) for split in given.values())
    high = max(float(split.images.max()) for split in given.values())
    mean, deviation = images.mean(), images.std(ddof=1)
    counts = [np.bincount(s.labels, minlength=len(names)).tolist() for s in splits.values()]
    table = [
        ["class", *NAMES],
        *([name, *map(str, row)] for name, *row in zip(names, *counts, strict=True)),
        ["all", *(str(sum(column)) for column in counts)],
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"shape: {' x '.join(map(str, shape))} ({_AXES[len(shape)]})",
        f"values: {low:.6g} .. {high:.6g} (in {first}: mean {mean:.4g}, deviation {deviation:.4g})",
        f"classes: {len(names)}",
        *(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in table
        ),
    ]


def _given(dataset: ArraySplits) -> dict[str, Arrays]:
    """The splits that have rows."""
    splits = {name: getattr(dataset, name) for name in NAMES}
    return {name: split for name, split in splits.items() if len(split)}


def remark(spec: DataSpec, dataset: ArraySplits | Arrays) -> str | None:
    """A sentence on pixels that are not in 0 .. 1, which may be an oversight."""
    given = [dataset] if isinstance(dataset, Arrays) else _given(dataset).values()
    images = [split.images for split in given]
    if images[0].ndim != 4 or spec.scale is not None:
        return None
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    if low >= 0 and high <= 1:
        return None
    return (
        f"note: pixels of {spec.title} are {low:.6g} .. {high:.6g}, not 0 .. 1, and are used as "
        "they are: radii are distances in these units"
    )


def advice(spec: DataSpec, dataset: ArraySplits) -> str | None:
    """What to do with inputs of different scales, unless `spec` does it."""
    if spec.scale is not None or spec.normalize is not None or not len(dataset.train):
        return None
    if dataset.train.images.ndim == 4:
        return (
            "advice: --set data.normalize=auto puts (x - mean) / std of each channel in front of "
            "the model; radii stay in the units of the data"
        )
    spread = dataset.train.images.std(0, dtype=np.float64)
    spread = spread[spread > 0]
    if not len(spread) or spread.max() < _UNEVEN * spread.min():
        return None
    return (
        f"advice: deviations of features are {spread.min():.3g} .. {spread.max():.3g}; --set "
        "data.scale=auto divides each feature by its own, and radii are in units of these"
    )


def draw(split: Arrays, names: tuple[str, ...], file: Path) -> None:
    """Write a PNG of the first images of each class; inputs that are no images as curves over their
    features. Several channels other than red, green and blue are averaged."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * _COLUMNS, 1.8 * _ROWS), layout="constrained")
    axes = figure.subplots(_ROWS, _COLUMNS).flat
    low, high = float(split.images.min()), float(split.images.max())
    split = split.take(mixed(split.labels)[: _ROWS * _COLUMNS])
    for axis, image, label in zip(axes, split.images, split.labels.tolist(), strict=False):
        axis.set_title(names[label][:20], fontsize=8, parse_math=False)
        if image.ndim == 1:
            axis.plot(image, marker=".")
            axis.set_ylim(low, high)
        elif len(image) == 3:
            shown = (image - low) / max(high - low, 1e-12)
            axis.imshow(np.moveaxis(shown, 0, 2))
        else:
            axis.imshow(image.mean(0), cmap="gray", vmin=low, vmax=high)
    for axis in figure.axes:
        axis.set_xticks([])
        axis.set_axis_on() if axis.has_data() else axis.set_axis_off()
        if axis.images:
            axis.set_yticks([])
    figure.savefig(file, dpi=150)
