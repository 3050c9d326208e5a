"""Means and deviations of inputs: those of `data.normalize` and of `data.scale`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raycrt.data.splits import NAMES, Arrays, ArraySplits
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec
from raycrt.specs.data import Statistics


def used(whole: ArraySplits | None, spec: DataSpec) -> dict[str, Statistics]:
    """The numbers of `scale` and `normalize`, as far as `spec` has them; those of the training rows
    in place of `auto`, of which normalize has them after scale. `InvalidInput` where there are
    none, or where `whole` is not in memory."""
    found: dict[str, Statistics] = {}
    for key in ("scale", "normalize"):
        asked = getattr(spec, key)
        if asked == "auto":
            if whole is None or not len(whole.train):
                why = "run.stream is set" if whole is None else "there are no training rows"
                raise InvalidInput(f"data.{key} must state its numbers where {why}, not auto")
            asked = of(
                whole.train if "scale" not in found else _scaled(whole.train, found["scale"])
            )
        if asked is not None:
            found[key] = asked
    return found


def of(split: Arrays) -> Statistics:
    """Mean and standard deviation of each channel or feature of the rows, in float64.

    One that is constant in all rows has the deviation 1: it is moved to 0 and not stretched.
    """
    rows = split.images.astype(np.float64)
    axes = (0, *range(2, rows.ndim))
    deviation = rows.std(axes)
    constant = (rows.max(axes) == rows.min(axes)) | (deviation == 0)
    deviation = np.where(constant, 1.0, deviation)
    return Statistics(mean=tuple(rows.mean(axes).tolist()), std=tuple(deviation.tolist()))


def check(found: Statistics, shape: Sequence[int], key: str) -> None:
    """Raise `InvalidInput` unless there is one number for each channel or feature of `shape`."""
    if len(found.mean) != shape[0]:
        of_what = "channel" if len(shape) == 3 else "feature"
        raise InvalidInput(
            f"data.{key} must have a mean and a std for each {of_what} of inputs of shape "
            f"{tuple(shape)}, but has {len(found.mean)}"
        )


def scaled(whole: ArraySplits, scale: Statistics) -> ArraySplits:
    """The inputs of all splits, scaled. `InvalidInput` where a result is not finite in float32."""
    return ArraySplits(**{name: _scaled(getattr(whole, name), scale) for name in NAMES})


def _scaled(split: Arrays, scale: Statistics) -> Arrays:
    return replace(split, images=scaled_inputs(split.images, scale))


def scaled_inputs(inputs: np.ndarray, scale: Statistics) -> np.ndarray:
    """Inputs (n, ...) in units of the `scale`, float32."""
    check(scale, inputs.shape[1:], "scale")
    ones = (1,) * (inputs.ndim - 2)
    mean, std = (np.array(numbers).reshape(1, -1, *ones) for numbers in (scale.mean, scale.std))
    with np.errstate(over="ignore"):
        found = ((inputs.astype(np.float64) - mean) / std).astype(np.float32)
    if not np.isfinite(found).all():
        raise InvalidInput(
            "inputs must be finite in float32 after data.scale: its std is too small"
        )
    return found
