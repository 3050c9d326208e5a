"""CIFAR-10's files: the pickles, read by torchvision with their checksums verified, or the binary
version with a label byte and 3 * 32 * 32 pixels for each image."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np

from raycrt.errors import InvalidInput, require

SHAPE = (3, 32, 32)
_PICKLES, _BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
_FILES = {
    True: tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    False: ("test_batch.bin",),
}


def lie_in(root: Path) -> bool:
    """Whether either version is in `root`."""
    return (root / _PICKLES).is_dir() or all(
        (root / _BINARY / name).is_file() for names in _FILES.values() for name in names
    )


def read(root: Path, *, train: bool) -> tuple[np.ndarray, ...]:
    """Images (n, 3, 32, 32) and labels (n,), uint8, of training or test.

    Raises `InvalidInput` where a file is incomplete; the checksums of all pickles are verified.
    """
    return _pickles(root, train) if (root / _PICKLES).is_dir() else _binary(root / _BINARY, train)


def _pickles(root: Path, train: bool) -> tuple[np.ndarray, ...]:
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(root=str(root), train=train)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"the files of cifar10 must be whole: {error}") from None
    return found.data.transpose(0, 3, 1, 2), np.asarray(found.targets, np.uint8)


def _binary(folder: Path, train: bool) -> tuple[np.ndarray, ...]:
    record = 1 + math.prod(SHAPE)
    parts = []
    for name in _FILES[train]:
        raw = np.fromfile(folder / name, np.uint8)
        require(
            len(raw) > 0 and len(raw) % record == 0,
            f"records of {record} bytes",
            file=str(folder / name),
            bytes=len(raw),
        )
        parts.append(raw.reshape(-1, record))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0]
