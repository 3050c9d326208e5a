"""The rows of a source as classes and splits, with the facts about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycrt.data.sources.source import Rows, Source
from raycrt.data.splits import Arrays, ArraySplits, divided
from raycrt.data.values import labels
from raycrt.specs import DataSpec


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The shape of an input, the names of the classes, and the rows of each split."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    splits: ArraySplits


def classified(
    parts: Mapping[str, Rows], source: Source, spec: DataSpec, shape: Sequence[int]
) -> Classified:
    """The `parts` that `source` has given, whose inputs have the `shape`, as classes and splits."""
    found = labels.numbering(parts, source.class_names(), spec.class_names)
    given = {
        name: Arrays(images=rows.inputs, labels=found.of(rows), keys=rows.keys)
        for name, rows in parts.items()
    }
    splits = divided(given, spec, found.names)
    return Classified(shape=tuple(shape), class_names=found.names, splits=splits)
