"""The data set that a spec names: its rows, its shape and classes, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from raycrt.data import labels, named, pixels, sources
from raycrt.data.sources.source import DIRECTORY_VARIABLE, Rows
from raycrt.data.splits import Arrays, ArraySplits, divided
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec, identity
from raycrt.specs.data import ALWAYS, OF_SOURCES

_DEFAULTS, _OF_FILES = DataSpec(), frozenset({"directory", "download"})


def shape(spec: DataSpec) -> tuple[int, ...]:
    """The shape of an input: (channels, height, width) of an image, or (features,)."""
    return named.SHAPES[spec.name] if spec.name is not None else _stated(spec, "shape")


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """The name of each class, in the order of the labels 0, 1, ..."""
    return named.CLASS_NAMES[spec.name] if spec.name is not None else _stated(spec, "class_names")


def read(spec: DataSpec) -> ArraySplits:
    """Read the data set that `spec` names; `InvalidInput` unless all of it is as it must be.

    The validation rows are a fixed pseudo-random choice from the training set: the same for every
    seed of a run, so that runs with different seeds are compared on the same rows.
    """
    _check_effects(spec)
    return named.read(spec) if spec.name is not None else _read(spec).dataset


def check(spec: DataSpec) -> None:
    """Raise `InvalidInput` unless `read` can read the data set, fetched first with `download`.

    Files must exist and be complete, inputs have one shape and finite numbers, and labels be
    classes. A class without test images is accepted, as some users leave classes out.
    """
    _check_effects(spec)
    if spec.name is not None:
        named.check(spec)
    else:
        _read(spec)


def located(spec: Spec) -> Spec:
    """`spec` with the directory in this process's `RAYCRT_DATA`, if it needs one and states none.

    Workers, which have another environment and working directory, are given this spec.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if spec.data.directory or not directory or "directory" not in uses(spec.data):
        return spec
    return spec.override({"data.directory": directory})


def placed(spec: Spec, directory: Path | None) -> Spec:
    """`spec` with its data in `directory`, if that is given; nothing is downloaded.

    `InvalidInput` where the data is not in files.
    """
    spec = spec.override({"data.download": False})
    if directory is None:
        return spec
    place = next((key for key in ("path", "directory") if key in uses(spec.data)), None)
    if place is None:
        raise InvalidInput(f"--data-dir is for data in files, but the data is {spec.data.title}")
    return spec.override({f"data.{place}": str(directory)})


def described(spec: Spec) -> Spec:
    """`spec` with the shape and the class names of its source, which is read and checked.

    Every command begins with it, so that models and workers know both without reading the data. A
    named data set is checked, and its spec returned as it is.
    """
    if spec.data.name is not None:
        check(spec.data)
        return spec
    _check_effects(spec.data)
    found = _read(spec.data)
    facts = {"data.shape": found.shape, "data.class_names": found.class_names}
    return spec.override({**facts, **sources.of(spec.data).placed()})


def uses(spec: DataSpec) -> frozenset[str]:
    """The keys of `data` that have an effect on this data set."""
    if spec.name is not None:
        return ALWAYS if spec.name == "digits" else ALWAYS | _OF_FILES
    return ALWAYS | OF_SOURCES | sources.kind(str(spec.source)).uses


def runs_code(spec: DataSpec) -> bool:
    """Whether reading the data set runs code that the spec names."""
    return spec.source is not None and sources.kind(spec.source).runs_code


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A source's rows with the facts about them."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    dataset: ArraySplits


def _read(spec: DataSpec) -> _Read:
    source = sources.of(spec)
    try:
        parts = {name: read() for name, read in source.splits().items()}
    except OSError as error:
        raise InvalidInput(f"the files of {spec.title} must be readable: {error}") from None
    for rows in parts.values():
        if not len(rows.inputs):
            raise InvalidInput(f"there must be at least one row, but {rows.where} has none")
    for rows in parts.values():
        _check_inputs(rows, parts["train"], spec.shape)
    names, numbers = labels.classes(parts, source.class_names(), spec.class_names)
    given = {name: Arrays(images=rows.inputs, labels=numbers[name]) for name, rows in parts.items()}
    return _Read(
        shape=tuple(parts["train"].inputs.shape[1:]),
        class_names=names,
        dataset=divided(given, spec, names),
    )


def _check_inputs(rows: Rows, first: Rows, stated: Sequence[int] | None) -> None:
    """Refuse inputs of other columns or another shape than the `first` rows or the `stated` one,
    NaN and inf."""
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
    if stated is not None and tuple(stated) != rows.inputs.shape[1:]:
        raise InvalidInput(
            f"data.shape states {tuple(stated)}, but {rows.place(0)} has "
            f"{tuple(rows.inputs.shape[1:])}"
        )
    wrong = ~np.isfinite(rows.inputs)
    if wrong.any():
        raise InvalidInput(_not_finite(rows, wrong))


def _not_finite(rows: Rows, wrong: np.ndarray) -> str:
    row, *index = (int(k) for k in np.argwhere(wrong)[0])
    value = float(rows.inputs[(row, *index)])
    where = f"column {rows.columns[index[0]]!r}" if rows.columns else f"entry {tuple(index)}"
    return f"inputs must be finite in float32, but {where} in {rows.place(row)} is {value}"


def _stated(spec: DataSpec, key: str) -> tuple:
    found = getattr(spec, key)
    if found is None:
        raise InvalidInput(
            f"data.{key} must be stated for data.source={spec.source}; raycrt.data.described reads "
            "it from the data"
        )
    return tuple(found)


def _check_effects(spec: DataSpec) -> None:
    """Refuse keys that are set and that the data set does not use."""
    # A recipe may state both for digits, which needs neither.
    used = uses(spec) | (_OF_FILES if spec.name is not None else frozenset())
    idle = [
        key
        for key in type(spec).model_fields
        if key not in used and getattr(spec, key) != getattr(_DEFAULTS, key)
    ]
    if idle:
        chosen = f"data.name={spec.name}" if spec.name is not None else f"data.source={spec.source}"
        values = " and ".join(
            f"data.{key}={identity.as_option(spec.model_dump(mode='json')[key])}" for key in idle
        )
        raise InvalidInput(f"{chosen} does not use {values}: leave it out")
