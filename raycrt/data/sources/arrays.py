"""Arrays: an .npz file, or a directory of .npy files, with inputs and labels of each split."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np

from raycrt.data.formats import archives, npy
from raycrt.data.sources.source import SPLITS, Indexed, Rows, Source, by_split, files_with, register
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput
from raycrt.system.places.reading import opened
from raycrt.system.places.storage import Place, is_directory

_INPUTS, _LABELS = ("images", "image", "x", "inputs"), ("labels", "label", "y", "targets")
_NAMES = "class_names"
_LABELS_AT_A_TIME = 1_000_000


@register("arrays", uses=("path", "input", "label", "resize"))
class Arrays(Source):
    """`images` (or `x`) and `labels` (or `y`), with the name of a split before or behind it:
    `x_train`, `train_images`, `test-labels`. `class_names` may name the classes."""

    @classmethod
    def recognises(cls, path: Place) -> bool:
        return path.suffix == ".npz" or bool(_files(path))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: partial(self._rows, *pair) for split, pair in self._pairs().items()}

    def _pairs(self) -> dict[str, tuple[str, str]]:
        """The names of the arrays with the inputs and the labels of each split."""
        names = self._arrays()
        inputs = self._named(names, self.options.input or _INPUTS)
        labels = self._named(names, (self.options.label,) if self.options.label else _LABELS)
        for found, option, usual in ((inputs, "input", "images"), (labels, "label", "labels")):
            if not found:
                raise InvalidInput(
                    f"{self.path} must hold an array {getattr(self.options, option) or usual!r} "
                    f"(data.{option} names another), but has {sorted(names)}"
                )
        if set(inputs) != set(labels):
            raise InvalidInput(
                f"{self.path} must hold inputs and labels of each split, but has inputs of "
                f"{' and '.join(inputs)} and labels of {' and '.join(labels)}"
            )
        pairs = {split: (inputs[split], labels[split]) for split in inputs}
        return by_split(pairs, self.path)

    def parts(self, split: str) -> Iterator[Rows]:
        name, labels = self._pairs()[split]
        classes, first = self._array(labels), 0
        for rows in self._blocks(name):
            yield self._part(name, rows, classes[first : first + len(rows)], first)
            first += len(rows)
        if first < len(classes):
            raise InvalidInput(self._other_number(name, first, labels, len(classes)))

    def _other_number(self, name: str, rows: int, labels: str, classes: int) -> str:
        return (
            f"there must be one label for each input, but {name!r} in {self.path} has {rows} rows "
            f"and {labels!r} has {classes}"
        )

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        """The array `name`, some rows at a time."""
        rows = self.at_a_time
        if self._is_folder:
            whole = self._mapped(name)
            with _reported(self.path / f"{name}.npy"):
                yield from (whole[k : k + rows] for k in range(0, len(whole), rows))
        else:
            with _reported(self.path), opened(self.path) as file:
                yield from archives.blocks(file, name, rows)

    def _mapped(self, name: str) -> np.ndarray | npy.InFile:
        """The array of a .npy file, read where it is used."""
        file = self.path / f"{name}.npy"
        with _reported(file):
            return _with_rows(npy.rows(file), file)

    def indexed(self, split: str) -> Indexed | None:
        if not self._is_folder:
            return None
        name, labels = self._pairs()[split]
        rows, classes = self._mapped(name), self._mapped(labels)
        if len(rows) != len(classes):
            raise InvalidInput(self._other_number(name, len(rows), labels, len(classes)))
        return Indexed(
            number=len(rows),
            between=partial(self._between, name, labels),
            labels=partial(self._labels, labels),
        )

    def _between(self, name: str, labels: str, first: int, last: int, step: int) -> Iterator[Rows]:
        rows, classes = self._mapped(name), self._mapped(labels)
        for start in range(first, last, step):
            some = slice(start, min(start + step, last))
            with _reported(self.path / f"{name}.npy"):
                part = rows[some], classes[some]
            yield self._part(name, *part, start)

    def _labels(self, name: str) -> Iterator[np.ndarray]:
        classes = self._mapped(name)
        with _reported(self.path / f"{name}.npy"):
            for start in range(0, len(classes), _LABELS_AT_A_TIME):
                yield classes[start : start + _LABELS_AT_A_TIME]

    @cached_property
    def _is_folder(self) -> bool:
        return is_directory(self.path)

    def class_names(self) -> Sequence[str] | None:
        if _NAMES not in self._arrays():
            return None
        return [str(name) for name in self._array(_NAMES).ravel().tolist()]

    def label(self) -> str:
        return next(iter(self._pairs().values()))[1]

    def _arrays(self) -> list[str]:
        path = self.path
        if self._is_folder:
            return [file.stem for file in _files(path)]
        with _reported(path), opened(path) as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise InvalidInput(f"data.path must be an .npz file or a directory, not {path}")
            return list(found)

    def _named(self, names: Sequence[str], bases: Sequence[str]) -> dict[str, str]:
        """The array called one of `bases` for each split; `train` where it names no split."""
        found: dict[str, str] = {}
        for name in names:
            split = _split(name.lower(), [base.lower() for base in bases])
            if split in found:
                raise InvalidInput(
                    f"an array must be the only one of its split, but {self.path} has "
                    f"{found[split]!r} and {name!r}"
                )
            if split is not None:
                found[split] = name
        return found

    def _array(self, name: str) -> np.ndarray:
        file = self.path / f"{name}.npy" if self._is_folder else self.path
        with _reported(file), opened(file) as content:
            loaded = np.load(content, allow_pickle=False)
            return np.asarray(_with_rows(loaded if self._is_folder else loaded[name], file))

    def _rows(self, inputs: str, labels: str) -> Rows:
        return self._part(inputs, self._array(inputs), self._array(labels))

    def _part(self, name: str, inputs: np.ndarray, labels: np.ndarray, first: int = 0) -> Rows:
        """Rows of the array `name` from the `first` on."""
        where = f"{name!r} in {self.path}"
        size, stated = self.options.resize, self.options.shape
        return Rows(
            inputs=pixels.of_arrays(inputs, where, size, stated),
            labels=labels,
            where=where,
            place=lambda row: f"row {first + row} of {where}",
        )


def _files(path: Place) -> list[Place]:
    return [file for file in files_with(path, (".npy",)) if file.suffix == ".npy"]


def _with_rows(found: Any, file: Place) -> Any:
    if not found.shape:
        raise InvalidInput(f"an array must have rows, but one in {file} is a single number")
    return found


def _split(name: str, bases: Sequence[str]) -> str | None:
    """The split of the array `name`; None where it is none of `bases`, with a split or without."""
    if name in bases:
        return "train"
    for parts in (name.rpartition, name.partition):
        for mark in "_-. ":
            before, _, after = parts(mark)
            if before in bases and after in SPLITS:
                return SPLITS[after]
            if before in SPLITS and after in bases:
                return SPLITS[before]
    return None


@contextmanager
def _reported(file: Place) -> Iterator[None]:
    """Within it a `file` that numpy cannot read is `InvalidInput`."""
    try:
        yield
    except InvalidInput:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(
            f"{file} must be a whole file of numpy arrays of plain numbers or text: {said}"
        ) from None
