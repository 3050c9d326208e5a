"""The shape and the classes of a data set in files, without reading all of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raycrt.data import sources
from raycrt.data.sources.source import Indexed, Rows
from raycrt.data.values import checks, labels
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The splits by their names, the shape of the first input, and the classes of all labels."""

    splits: dict[str, Indexed]
    shape: tuple[int, ...]
    numbering: labels.Numbering


def outline(spec: DataSpec) -> Outline | None:
    """The outline of a source whose rows can be read by their numbers; None of another data set.

    The labels of all rows are read, and one input of each split. `InvalidInput` where they are not
    as they must be, or other than `spec` states.
    """
    if spec.source is None:
        return None
    source = sources.of(spec)
    try:
        found = {name: source.indexed(name) for name in source.splits()}
        splits = {name: split for name, split in found.items() if split is not None}
        if len(splits) < len(found):
            return None
        for name, split in splits.items():
            if not split.number:
                raise InvalidInput(
                    f"there must be at least one row, but {name} of {spec.title} has none"
                )
        ones = {name: next(split.between(0, 1, 1)) for name, split in splits.items()}
        distinct = {name: _distinct(name, split) for name, split in splits.items()}
    except OSError as error:
        raise InvalidInput(f"the files of {spec.title} must be readable: {error}") from None
    first = ones.get("train", next(iter(ones.values())))
    for one in ones.values():
        checks.check_alike(one, first)
    if spec.shape is not None:
        checks.check_shape(first, spec.shape)
    return Outline(
        splits=splits,
        shape=first.inputs.shape[1:],
        numbering=labels.numbering(distinct, source.class_names(), spec.class_names),
    )


def _distinct(name: str, split: Indexed) -> Rows:
    """The different labels of a split, each once."""
    found: set[Any] = set()
    for some in split.labels():
        found.update(np.unique(some).tolist() if isinstance(some, np.ndarray) else some)
    where = f"the {name} split"
    return Rows(
        inputs=np.empty(len(found)),
        labels=list(found),
        where=where,
        place=lambda row: f"a row of {where}",
    )
