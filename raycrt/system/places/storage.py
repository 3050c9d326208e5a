"""Places of runs: local paths and URIs of object stores, such as s3://bucket/run, in one interface.

A local path is a plain `pathlib.Path`. A URI is a `UPath`, which has the same methods. Credentials
are those that the environment gives the store's own client: none are in a URI.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycrt.errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import TypeIs
    from upath import UPath

    Place = Path | UPath
else:
    # UPath is imported where there is a URI.
    Place = Path

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# What an extra of this package installs.
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_SECONDS_BETWEEN_COPIES = 15.0


def is_uri(text: str | Path) -> bool:
    """Whether `text` is a URI, or the path that has been made of one, with one slash."""
    return _URI.match(f"{text}/") is not None


def without_client(text: str | Path) -> Path | str:
    """The path that `text` names, or its URI; `InvalidInput` for a URI that names no place."""
    if not is_uri(text):
        return Path(text)
    if isinstance(text, Path):
        raise InvalidInput("a URI must be given as text, but this one is a path")
    scheme, _, rest = text.partition(":")
    if re.search(r"[?#]", rest) or "@" in rest.lstrip("/").partition("/")[0]:
        raise InvalidInput(
            f"a {scheme}:// URI must hold no credentials, which its client takes from the "
            "environment, but this one has an @ before its path, or a query"
        )
    if not rest.startswith("//") or not rest.strip("/"):
        raise InvalidInput(f"a URI must have the form scheme://bucket/path, but got {text}")
    if scheme.lower() != "file":
        return text.rstrip("/")
    host, _, path = rest[2:].partition("/")
    if host not in ("", "localhost"):
        raise InvalidInput(f"a file:// URI must have the form file:///path, but got {text}")
    return Path("/" + path)


def place(text: str | Place) -> Place:
    """The place that `text` names; `InvalidInput` for a URI that none can be."""
    if not isinstance(text, str | Path):
        return text
    named = without_client(text)
    if isinstance(named, Path):
        return named
    from upath import UPath

    scheme = named.partition(":")[0]

    try:
        # What other processes write is seen at once.
        found = UPath(named, use_listings_cache=False)
        _ = found.fs
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        said = f"pip install 'raycrt[{extra}]'" if extra else str(error)
        raise InvalidInput(f"{scheme}:// needs a client that is not installed: {said}") from None
    except ValueError:
        raise InvalidInput(
            f"a URI must have a scheme that fsspec knows, such as s3://, but got {text}"
        ) from None
    except Exception as error:
        # Some clients connect here.
        raise InvalidInput(f"{text} must be in reach: {told(error)}") from None
    return found


def given(text: str | Place) -> Place:
    """The place that a user names; `InvalidInput` if it is a URI and its store does not answer."""
    found = place(text)
    if is_remote(found):
        try:
            found.fs.ls(found.path)
        except Exception as error:
            # This is a run that has not begun.
            if not isinstance(error, FileNotFoundError) or found.path not in str(error):
                raise InvalidInput(f"{found} must be in reach: {told(error)}") from None
    return found


def is_remote(where: Place) -> TypeIs[UPath]:
    """Whether `where` is a URI."""
    return not isinstance(where, Path)


def is_directory(where: Place) -> bool:
    """As `is_dir`; False too where no file can have that name."""
    try:
        return where.is_dir()
    except (OSError, ValueError):
        return False


def exists(where: Place) -> bool:
    """As `exists`; False too where no file can have that name."""
    try:
        return where.exists()
    except (OSError, ValueError):
        return False


def content(file: Place) -> bytes:
    """The bytes of a file that another process may replace meanwhile: the old or the new ones."""
    return bytes(file.fs.cat_file(file.path)) if is_remote(file) else file.read_bytes()


@contextmanager
def local(file: Place) -> Iterator[Path]:
    """`file` for readers of local files: itself, or a copy for the length of the block."""
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="raycrt-") as directory:
        copy = Path(directory) / file.name
        file.fs.get_file(file.path, str(copy))
        yield copy


@contextmanager
def mirrored(directory: Place) -> Iterator[tuple[Path, Callable[[], None]]]:
    """`directory` for writers of local files: itself, or a local one, whose files are copied to it
    at the end, and by the function beside it unless it has been called a moment ago."""
    if not is_remote(directory):
        yield directory, lambda: None
        return
    last = time.monotonic()

    def copy() -> None:
        for file in here.rglob("*"):
            if file.is_file():
                there = directory / file.relative_to(here).as_posix()
                there.fs.pipe_file(there.path, file.read_bytes())

    def now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_COPIES:
            last = time.monotonic()
            # The store may be out of reach for a while.
            with suppress(Exception):
                copy()

    with tempfile.TemporaryDirectory(prefix="raycrt-") as temporary:
        here = Path(temporary)
        try:
            yield here, now_and_then
        finally:
            copy()


def for_arrow(where: Place) -> tuple[str, Any]:
    """`where` for PyArrow and Ray: an absolute path, and its file system; None for a local one."""
    if not is_remote(where):
        return str(where.resolve()), None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return where.path, PyFileSystem(FSSpecHandler(where.fs))


def remove(directory: Place) -> None:
    """Delete `directory` and what is in it, if there is one."""
    if not is_remote(directory):
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        directory.fs.rm(directory.path, recursive=True)


def told(error: BaseException) -> str:
    """What a store's client says, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
