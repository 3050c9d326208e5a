"""The gallery of a page: the most and the least robust row of each class, and what an attack found.

Inputs that are images are pictures; of others the features that change most are named.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from raycrt.evaluation.page.attacked import Attacked
from raycrt.evaluation.page.scan import Row, Scan
from raycrt.specs.data import Statistics

# Classes that are shown, pixels of the longer side of a picture, and features that are named.
CLASSES = 20
_SIDE = 128
# Parts of a standard deviation that float32 does not tell apart, so that a 0 is shown as 0.
_GRAIN = 1e-6
_CHANGES = 4


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A `row`, the most or the least robust one of its class; `attacked` is None where it was not
    attacked.

    `pictures` are data URIs of the input, the nearest input of another class found and their
    difference; `changes` the features that differ most, with their values before and after, in the
    units of the data before `data.scale`.
    """

    row: Row
    which: str
    attacked: Attacked | None
    pictures: tuple[str, ...] = ()
    changes: tuple[tuple[str, float, float], ...] = ()


def chosen(scan: Scan) -> list[tuple[str, Row]]:
    """The rows that a gallery shows, by class, each with a word for which it is."""
    labels = sorted(scan.least)[:CLASSES]
    pairs = [("least robust", scan.least), ("most robust", scan.most)]
    return [(which, rows[label]) for label in labels for which, rows in pairs]


def exhibits(
    rows: Sequence[tuple[str, Row]],
    found: Mapping[int, Attacked],
    columns: Sequence[str],
    scale: Statistics | None,
) -> list[Exhibit]:
    """The exhibits of `rows`; `columns` are the names of the features, where there are some, and
    `scale` the mean and standard deviation that the data was scaled with."""
    return [_exhibit(which, row, found.get(row.index), columns, scale) for which, row in rows]


def _exhibit(
    which: str,
    row: Row,
    attacked: Attacked | None,
    columns: Sequence[str],
    scale: Statistics | None,
) -> Exhibit:
    if attacked is None:
        return Exhibit(row=row, which=which, attacked=None)
    image, u = attacked.image.astype(np.float64), attacked.perturbation
    there = np.isfinite(attacked.distance)
    if image.ndim == 3 and len(image) in (1, 3):
        low, high = _range(image)
        shown = [(image - low) / (high - low)]
        if there:
            shown += [(image + u - low) / (high - low), 0.5 + u / (2 * np.abs(u).max())]
        pictures = tuple(map(_png, shown))
        return Exhibit(row=row, which=which, attacked=attacked, pictures=pictures)
    most = np.argsort(-np.abs(u.ravel()), kind="stable")[: _CHANGES if there else 0].tolist()
    before, after = (_in_own_units(values, scale).ravel() for values in (image, image + u))
    changes = tuple((_name(columns, i), float(before[i]), float(after[i])) for i in most)
    return Exhibit(row=row, which=which, attacked=attacked, changes=changes)


def _in_own_units(values: np.ndarray, scale: Statistics | None) -> np.ndarray:
    """An input (features,) or (channels, height, width) as it was before it was scaled."""
    if scale is None:
        return values
    ones = (1,) * (values.ndim - 1)
    mean, std = (np.array(numbers).reshape(-1, *ones) for numbers in (scale.mean, scale.std))
    grain = std * _GRAIN
    found: np.ndarray = np.round((values * std + mean) / grain) * grain
    return found


def _name(columns: Sequence[str], feature: int) -> str:
    return columns[feature] if columns else f"feature {feature}"


def _range(image: np.ndarray) -> tuple[float, float]:
    """What is black and what is white: 0 and 1, or the least and the largest pixel of others."""
    low, high = float(image.min()), float(image.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _png(image: np.ndarray) -> str:
    """A data URI of an image (channels, height, width) with pixels in 0 .. 1, cut off beyond."""
    pixels = np.moveaxis((255 * image.clip(0, 1)).round().astype(np.uint8), 0, 2)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
