"""Checks of inputs: one shape, the same columns, finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from raycrt.data.sources.source import Rows
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput


def check_inputs(rows: Rows, first: Rows, stated: Sequence[int] | None) -> None:
    """Refuse inputs of other columns or another shape than the `first` rows or the `stated` one,
    NaN and inf."""
    check_alike(rows, first)
    if stated is not None:
        check_shape(rows, stated)
    wrong = ~np.isfinite(rows.inputs)
    if wrong.any():
        raise InvalidInput(_not_finite(rows, wrong))


def check_alike(rows: Rows, first: Rows) -> None:
    """Refuse inputs of other columns or another shape than the `first` rows."""
    for one, other in zip_longest(rows.columns, first.columns):
        if one != other:
            raise InvalidInput(
                "all splits must have the same columns in one order, but where "
                f"{first.where} has {other!r}, {rows.where} has {one!r}"
            )
    if rows.inputs.shape[1:] != first.inputs.shape[1:]:
        raise InvalidInput(
            pixels.another_shape(rows.inputs[0], rows.place(0), first.inputs[0], first.place(0))
        )


def check_shape(rows: Rows, stated: Sequence[int]) -> None:
    """Refuse inputs of another shape than the `stated` one."""
    if tuple(stated) != rows.inputs.shape[1:]:
        raise InvalidInput(
            f"data.shape states {tuple(stated)}, but {rows.place(0)} has "
            f"{tuple(rows.inputs.shape[1:])}"
        )


def _not_finite(rows: Rows, wrong: np.ndarray) -> str:
    row, *index = (int(k) for k in np.argwhere(wrong)[0])
    value = float(rows.inputs[(row, *index)])
    where = f"column {rows.columns[index[0]]!r}" if rows.columns else f"entry {tuple(index)}"
    return f"inputs must be finite in float32, but {where} in {rows.place(row)} is {value}"
