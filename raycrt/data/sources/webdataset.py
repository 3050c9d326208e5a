"""Tar files of images and labels, as WebDataset has them: `KEY.png` beside `KEY.cls`."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from raycrt.data.sources.source import (
    Indexed,
    Rows,
    Source,
    files_with,
    of_splits,
    register,
)
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput
from raycrt.system.places.reading import opened
from raycrt.system.places.storage import Place

_SUFFIXES = (".tar",)
_LABEL = "cls"


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """An image, `size` bytes of a `file` from `start` on, with its key and its label."""

    file: Place
    key: str
    start: int
    size: int
    label: str

    @property
    def place(self) -> str:
        return f"{self.key} in {self.file}"


@register("webdataset", uses=("path", "resize"))
class WebDataset(Source):
    """A `.tar` file, or a directory with `train-0.tar`, `test-0.tar` and the like, read in the
    order of their names. A label is what `KEY.cls` holds, a whole number or a text."""

    @classmethod
    def recognises(cls, path: Place) -> bool:
        return path.suffix.lower() in _SUFFIXES or bool(files_with(path, _SUFFIXES))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: partial(self._rows, files) for split, files in self._files().items()}

    def indexed(self, split: str) -> Indexed:
        shards, distinct = self._shards(self._files()[split])
        return Indexed(
            number=shards.rows,
            between=shards.between,
            labels=partial(iter, [shards.told(distinct)]),
        )

    def _files(self) -> dict[str, list[Place]]:
        return of_splits(self.path, _SUFFIXES)

    def _rows(self, files: Sequence[Place]) -> Rows:
        shards, _ = self._shards(files)
        if not shards.rows:
            raise InvalidInput(f"tar files must hold KEY.png and KEY.cls, but not so {files[0]}")
        return next(shards.between(0, shards.rows, shards.rows))

    def _shards(self, files: Sequence[Place]) -> tuple[_Shards, list[str]]:
        """The files of a split, and the different labels in them."""
        numbers: list[int] = []
        distinct: set[str] = set()
        for file in files:
            samples = _samples(file)
            numbers.append(len(samples))
            distinct.update(sample.label for sample in samples)
        shards = _Shards(
            path=self.path,
            files=list(files),
            numbers=numbers,
            numeric=all(map(str.isdecimal, distinct)),
            size=self.options.resize,
        )
        return shards, sorted(distinct)


@dataclass(kw_only=True)
class _Shards:
    """The `files` of a split, the `numbers` of their samples, and whether all labels are `numeric`.
    Of the samples only those of one file are held."""

    path: Place
    files: list[Place]
    numbers: list[int]
    numeric: bool
    size: tuple[int, int] | None
    held: tuple[int, list[_Sample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "held": None}

    @property
    def rows(self) -> int:
        return sum(self.numbers)

    def told(self, labels: Sequence[str]) -> Sequence[str | int]:
        """Labels: whole numbers, or texts if one of the split is no number."""
        if not self.numeric:
            return labels
        texts = [label for label in labels if not label.isdecimal()]
        if texts:
            raise InvalidInput(
                f"data must stay as it is, but labels of {self.path}, which were whole numbers, "
                f"have {texts[0]!r} now"
            )
        return [int(label) for label in labels]

    def between(self, first: int, last: int, step: int) -> Iterator[Rows]:
        for start in range(first, last, step):
            yield self._decoded(list(self._between(start, min(start + step, last))))

    def _between(self, first: int, last: int) -> Iterator[_Sample]:
        start = 0
        for file, number in enumerate(self.numbers):
            low, high = max(first - start, 0), min(last - start, number)
            if low < high:
                yield from self._of(file)[low:high]
            start += number

    def _of(self, file: int) -> list[_Sample]:
        if self.held is None or self.held[0] != file:
            self.held = file, _samples(self.files[file])
            if len(self.held[1]) != self.numbers[file]:
                raise InvalidInput(
                    f"data must stay as it is, but {self.files[file]} had {self.numbers[file]} "
                    f"samples and has {len(self.held[1])} now"
                )
        return self.held[1]

    def _decoded(self, samples: Sequence[_Sample]) -> Rows:
        keys = [f"{sample.file.name}/{sample.key}" for sample in samples]
        return Rows(
            inputs=pixels.stacked(_images(samples), lambda row: samples[row].place, self.size),
            labels=self.told([sample.label for sample in samples]),
            where=str(self.path),
            place=lambda row: samples[row].place,
            keys=np.array(keys, object),
        )


def _samples(file: Place) -> list[_Sample]:
    """The samples of a tar file, in the order of their images."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with opened(file) as content, tarfile.open(fileobj=content, mode="r:") as members:
            for member in members:
                if not member.isfile():
                    continue
                key, _, kind = member.name.rpartition(".")
                if kind == _LABEL:
                    if key in labels:
                        raise InvalidInput(f"a key has one label, but {key} in {file} has two")
                    found = members.extractfile(member)
                    assert found is not None
                    labels[key] = found.read().decode("utf-8").strip()
                elif f".{kind.lower()}" in pixels.SUFFIXES:
                    if key in images:
                        raise InvalidInput(f"a key has one image, but {key} in {file} has two")
                    images[key] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{file} must be a tar file that is not compressed: {said}") from None
    for key in images:
        if key not in labels:
            raise InvalidInput(f"each image has a label, but {key} in {file} has no {_LABEL}")
    return [
        _Sample(file=file, key=key, start=start, size=size, label=labels[key])
        for key, (start, size) in images.items()
    ]


def _images(samples: Sequence[_Sample]) -> Iterator[np.ndarray]:
    """Their images, for which each file is opened once if they are in the order of the files."""
    for file, some in groupby(samples, lambda sample: sample.file):
        try:
            with opened(file) as content:
                for sample in some:
                    content.seek(sample.start)
                    yield pixels.decoded(content.read(sample.size), sample.place)
        except OSError as error:
            raise InvalidInput(f"{file} must be readable: {error}") from None
