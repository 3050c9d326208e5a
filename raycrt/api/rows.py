"""Rows that a program has at hand, as a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raycrt.data import Split
from raycrt.data.sources import items
from raycrt.data.values.images import batch_of_images
from raycrt.errors import InvalidInput, require

# A pair (inputs, labels) of tensors or arrays, a torch Dataset of such pairs, or a split.
Rows = tuple[Any, Any] | Dataset | Split


def split_of(rows: Rows) -> Split:
    """`rows` as a split: inputs float32 (n, features) or (n, channels, height, width), labels
    (n,) whole numbers from 0.

    Inputs of a pair are floating-point numbers, taken as they are; those of a `Dataset` may be PIL
    images or uint8 too, which are divided by 255. Raises `InvalidInput` for anything else, and
    for numbers that float32 does not hold.
    """
    if isinstance(rows, Split):
        return rows
    if isinstance(rows, Dataset):
        read = items.rows(rows, "the data set", None, None)
        return Split(
            images=_finite(torch.from_numpy(read.inputs)),
            labels=_labels(read.labels, len(read.inputs)),
        )
    if not isinstance(rows, tuple | list) or len(rows) != 2:
        raise InvalidInput(
            "rows must be a pair (inputs, labels), a torch Dataset or a raycrt.data.Split, but are "
            f"of type {type(rows).__name__}"
        )
    inputs = batch_of_images(rows[0]).cpu()
    require(
        inputs.dim() in (2, 4),
        "inputs are (n, features) or (n, channels, height, width)",
        shape=tuple(inputs.shape),
    )
    return Split(images=_finite(inputs.float()), labels=_labels(rows[1], len(inputs)))


def _finite(inputs: Tensor) -> Tensor:
    wrong = ~inputs.isfinite().flatten(1).all(1)
    if bool(wrong.any()):
        raise InvalidInput(
            f"inputs must be finite in float32, but row {int(wrong.nonzero()[0, 0])} is not"
        )
    return inputs.contiguous()


def _labels(labels: Any, rows: int) -> Tensor:
    given = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    if given.dtype.kind not in "iu" or given.shape != (rows,):
        raise InvalidInput(
            f"labels must be {rows} whole numbers, one for each row, but are {given.dtype} of "
            f"shape {given.shape}"
        )
    require(bool((given >= 0).all()), "labels are numbers from 0", smallest=int(given.min()))
    return torch.from_numpy(given.astype(np.int64))
