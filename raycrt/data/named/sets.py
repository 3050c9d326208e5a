"""The four named data sets: pixels in [0, 1], a seeded validation split, and the test set.

`digits` ships inside scikit-learn. The others are read from files in a directory; they are fetched
only when `download` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from raycrt.data.named import cifar, idx
from raycrt.data.permutation import Permutations
from raycrt.data.sources.source import files_directory
from raycrt.data.splits import Arrays, ArraySplits
from raycrt.errors import InvalidInput, require
from raycrt.specs import DataSpec

_SPLIT_SEED = 20_200_602
SHAPES: dict[str | None, tuple[int, ...]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": cifar.SHAPE,
}
_DIGIT_NAMES = tuple("0123456789")
CLASS_NAMES: dict[str | None, tuple[str, ...]] = {
    "digits": _DIGIT_NAMES,
    "mnist": _DIGIT_NAMES,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
# The number of digits, and the number of test images among them.
_DIGITS, _DIGITS_TEST = 1797, 360
# Images (n, channels, height, width) and labels (n,), uint8.
_Bytes = tuple[np.ndarray, ...]


def read(spec: DataSpec) -> ArraySplits:
    """Read the data set that `spec` names."""
    if spec.name == "digits":
        training, test = _digits()
    else:
        part = _reader(spec)
        training, test = (_split(part(train)) for train in (True, False))
    held_out = _held_out(spec, len(training))
    order = Permutations(_SPLIT_SEED).draw(len(training))
    keep = slice(spec.limit)
    return ArraySplits(
        train=training.take(order[held_out:]).take(keep),
        validation=training.take(order[:held_out]).take(keep),
        test=test.take(keep),
    )


def check(spec: DataSpec) -> None:
    """Raise `InvalidInput` unless `read` can read the data set, fetched first with `download`."""
    rows = _DIGITS - _DIGITS_TEST
    if spec.name != "digits":
        part = _reader(spec)
        rows, _ = (len(part(train)[1]) for train in (True, False))
    _held_out(spec, rows)


def lying_in(root: Path) -> list[str]:
    """The names of the data sets whose files are in `root`."""
    found = []
    for name in (str(name) for name in CLASS_NAMES if name != "digits"):
        with suppress(InvalidInput):
            _find(name, root)
            found.append(name)
    return found


def _held_out(spec: DataSpec, rows: int) -> int:
    """Number of training rows held out for validation."""
    held_out = round(spec.validation * rows)
    require(
        0 < held_out < rows,
        "data.validation leaves rows on both sides",
        validation=spec.validation,
        rows=rows,
    )
    return held_out


def _digits() -> tuple[Arrays, Arrays]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise InvalidInput(
            "data.name=digits comes with scikit-learn, which must be installed: pip install "
            "'raycrt[train]'"
        ) from None

    bunch = load_digits()
    images = (bunch.images.astype(np.float32) / np.float32(16)).reshape(-1, *SHAPES["digits"])
    labels = bunch.target.astype(np.int64)
    order = Permutations(_SPLIT_SEED).draw(len(labels))
    everything = Arrays(images=images[order], labels=labels[order])
    return everything.take(slice(_DIGITS_TEST, None)), everything.take(slice(_DIGITS_TEST))


def _split(part: _Bytes) -> Arrays:
    images, labels = part
    return Arrays(
        images=images.astype(np.float32) / np.float32(255), labels=labels.astype(np.int64)
    )


def _reader(spec: DataSpec) -> Callable[[bool], _Bytes]:
    """Function that reads the images and labels of training (true) or test (false)."""
    name = str(spec.name)
    root = files_directory(spec.directory, name, " (or use `digits`, which needs none)")
    classes = len(CLASS_NAMES[name])

    def read(train: bool) -> _Bytes:
        try:
            if spec.download and train:
                _fetch(name, root)
            images, labels = _find(name, root)(train)
        except OSError as error:
            raise InvalidInput(f"the files of {name} must be readable: {error}") from None
        where = {"part": "training" if train else "test", "directory": str(root)}
        require(
            len(images) == len(labels) > 0,
            "as many images as labels, and at least one",
            images=len(images),
            labels=len(labels),
            **where,
        )
        require(
            labels.max() < classes,
            f"labels are 0 .. {classes - 1}",
            smallest=int(labels.min()),
            largest=int(labels.max()),
            **where,
        )
        return images, labels

    return read


def _find(name: str, root: Path) -> Callable[[bool], _Bytes]:
    """Function that reads training (true) or test (false) from the files below `root`."""
    if name == "cifar10":
        if cifar.lie_in(root):
            return lambda train: cifar.read(root, train=train)
    else:
        folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
        for place in (root / folder / "raw", root / name, root):
            if idx.lie_in(place):
                return lambda train: idx.read(place, SHAPES[name], train=train)
    raise InvalidInput(
        f"data.directory must hold {name}, but {root} does not; "
        "put the files there or give --download"
    )


def _fetch(name: str, root: Path) -> None:
    """Fetch what is missing into `root`."""
    from torchvision import datasets

    kind = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
    }[name]
    try:
        kind(root=str(root), train=True, download=True)
    except RuntimeError as error:
        raise InvalidInput(f"{name} must be fetched completely: {error}") from None
