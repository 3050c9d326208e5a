"""Arrays in an .npz file, read some rows at a time."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.lib import format as npy

from raycrt.data.formats.npy import HEADERS


def blocks(file: IO[bytes], name: str, rows: int) -> Iterator[np.ndarray]:
    """The array `name` of an .npz `file` in order, so many `rows` at a time; all at once where it
    is stored column by column. Raises as numpy does where the file is damaged."""
    with zipfile.ZipFile(file) as archive:
        stored = name if name in archive.namelist() else f"{name}.npy"
        with archive.open(stored) as member:
            version = npy.read_magic(member)
            read = HEADERS.get(version)
            shape, by_columns, kind = read(member) if read else ((), True, np.dtype(float))
            if not by_columns and shape and not kind.hasobject:
                size = kind.itemsize * math.prod(shape[1:])
                for first in range(0, shape[0], rows):
                    count = min(rows, shape[0] - first)
                    content = member.read(count * size)
                    if len(content) < count * size:
                        raise ValueError(f"{name!r} ends in row {first + len(content) // size}")
                    yield np.frombuffer(content, kind).reshape(count, *shape[1:])
                member.read()  # To the end, where the checksum is compared.
                return
    file.seek(0)
    with np.load(file, allow_pickle=False) as every:
        whole = every[name]
    for first in range(0, len(whole), rows):
        yield whole[first : first + rows]
