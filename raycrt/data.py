"""Images: pixels in [0, 1], a seeded validation split of the training set, and the test set.

`digits` ships inside scikit-learn. The others are read from files in a directory; they are fetched
only when `download` is set.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raycrt.errors import InvalidInput, require
from raycrt.spec import DataSpec

CLASSES = 10
DIRECTORY_VARIABLE = "RAYCRT_DATA"
_SPLIT_SEED = 20_200_602
_SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
# The names of the IDX files of MNIST and Fashion-MNIST, as their authors gave them.
_IDX = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Those of the binary version of CIFAR-10: a label byte and 3 * 32 * 32 pixels for each image.
_BINARY = {
    True: tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    False: ("test_batch.bin",),
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` float32 (n, channels, height, width) in [0, 1] and `labels` int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> Split:
        return Split(images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training rows, rows held out of the training set for choices, and test rows for the end."""

    train: Split
    validation: Split
    test: Split

    @property
    def fit(self) -> Split:
        """Training and validation rows together: what the chosen configuration is trained on."""
        return Split(
            images=torch.cat([self.train.images, self.validation.images]),
            labels=torch.cat([self.train.labels, self.validation.labels]),
        )


def image_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(channels, height, width) of an image."""
    return _SHAPES[spec.name]


def load(spec: DataSpec) -> Dataset:
    """Read the data set that `spec` names.

    The validation rows are a fixed pseudo-random choice from the training set: the same for every
    seed of a run, so that runs with different seeds are compared on the same rows.
    """
    training, test = _digits() if spec.name == "digits" else _from_files(spec)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out = round(spec.validation * len(training))
    require(
        0 < held_out < len(training),
        "data.validation leaves rows on both sides",
        validation=spec.validation,
        rows=len(training),
    )
    keep = slice(spec.limit)
    return Dataset(
        train=training.take(order[held_out:]).take(keep),
        validation=training.take(order[:held_out]).take(keep),
        test=test.take(keep),
    )


def check(spec: DataSpec) -> None:
    """Raise `InvalidInput` when the data set is missing, without reading it."""
    if spec.name != "digits" and not spec.download:
        _find(spec)


def _digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).reshape(-1, *_SHAPES["digits"])
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    everything = Split(images=images[order], labels=labels[order])
    return everything.take(slice(360, None)), everything.take(slice(360))


def _directory(spec: DataSpec) -> Path:
    named = spec.directory or os.environ.get(DIRECTORY_VARIABLE)
    if not named:
        raise InvalidInput(
            f"data.directory: {spec.name} is read from files; name their directory with "
            f"--data-dir or {DIRECTORY_VARIABLE} (or use `digits`, which needs none)"
        )
    return Path(named)


def _find(spec: DataSpec) -> tuple[str, Path]:
    """How the files of `spec` are laid out ("idx", "binary" or "torchvision") and where."""
    root = _directory(spec)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": ""}[spec.name]
    if spec.name == "cifar10":
        if (root / "cifar-10-batches-py").is_dir():
            return "torchvision", root
        binary = root / "cifar-10-batches-bin"
        if all((binary / name).is_file() for names in _BINARY.values() for name in names):
            return "binary", binary
    else:
        for place in (root / folder / "raw", root / spec.name, root):
            if all(_idx_file(place, name) for names in _IDX.values() for name in names):
                return "idx", place
    raise InvalidInput(
        f"data.directory must hold {spec.name}, but {root} does not; "
        "put the files there or give --download"
    )


def _from_files(spec: DataSpec) -> tuple[Split, Split]:
    if spec.download:
        _torchvision(spec, train=True, download=True)
        _torchvision(spec, train=False, download=True)
    layout, place = _find(spec)
    if layout == "idx":
        return _read_idx(place, train=True), _read_idx(place, train=False)
    if layout == "binary":
        return _read_binary(place, train=True), _read_binary(place, train=False)
    return _torchvision(spec, train=True), _torchvision(spec, train=False)


def _torchvision(spec: DataSpec, *, train: bool, download: bool = False) -> Split:
    from torchvision import datasets

    kind = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
    }[spec.name]
    try:
        read = kind(root=str(_directory(spec)), train=train, download=download)
    except RuntimeError as error:
        raise InvalidInput(f"the files of {spec.name} must be whole: {error}") from None
    images = torch.as_tensor(np.asarray(read.data))
    if spec.name == "cifar10":
        images = images.permute(0, 3, 1, 2).contiguous()
    images = images.reshape(-1, *_SHAPES[spec.name]).float().div(255)
    return Split(images=images, labels=torch.as_tensor(np.asarray(read.targets)).long())


def _read_binary(place: Path, *, train: bool) -> Split:
    shape = _SHAPES["cifar10"]
    record = 1 + math.prod(shape)
    raw = []
    for name in _BINARY[train]:
        bytes_ = np.fromfile(place / name, np.uint8)
        require(
            len(bytes_) > 0 and len(bytes_) % record == 0,
            f"records of {record} bytes",
            file=str(place / name),
            bytes=len(bytes_),
        )
        raw.append(bytes_.reshape(-1, record))
    records = torch.from_numpy(np.concatenate(raw))
    labels = records[:, 0].long()
    require(bool((labels < CLASSES).all()), "labels below 10", largest=int(labels.max()))
    return Split(images=records[:, 1:].reshape(-1, *shape).float().div(255), labels=labels)


def _idx_file(place: Path, name: str) -> Path | None:
    for file in (place / name, place / f"{name}.gz"):
        if file.is_file():
            return file
    return None


def _read_idx(place: Path, *, train: bool) -> Split:
    images, labels = (_idx_array(place, name) for name in _IDX[train])
    require(
        len(images) == len(labels),
        "as many images as labels",
        images=len(images),
        labels=len(labels),
    )
    return Split(
        images=torch.from_numpy(images).float().div(255).unsqueeze(1),
        labels=torch.from_numpy(labels).long(),
    )


def _idx_array(place: Path, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzip'd: two zero bytes, type 8, rank, sizes, data."""
    file = _idx_file(place, name)
    assert file is not None
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    require(raw[:3] == b"\0\0\x08", "an IDX file of unsigned bytes", file=str(file), start=raw[:4])
    rank = raw[3]
    sizes = np.frombuffer(raw, ">u4", rank, 4).astype(int)
    require(
        len(raw) == 4 + 4 * rank + sizes.prod(),
        "an IDX file as long as its sizes say",
        file=str(file),
        bytes=len(raw),
        sizes=sizes.tolist(),
    )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy()
