"""Arrays in .npy files, of which only the rows that are asked for are read."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy

from raycrt.errors import InvalidInput
from raycrt.system.places.reading import opened, part
from raycrt.system.places.storage import Place, is_remote

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class InFile:
    """An array of this `shape` in a `file`, in which its numbers begin at the byte `start`."""

    file: Place
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        size, count = self.dtype.itemsize * math.prod(self.shape[1:]), max(last - first, 0)
        start = self.start + first * size
        content = part(self.file, start, start + count * size) if count else b""
        if len(content) < count * size:
            raise ValueError(f"it ends in row {first + len(content) // size}")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def rows(file: Place) -> np.ndarray | InFile:
    """The array in `file`; one that is stored column by column is mapped, which needs a disk.
    Raises as numpy does where the file is damaged."""
    with opened(file) as content:
        read = HEADERS.get(npy.read_magic(content))
        shape, by_columns, dtype = read(content) if read else ((), True, np.dtype(float))
        if shape and not by_columns and not dtype.hasobject:
            start = content.tell()
            if content.seek(0, io.SEEK_END) < start + dtype.itemsize * math.prod(shape):
                raise ValueError(f"it ends before its {shape[0]} rows do")
            return InFile(file=file, shape=shape, dtype=dtype, start=start)
        if shape and by_columns and is_remote(file):
            raise InvalidInput(
                "an array on a store must be stored row by row, as np.ascontiguousarray has it, "
                f"but not so {file}"
            )
        if is_remote(file):
            content.seek(0)
            return np.asarray(np.load(content, allow_pickle=False))
    return np.load(file, mmap_mode="r", allow_pickle=False)
