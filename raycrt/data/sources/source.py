"""The base class of sources: where the rows of a data set come from.

A source reads inputs and labels. Splits that it lacks, class numbers and the checks of all values
are made of its rows in `raycrt.data`, the same for every source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from raycrt.data.splits import NAMES
from raycrt.errors import InvalidInput, require
from raycrt.specs import DataSpec
from raycrt.specs.data import ALWAYS, OF_SOURCES
from raycrt.system.places.reading import below, is_there
from raycrt.system.places.storage import Place, is_directory, is_remote, place

# The environment variable with the directory of data sets.
DIRECTORY_VARIABLE = "RAYCRT_DATA"
# Other names of the splits in files.
_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLITS = {**{name: name for name in NAMES}, **_ALIASES, "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split as a source has them.

    `inputs` float32 (n, features) or (n, channels, height, width), in the units of `pixels.scaled`;
    `labels` (n,) whole numbers, Booleans or text, None for a row without one. In messages `where`
    is their file or directory, and `place(row)` a single row; `columns` are the names of features.
    `keys` (n,) are texts that name the rows in the source, such as files, if it has some.
    """

    inputs: np.ndarray
    labels: Any
    where: str
    place: Callable[[int], str]
    columns: tuple[str, ...] = ()
    keys: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """The `number` rows of a split, of which only those that are asked for are read.

    `between(first, last, step)` reads the rows first .. last - 1, `step` at a time; `labels()`
    gives the labels of all rows, some at a time.
    """

    number: int
    between: Callable[[int, int, int], Iterator[Rows]]
    labels: Callable[[], Iterator[Any]]


class Source:
    """A kind of source, made of a spec; `argument` is what follows a colon in `data.source`.

    A subclass is registered under its `kind` with the keys of `data` that it `uses`; `options` has
    their values, and those of the keys that all sources use. It opens nothing before `splits`.
    """

    kind: ClassVar[str]
    uses: ClassVar[frozenset[str]]
    # Whether data.source may be kind:NAME.
    named: ClassVar[bool] = False
    # Whether reading it runs code that the spec names.
    runs_code: ClassVar[bool] = False
    # Rows that are read at a time where a data set is streamed.
    at_a_time: ClassVar[int] = 4096

    def __init__(self, spec: DataSpec) -> None:
        self.options = spec.only(self.uses | OF_SOURCES | ALWAYS)
        self.argument = str(spec.source).partition(":")[2]

    @classmethod
    def recognises(cls, path: Place) -> bool:
        """Whether `path` is by its names a data set of this kind."""
        return False

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        """A reader for each split given: `train`, and perhaps `validation` and `test`, or `test`
        alone.

        Raises `InvalidInput`, as the readers do, naming the file that is not what it must be.
        """
        raise NotImplementedError

    def parts(self, split: str) -> Iterator[Rows]:
        """The rows of a split in order, some at a time: all at once, where a source cannot read
        them otherwise."""
        found = self.indexed(split)
        if found is None:
            yield self.splits()[split]()
        else:
            yield from found.between(0, found.number, self.at_a_time)

    def indexed(self, split: str) -> Indexed | None:
        """The rows of a split by their numbers; None where some cannot be read without others."""
        return None

    def class_names(self) -> Sequence[str] | None:
        """The names of all classes, if the source has some; called after the readers."""
        return None

    def label(self) -> str | None:
        """The name of the column or array with the labels, if the source has names for these."""
        return None

    def features(self) -> tuple[str, ...]:
        """The names of the features of an input, in order, if the source has some."""
        return ()

    def placed(self) -> dict[str, Any]:
        """Keys of `data` to set for processes with another environment and working directory."""
        return {}

    @cached_property
    def path(self) -> Place:
        """`data.path`; `InvalidInput` unless it is there and can be read."""
        if self.options.path is None:
            raise InvalidInput(f"data.path must name the files of data.source={self.kind}")
        return existing(place(self.options.path))

    @property
    def local_path(self) -> Path:
        """`path`; `InvalidInput` where it is a URI."""
        path = self.path
        if is_remote(path):
            raise InvalidInput(f"data.path must be on a disk for data.source={self.kind}: {path}")
        return path


def existing(path: Place) -> Place:
    """`path`; `InvalidInput` unless it is there and can be read."""
    try:
        found = is_there(path)
    except OSError as error:
        raise InvalidInput(f"data.path must be in reach, but is not: {error}") from None
    if not found:
        raise InvalidInput(f"data.path must exist, but there is nothing at {path}")
    if not is_remote(path) and not os.access(path, os.R_OK):
        raise InvalidInput(f"data.path must be readable, but {path} is not")
    return path


def files_directory(stated: Path | None, title: str, otherwise: str = "") -> Path:
    """`data.directory` if it is `stated`, else that of `RAYCRT_DATA`; `InvalidInput` without one,
    which may say what to do `otherwise`."""
    directory = stated or os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        raise InvalidInput(
            f"data.directory: {title} is read from files; name their directory with --data-dir or "
            f"{DIRECTORY_VARIABLE}{otherwise}"
        )
    return Path(os.path.abspath(os.path.expanduser(directory)))


def files_with(folder: Place, suffixes: Sequence[str]) -> list[Place]:
    """The files in `folder` with one of the `suffixes`, in the order of their names; none where it
    is no folder."""
    names = below(folder, 1)[1] if is_directory(folder) else []
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in suffixes]


def of_splits(path: Place, suffixes: Sequence[str]) -> dict[str, list[Place]]:
    """The files of each split in a folder, by the first word of their names; a single file is
    `train`. `InvalidInput` where names are those of no splits."""
    if not is_directory(path):
        return {"train": [path]}
    files = files_with(path, suffixes)
    named: dict[str, list[Place]] = {}
    for file in files:
        named.setdefault(re.split(r"[-_.]", file.name)[0].lower(), []).append(file)
    if files and set(named) <= set(SPLITS):
        return by_split(named, path)
    raise InvalidInput(
        f"{path} must hold files named train, validation and test ending in {tuple(suffixes)}, but "
        f"has {[file.name for file in files] or 'none'}"
    )


SOURCES: dict[str, type[Source]] = {}
Kind = TypeVar("Kind", bound=type[Source])


def register(kind: str, *, uses: tuple[str, ...] = ()) -> Callable[[Kind], Kind]:
    """Enter the decorated class into `SOURCES` as `kind`, with the keys of `data` that it `uses`.

    A key of `data` that some sources use and others do not is refused where one of the others is
    chosen. `InvalidInput` where the kind is taken or `uses` names no key of `data`.
    """
    require(kind not in SOURCES, "a kind is registered once", kind=kind)
    for key in uses:
        require(key in DataSpec.model_fields, "uses names keys of data", uses=key)

    def enter(source: Kind) -> Kind:
        source.kind, source.uses = kind, frozenset(uses)
        SOURCES[kind] = source
        return source

    return enter


def by_split(names: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The values of `names` under train, validation and test, for any usual name of these.

    `InvalidInput` where two names are the same split, or there is no training split beside others
    than the test split.
    """
    found: dict[str, Any] = {}
    for name, value in names.items():
        split = SPLITS[name.lower()]
        require(split not in found, "a split is given once", split=split, where=str(where))
        found[split] = value
    if "train" not in found and set(found) != {"test"}:
        raise InvalidInput(
            f"a train split must be given, but {where} has {' and '.join(names) or 'none'}; only a "
            "test split may stand alone"
        )
    return found
