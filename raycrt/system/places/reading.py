"""Files and folders of a place that are read, whether they are on a disk or on a store."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from raycrt.system.places.storage import Place, content, is_remote, told

if TYPE_CHECKING:
    from upath import UPath

# Bytes that are read ahead of a file on a store.
_AHEAD = 2**20
# Files that are requested at once, and those whose bytes are held at a time.
_REQUESTS, _TOGETHER = 8, 64


def opened(file: Place) -> IO[bytes]:
    """`file`, open for reading. What a store's client raises is an `OSError`."""
    if not is_remote(file):
        return file.open("rb")
    return io.BufferedReader(_Remote(file), _AHEAD)


def contents(files: Sequence[Place]) -> Iterator[bytes]:
    """The bytes of each of the `files`, of which some are requested at once."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for first in range(0, len(files), _TOGETHER):
            yield from pool.map(_content, files[first : first + _TOGETHER])


def _content(file: Place) -> bytes:
    with answered(file):
        return content(file)


def is_there(where: Place) -> bool:
    """Whether there is something at `where`; `OSError` where its store does not answer."""
    if not is_remote(where):
        return os.path.exists(where)
    try:
        with answered(where):
            where.fs.info(where.path)
    except FileNotFoundError:
        return False
    return True


def part(file: Place, first: int, last: int) -> bytes:
    """The bytes `first` .. `last` - 1 of a file, fewer where it ends: one request."""
    if is_remote(file):
        with answered(file):
            return bytes(file.fs.cat_file(file.path, start=first, end=last))
    with file.open("rb") as found:
        found.seek(first)
        return found.read(last - first)


class _Remote(io.RawIOBase):
    """A file on a store, of which each reading is one request."""

    def __init__(self, file: UPath) -> None:
        self.file, self.at = file, 0
        with answered(file):
            self.size = int(file.fs.info(file.path)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        self.at = start + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.at + len(buffer), self.size)
        if self.at >= end:
            return 0
        with answered(self.file):
            found = self.file.fs.cat_file(self.file.path, start=self.at, end=end)
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)


@contextmanager
def answered(where: Place) -> Iterator[None]:
    """Within it whatever the client of the store `where` raises is an `OSError` that names it, and
    is `OutOfReach` if it is one that the client alone knows."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_remote(where):
            raise
        kind = OSError if isinstance(error, OSError) else OutOfReach
        raise kind(f"{where}: {told(error)}") from error


class OutOfReach(OSError):
    """A store that could not be asked."""


def out_of_reach(error: BaseException | None) -> bool:
    """Whether `error` is, or was raised in the handling of, `OutOfReach`."""
    while error is not None and not isinstance(error, OutOfReach):
        error = error.__context__
    return error is not None


def below(directory: Place, depth: int | None = None) -> tuple[list[str], list[str]]:
    """The directories and the files in `directory`, at most so many levels below it or all, as
    paths from there with / between names, in no order; without hidden directories."""
    if is_remote(directory):
        with answered(directory):
            found = directory.fs.find(
                directory.path, maxdepth=depth, withdirs=True, detail=True
            ).items()
        root = directory.path.rstrip("/") + "/"
        kinds: dict[str, list[str]] = {"directory": [], "file": []}
        for name, facts in found:
            inside = name.removeprefix(root)
            home = inside if facts["type"] == "directory" else inside.rpartition("/")[0]
            if name != root[:-1] and not any(part.startswith(".") for part in home.split("/")):
                kinds[facts["type"]].append(inside)
        return kinds["directory"], kinds["file"]
    folders: list[str] = []
    files: list[str] = []
    for root, within, names in os.walk(directory, onerror=_raise, followlinks=True):
        home = Path(root).relative_to(directory)
        within[:] = [name for name in within if not name.startswith(".")]
        folders += [(home / name).as_posix() for name in within]
        files += [(home / name).as_posix() for name in names]
        if depth is not None and len(home.parts) + 1 >= depth:
            within.clear()
    return folders, files


def _raise(error: OSError) -> None:
    raise error
