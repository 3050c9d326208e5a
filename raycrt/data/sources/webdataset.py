"""Tar files of images and labels, as WebDataset has them: `KEY.png` beside `KEY.cls`."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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

_SUFFIXES = (".tar",)
_LABEL = "cls"
_IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm")


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """An image, `size` bytes of a `file` from `start` on, with its key and its label."""

    file: Path
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
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() in _SUFFIXES or bool(files_with(path, _SUFFIXES))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: partial(self._rows, files) for split, files in self._files().items()}

    def indexed(self, split: str) -> Indexed:
        samples = [sample for file in self._files()[split] for sample in _samples(file)]
        labels = _labels(samples)

        def between(first: int, last: int, step: int) -> Iterator[Rows]:
            for start in range(first, last, step):
                some = slice(start, min(start + step, last))
                yield self._decoded(samples[some], labels[some])

        return Indexed(number=len(samples), between=between, labels=lambda: iter([labels]))

    def _files(self) -> dict[str, list[Path]]:
        return of_splits(self.path, _SUFFIXES)

    def _rows(self, files: Sequence[Path]) -> Rows:
        samples = [sample for file in files for sample in _samples(file)]
        if not samples:
            raise InvalidInput(f"tar files must hold KEY.png and KEY.cls, but not so {files[0]}")
        return self._decoded(samples, _labels(samples))

    def _decoded(self, samples: Sequence[_Sample], labels: Sequence[str | int]) -> Rows:
        return Rows(
            inputs=pixels.stacked(
                map(_image, samples), lambda row: samples[row].place, self.options.resize
            ),
            labels=labels,
            where=str(self.path),
            place=lambda row: samples[row].place,
            keys=np.array(
                [f"{os.path.relpath(s.file, self.path.parent)}/{s.key}" for s in samples], object
            ),
        )


def _labels(samples: Sequence[_Sample]) -> Sequence[str | int]:
    """Those of all samples of a split: whole numbers, or texts if one of them is no number."""
    texts = [sample.label for sample in samples]
    return [int(text) for text in texts] if all(map(str.isdecimal, texts)) else texts


def _samples(file: Path) -> list[_Sample]:
    """The samples of a tar file, in the order of their images."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as opened:
            for member in opened:
                if not member.isfile():
                    continue
                key, _, kind = member.name.rpartition(".")
                if kind == _LABEL:
                    if key in labels:
                        raise InvalidInput(f"a key has one label, but {key} in {file} has two")
                    found = opened.extractfile(member)
                    assert found is not None
                    labels[key] = found.read().decode("utf-8").strip()
                elif kind.lower() in _IMAGES:
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


def _image(sample: _Sample) -> np.ndarray:
    try:
        with sample.file.open("rb") as file:
            file.seek(sample.start)
            content = file.read(sample.size)
    except OSError as error:
        raise InvalidInput(f"{sample.place} must be readable: {error}") from None
    return pixels.decoded(content, sample.place)
