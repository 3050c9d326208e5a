"""IDX files of unsigned bytes, plain or gzip'd: two zero bytes, type 8, rank, sizes, data."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from raycrt.errors import InvalidInput, require

# The names that the authors of MNIST and Fashion-MNIST gave: images, labels.
_NAMES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def lie_in(folder: Path) -> bool:
    """Whether the four files of a data set are in `folder`."""
    return all(_find(folder, name) for names in _NAMES.values() for name in names)


def read(folder: Path, shape: tuple[int, ...], *, train: bool) -> tuple[np.ndarray, ...]:
    """Images (n, *shape) and labels (n,), uint8, of training or test; shape has one channel.

    Raises `InvalidInput` naming a file that is incomplete or has other content.
    """
    images, labels = (_find(folder, name) for name in _NAMES[train])
    assert images is not None and labels is not None
    return _array(images, "images", shape[1:]).reshape(-1, *shape), _array(labels, "labels", ())


def _find(folder: Path, name: str) -> Path | None:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    return None


def _array(file: Path, content: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = _bytes(file)
    start = bytes(raw[:4])
    require(
        len(start) == 4 and start[:3] == b"\0\0\x08",
        "an IDX file of unsigned bytes",
        file=str(file),
        start=start,
    )
    rank = start[3]
    known = min(rank, len(raw[4:]) // 4)
    sizes = list(struct.unpack(f">{known}I", bytes(raw[4 : 4 + 4 * known])))
    require(
        rank == 1 + len(shape) and tuple(sizes[1:]) == shape,
        f"an IDX file of {content}: rank {1 + len(shape)}" + f", each {shape}" * bool(shape),
        file=str(file),
        rank=rank,
        sizes=sizes[:4],
    )
    head = 4 + 4 * rank
    require(
        len(raw) == head + math.prod(sizes),
        "an IDX file as long as its sizes say",
        file=str(file),
        bytes=len(raw),
        sizes=sizes,
    )
    return raw[head:].reshape(sizes)


def _bytes(file: Path) -> np.ndarray:
    """The bytes of `file`; a plain one is memory-mapped, so that only accessed parts are read."""
    if file.suffix != ".gz":
        return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    try:
        return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{file} must be a whole gzip file: {error}") from None
