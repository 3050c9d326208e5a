"""The data set that a spec names: its rows, its shape and classes, checked before any work."""

from __future__ import annotations

import os
from typing import Any

from raycrt.data import sources
from raycrt.data.classified import Classified, classified
from raycrt.data.named import sets as named
from raycrt.data.parts.streaming import survey
from raycrt.data.sources.source import DIRECTORY_VARIABLE
from raycrt.data.splits import ArraySplits
from raycrt.data.values import checks, statistics
from raycrt.errors import InvalidInput, require
from raycrt.specs import DataSpec, Spec, identity
from raycrt.specs.data import ALWAYS, OF_SOURCES
from raycrt.system.places.storage import Place

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
    check_effects(spec)
    found = named.read(spec) if spec.name is not None else _read(spec).splits
    scale = statistics.used(found, spec).get("scale")
    return found if scale is None else statistics.scaled(found, scale)


def check(spec: DataSpec) -> None:
    """Raise `InvalidInput` unless `read` can read the data set, fetched first with `download`.

    Files must exist and be complete, inputs have one shape and finite numbers, and labels be
    classes. A class without test images is accepted, as some users leave classes out.
    """
    check_effects(spec)
    if spec.name is not None:
        named.check(spec)
    else:
        _read(spec)
    if spec.scale is not None:
        read(spec)


def located(spec: Spec) -> Spec:
    """`spec` with the directory in this process's `RAYCRT_DATA`, if it needs one and states none.

    Workers, which have another environment and working directory, are given this spec.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if spec.data.directory or not directory or "directory" not in uses(spec.data):
        return spec
    return spec.override({"data.directory": directory})


def placed(spec: Spec, directory: Place | None) -> Spec:
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
    """`spec` with the shape and the class names of its source, which is read and checked, and with
    numbers in place of `auto`.

    Every command begins with it, so that models and workers know them without reading the data.
    """
    return opened(spec)[0]


def opened(spec: Spec) -> tuple[Spec, ArraySplits | None]:
    """`spec` as `described`, and the rows that were read for it, if all of them were."""
    check_effects(spec.data)
    if spec.data.name is not None:
        require(not spec.run.stream, "run.stream is for sources; a named data set fits into memory")
        check(spec.data)
        numbers = spec.data.normalize is not None or spec.data.scale is not None
        return with_numbers(spec, named.read(spec.data) if numbers else None)
    found = survey(spec.data) if spec.run.stream else _read(spec.data)
    facts: dict[str, Any] = {"data.shape": found.shape, "data.class_names": found.class_names}
    spec = spec.override(facts | sources.of(spec.data).placed())
    return with_numbers(spec, None if spec.run.stream else found.splits)


def with_numbers(spec: Spec, whole: ArraySplits | None) -> tuple[Spec, ArraySplits | None]:
    """`spec`, whose shape is known, with the numbers of the rows `whole` in place of `auto`, and
    these rows as `data.scale` has them."""
    facts: dict[str, Any] = {}
    used = statistics.used(whole, spec.data)
    for key, numbers in used.items():
        statistics.check(numbers, shape(spec.data), key)
        facts[f"data.{key}"] = numbers.model_dump()
    if whole is not None and "scale" in used:
        whole = statistics.scaled(whole, used["scale"])
    if spec.data.normalize is not None:
        facts["model.normalize"] = True
    return spec.override(facts) if facts else spec, whole


def uses(spec: DataSpec) -> frozenset[str]:
    """The keys of `data` that have an effect on this data set."""
    if spec.name is not None:
        return ALWAYS if spec.name == "digits" else ALWAYS | _OF_FILES
    return ALWAYS | OF_SOURCES | sources.kind(str(spec.source)).uses


def require_training_rows(spec: DataSpec) -> None:
    """Raise `InvalidInput` if the data set is a test split alone."""
    if spec.source is not None and "train" not in sources.of(spec).splits():
        raise InvalidInput(
            f"training needs a train split, but {spec.title} has a test split alone: its rows can "
            "be certified, not trained on"
        )


def label(spec: DataSpec) -> str | None:
    """The column or array with the labels, if the data set has several of them."""
    return None if spec.name is not None else sources.of(spec).label()


def features(spec: DataSpec) -> tuple[str, ...]:
    """The names of the features of an input, in order; none where the data set has none, as of
    images."""
    return () if spec.name is not None else sources.of(spec).features()


def runs_code(spec: DataSpec) -> bool:
    """Whether reading the data set runs code that the spec names."""
    return spec.source is not None and sources.kind(spec.source).runs_code


def _read(spec: DataSpec) -> Classified:
    source = sources.of(spec)
    try:
        parts = {name: read() for name, read in source.splits().items()}
    except OSError as error:
        raise InvalidInput(f"the files of {spec.title} must be readable: {error}") from None
    first = parts.get("train", next(iter(parts.values())))
    for rows in parts.values():
        if not len(rows.inputs):
            raise InvalidInput(f"there must be at least one row, but {rows.where} has none")
    for rows in parts.values():
        checks.check_inputs(rows, first, spec.shape)
    return classified(parts, source, spec, first.inputs.shape[1:])


def _stated(spec: DataSpec, key: str) -> tuple:
    found = getattr(spec, key)
    if found is None:
        raise InvalidInput(
            f"data.{key} must be stated for data.source={spec.source}; raycrt.data.described reads "
            "it from the data"
        )
    return tuple(found)


def check_effects(spec: DataSpec) -> None:
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
