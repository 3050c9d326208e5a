"""Labels as classes: whole numbers, Booleans or text become 0 .. C-1 with a name for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raycrt.data.sources.source import Rows
from raycrt.errors import InvalidInput

_KINDS = {"U": "text", "i": "whole numbers", "b": "Booleans"}


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """The class `names`, the labels `levels` in sorted order, and the class of each of these."""

    names: tuple[str, ...]
    levels: np.ndarray
    numbers: np.ndarray

    def of(self, rows: Rows) -> np.ndarray:
        """The labels of `rows` as classes, int64 (n,). `InvalidInput` names a row with another."""
        values = _values(rows)
        if values.dtype.kind == "b" and self.levels.dtype.kind == "i":
            values = values.astype(np.int64)
        if values.dtype.kind != self.levels.dtype.kind:
            said = " and ".join(sorted(_KINDS[each.dtype.kind] for each in (values, self.levels)))
            raise InvalidInput(f"labels must be of one kind, but are {said}")
        unknown = ~np.isin(values, self.levels)
        if unknown.any():
            row = int(unknown.argmax())
            raise InvalidInput(
                f"a label must be one of the {len(self.levels)} classes that have a name, but "
                f"{rows.place(row)} has {values[row].item()!r}"
            )
        return self.numbers[np.searchsorted(self.levels, values)].astype(np.int64)


def numbering(
    parts: Mapping[str, Rows], known: Sequence[str] | None, stated: Sequence[str] | None
) -> Numbering:
    """The classes of the labels of `parts`.

    Whole numbers that a source has names for (`known`) are their places in that list. All other
    labels become classes in sorted order, with themselves as names; names `stated` that are not
    numbers name numbers. Raises `InvalidInput` where the names differ from the `stated` ones, for
    rows without a label, and unless there are at least two classes.
    """
    values = {name: _values(rows) for name, rows in parts.items()}
    kinds = {_KINDS[array.dtype.kind] for array in values.values()}
    if len(kinds) > 1:
        raise InvalidInput(f"labels must be of one kind, but are {' and '.join(sorted(kinds))}")
    numbers = kinds == {"whole numbers"}
    levels: np.ndarray = np.unique(np.concatenate(list(values.values())))
    names = tuple(str(level) for level in levels.tolist())
    if known is not None:
        names = tuple(map(str, known))
        levels = np.array(names) if kinds == {"text"} else np.arange(len(names))
    elif numbers and stated is not None and not any(_is_number(name) for name in stated):
        names = tuple(stated) if len(stated) == len(names) else names
    if len(set(names)) < max(2, len(names)):
        raise InvalidInput(
            f"there must be at least two classes with names of their own, but got {list(names)}"
        )
    if stated is not None and names != tuple(stated):
        raise InvalidInput(
            f"data.class_names states {_shown(stated)}, but the data has {_shown(names)}"
        )
    order = np.argsort(levels)
    return Numbering(names=names, levels=levels[order], numbers=order)


def _values(rows: Rows) -> np.ndarray:
    """The labels of `rows` as an array (n,) of text, int64 or Booleans."""
    labels = np.asarray(rows.labels)
    if labels.dtype.kind == "O":
        bare = [row for row, label in enumerate(rows.labels) if label is None or label != label]
        if bare:
            raise InvalidInput(f"each row must have a label, but {rows.place(bare[0])} has none")
        kinds = {type(label) for label in rows.labels}
        if len(kinds) > 1:
            said = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise InvalidInput(f"labels must be of one kind, but in {rows.where} are {said}")
        labels = np.asarray([*rows.labels])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(rows.labels) != len(rows.inputs) or not len(labels):
        raise InvalidInput(
            "there must be as many labels as inputs, and at least one, but "
            f"{rows.where} has {len(labels)} labels and {len(rows.inputs)} inputs"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "USiubf":
        raise InvalidInput(
            "a label must be a whole number, a Boolean or text, but in "
            f"{rows.where} they are {labels.dtype} of shape {labels.shape}"
        )
    if labels.dtype.kind == "f":
        _refuse(rows, np.isnan(labels), "each row must have a label", "has none")
        _refuse(rows, labels % 1 != 0, "a label must be a whole number or text", "has a fraction")
    if labels.dtype.kind in "uf":
        _refuse(rows, labels >= 2.0**63, "a label must be below 2^63", "has a larger one")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        _refuse(rows, np.char.strip(labels) == "", "each row must have a label", "has none")
    return labels if labels.dtype.kind in "Ub" else labels.astype(np.int64)


def _refuse(rows: Rows, wrong: np.ndarray, invariant: str, but: str) -> None:
    if wrong.any():
        raise InvalidInput(f"{invariant}, but {rows.place(int(wrong.argmax()))} {but}")


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _shown(names: Sequence[str]) -> str:
    """`names` in one short line."""
    more = f", ... ({len(names)} names)" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more
