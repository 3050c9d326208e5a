"""A data set in words and as a picture: shape, range, rows of each class, the first inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycrt.data.splits import NAMES, Arrays, ArraySplits, mixed

_ROWS, _COLUMNS = 3, 8
_AXES = {1: "features", 3: "channels, height, width"}


def lines(dataset: ArraySplits, names: tuple[str, ...]) -> list[str]:
    """Shape and range of the inputs, and a table of the rows of each class in each split."""
    splits = {name: getattr(dataset, name) for name in NAMES}
    given = {name: split for name, split in splits.items() if len(split)}
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
