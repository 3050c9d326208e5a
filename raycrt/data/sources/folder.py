"""A folder of image files, one folder for each class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from raycrt.data.sources.source import SPLITS, Indexed, Rows, Source, by_split, register
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput


@register("folder", uses=("path", "resize"))
class Folder(Source):
    """`SPLIT/CLASS/*.png`, or `CLASS/*.png` where no split is given; any format that PIL reads."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any(_holds_images(folder) for at in ("*/", "*/*/") for folder in path.glob(at))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        folders = self._folders()
        return {name: partial(self._rows, folder) for name, folder in folders.items()}

    def class_names(self) -> Sequence[str]:
        every = {name for folder in self._folders().values() for name in _classes(folder)}
        return sorted(every)

    def _folders(self) -> dict[str, Path]:
        """The folder of each split; the whole folder is `train` if none is named after a split, or
        those that are have images in them, as classes have."""
        if not self.path.is_dir():
            raise InvalidInput(f"data.path must be a folder of folders of images, not {self.path}")
        named = {name: self.path / name for name in _classes(self.path) if name.lower() in SPLITS}
        holding = [name for name, folder in named.items() if _holds_images(folder)]
        if len(holding) == len(named):  # Classes, whatever they are called.
            return {"train": self.path}
        if holding:
            split = next(name for name in named if name not in holding)
            raise InvalidInput(
                "folders named after splits must all be splits, with a folder for each class, or "
                f"all be classes, with images, but in {self.path} {split!r} has folders and "
                f"{holding[0]!r} has images"
            )
        return by_split(named, self.path)

    def indexed(self, split: str) -> Indexed:
        folder = self._folders()[split]
        found = self._files(folder)

        def between(first: int, last: int, step: int) -> Iterator[Rows]:
            for start in range(first, last, step):
                yield self._decoded(folder, found[start : min(start + step, last)])

        names = [name for _, name in found]
        return Indexed(number=len(found), between=between, labels=lambda: iter([names]))

    def _rows(self, folder: Path) -> Rows:
        return self._decoded(folder, self._files(folder))

    def _files(self, folder: Path) -> list[tuple[str, str]]:
        """The images in the folders of a split, each with its class."""
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        names = _classes(folder)
        if not names:
            raise InvalidInput(
                f"{folder} must hold a folder of images for each class, but has none"
            )
        found = make_dataset(
            str(folder), {name: k for k, name in enumerate(names)}, IMG_EXTENSIONS, allow_empty=True
        )
        if not found:
            raise InvalidInput(f"the folders in {folder} must hold images, but all are empty")
        return [(file, names[label]) for file, label in found]

    def _decoded(self, folder: Path, found: Sequence[tuple[str, str]]) -> Rows:
        files = [file for file, _ in found]
        images = (pixels.decoded(Path(file), file) for file in files)
        return Rows(
            inputs=pixels.stacked(images, files.__getitem__, self.options.resize),
            labels=[name for _, name in found],
            where=str(folder),
            place=files.__getitem__,
            keys=np.array([os.path.relpath(file, self.path) for file in files], object),
        )


def _classes(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    """Whether there are files of images in `folder` itself."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return any(file.suffix.lower() in IMG_EXTENSIONS for file in folder.iterdir())
