"""Means and deviations of inputs: those of `data.normalize` and of `data.scale`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from raycrt.data.splits import NAMES, Dataset, Split
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec
from raycrt.specs.data import Statistics


def of(split: Split) -> Statistics:
    """Mean and standard deviation of each channel or feature of the rows, in float64.

    One that is constant in all rows has the deviation 1: it is moved to 0 and not stretched.
    """
    rows = split.images.double().flatten(2) if split.images.dim() > 2 else split.images.double()
    axes = (0, 2) if rows.dim() == 3 else (0,)
    mean, deviation = rows.mean(axes), rows.std(axes, correction=0)
    constant = (rows.amax(axes) == rows.amin(axes)) | (deviation == 0)
    deviation = deviation.masked_fill(constant, 1.0)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(deviation.tolist()))


def check(found: Statistics, shape: Sequence[int], key: str) -> None:
    """Raise `InvalidInput` unless there is one number for each channel or feature of `shape`."""
    if len(found.mean) != shape[0]:
        of_what = "channel" if len(shape) == 3 else "feature"
        raise InvalidInput(
            f"data.{key} must have a mean and a std for each {of_what} of inputs of shape "
            f"{tuple(shape)}, but has {len(found.mean)}"
        )


def scaled(dataset: Dataset, spec: DataSpec) -> tuple[Dataset, Statistics | None]:
    """The inputs of all splits as `spec.scale` states, and the numbers that were used.

    `InvalidInput` where a result is not finite in float32.
    """
    if spec.scale is None:
        return dataset, None
    used = of(dataset.train) if spec.scale == "auto" else spec.scale
    check(used, dataset.train.images.shape[1:], "scale")
    parts = {name: _scaled(getattr(dataset, name), used) for name in NAMES}
    return replace(dataset, **parts), used


def _scaled(split: Split, used: Statistics) -> Split:
    images = split.images.double()
    mean, std = (spread(numbers, images) for numbers in (used.mean, used.std))
    found = ((images - mean) / std).float()
    if not bool(found.isfinite().all()):
        raise InvalidInput(
            "inputs must be finite in float32 after data.scale: its std is too small"
        )
    return replace(split, images=found)


def spread(numbers: Sequence[float], images: Tensor) -> Tensor:
    """One number for each channel or feature, to be broadcast over `images` (n, ...)."""
    return images.new_tensor(numbers).reshape(1, -1, *(1,) * (images.dim() - 2))
