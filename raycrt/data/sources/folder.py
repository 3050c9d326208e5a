"""A folder of image files, one folder for each class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raycrt.data.sources.source import SPLITS, Indexed, Rows, Source, by_split, register
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput
from raycrt.system.places.reading import below, contents
from raycrt.system.places.storage import Place, is_directory

# The levels of SPLIT/CLASS/FILE.
_LEVELS = 3


@register("folder", uses=("path", "resize"))
class Folder(Source):
    """`SPLIT/CLASS/*.png`, or `CLASS/*.png` where no split is given; any format that PIL reads."""

    @classmethod
    def recognises(cls, path: Place) -> bool:
        files = below(path, _LEVELS)[1] if is_directory(path) else []
        return any("/" in file and _is_image(file) for file in files)

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: self._images(folder).all for split, folder in self._folders().items()}

    def indexed(self, split: str) -> Indexed:
        images = self._images(self._folders()[split])
        return Indexed(number=len(images.files), between=images.between, labels=images.labels)

    def class_names(self) -> Sequence[str]:
        return sorted({name for folder in self._folders().values() for name in self._in(folder)})

    @cached_property
    def _found(self) -> tuple[list[str], list[str]]:
        """The folders and the images in `path` and below."""
        if not is_directory(self.path):
            raise InvalidInput(f"data.path must be a folder of folders of images, not {self.path}")
        folders, files = below(self.path)
        return folders, [file for file in files if _is_image(file)]

    def _in(self, folder: str) -> list[str]:
        """The names of the folders in a folder, sorted."""
        return sorted(name for home, name in map(_split, self._found[0]) if home == folder)

    def _folders(self) -> dict[str, str]:
        """The folder of each split; the whole, "", is `train` if none is named after a split, or
        those that are have images in them, as classes have."""
        named = {name: name for name in self._in("") if name.lower() in SPLITS}
        homes = {home for home, _ in map(_split, self._found[1])}
        holding = [name for name in named if name in homes]
        if len(holding) == len(named):  # Classes, whatever they are called.
            return {"train": ""}
        if holding:
            split = next(name for name in named if name not in holding)
            raise InvalidInput(
                "folders named after splits must all be splits, with a folder for each class, or "
                f"all be classes, with images, but in {self.path} {split!r} has folders and "
                f"{holding[0]!r} has images"
            )
        return by_split(named, self.path)

    def _images(self, folder: str) -> _Images:
        """The images in the folders of a split."""
        where, before = self.path / folder, f"{folder}/" if folder else ""
        classes = self._in(folder)
        if not classes:
            raise InvalidInput(f"{where} must hold a folder of images for each class, but has none")
        of: dict[str, list[tuple[str, str]]] = {name: [] for name in classes}
        for file in self._found[1]:
            if file.startswith(before):
                name, inside, _ = file.removeprefix(before).partition("/")
                if inside and name in of:
                    of[name].append(_split(file))
        files = [(f"{home}/{file}", name) for name in classes for home, file in sorted(of[name])]
        if not files:
            raise InvalidInput(f"the folders in {where} must hold images, but all are empty")
        return _Images(path=self.path, where=str(where), files=files, size=self.options.resize)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The `files` of a split, as paths from `path`, each with its class."""

    path: Place
    where: str
    files: Sequence[tuple[str, str]]
    size: tuple[int, int] | None

    def all(self) -> Rows:
        return self._decoded(self.files)

    def between(self, first: int, last: int, step: int) -> Iterator[Rows]:
        for start in range(first, last, step):
            yield self._decoded(self.files[start : min(start + step, last)])

    def labels(self) -> Iterator[list[str]]:
        yield [label for _, label in self.files]

    def _decoded(self, some: Sequence[tuple[str, str]]) -> Rows:
        files = [self.path / file for file, _ in some]
        places = [str(file) for file in files]
        return Rows(
            inputs=pixels.stacked(_decoded(files), places.__getitem__, self.size),
            labels=[label for _, label in some],
            where=self.where,
            place=places.__getitem__,
            keys=np.array([file for file, _ in some], object),
        )


def _decoded(files: Sequence[Place]) -> Iterable[np.ndarray]:
    """Images, one after the other."""
    try:
        for file, found in zip(files, contents(files), strict=True):
            yield pixels.decoded(found, str(file))
    except OSError as error:
        raise InvalidInput(f"each image must be readable: {error}") from None


def _split(name: str) -> tuple[str, str]:
    """The folder of a file or a folder, "" for those in the whole, and its name there."""
    home, _, own = name.rpartition("/")
    return home, own


def _is_image(name: str) -> bool:
    return name.lower().endswith(pixels.SUFFIXES)
