"""Outputs on disks and object stores: atomic writes, checks that they are writable, and one command
at a time."""

from __future__ import annotations

import errno
import io
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raycrt.errors import InvalidInput
from raycrt.system.places import lease
from raycrt.system.places.storage import Place, is_remote, told

# The file that names the process holding a directory; the lock is a separate, empty file.
DRIVER, _LOCK = "driver", ".driver.lock"
# Error codes of a disk, quota or file system to which files can no longer be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
_DISK |= {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}


def write_atomically(path: Place, content: bytes) -> None:
    """Replace `path` by `content`: also after a crash, the old or the new file is there, whole."""
    if is_remote(path):
        path.fs.pipe_file(path.path, content)
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A local file to write in a block, which takes the place of `path` when the block ends without
    an error: also after a crash, the old or the new file is there, whole."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="raycrt-") as directory:
            partial = Path(directory) / path.name
            yield partial
            path.fs.put_file(str(partial), path.path)
        return
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_figure(path: Place, figure: Any, dpi: int) -> None:
    """Write a figure of matplotlib as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi)
    write_atomically(path, drawn.getvalue())


def made(directory: Place) -> Place:
    """`directory`, created if missing; `InvalidInput` if no file can be written into it."""
    if is_remote(directory):
        _try_to_write(directory / f".{uuid.uuid4().hex}.partial")
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\0")
    except OSError as error:
        said = error.strerror or str(error)
        above = next((parent for parent in directory.parents if parent.is_file()), None)
        said += f" ({above} is a file)" if above else ""
        raise InvalidInput(f"{directory} must be a directory that takes files: {said}") from None
    return directory


def _try_to_write(file: Place) -> None:
    try:
        write_atomically(file, b"\0")
        file.unlink()
    except Exception as error:
        raise InvalidInput(
            f"{file.parent} must be a place that takes files: {told(error)}"
        ) from None


def disk_error(error: BaseException | None) -> OSError | None:
    """The disk or file-system error that `error` is or was caused by; None if there is none."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def held(directory: Place) -> Iterator[None]:
    """Lock `directory`, created if missing, for a block: no other command writes into it.

    `InvalidInput` names the process that holds the lock already, or says why nothing can be
    written. The lock is the operating system's: it is released however its holder ends, also by
    kill -9. On a file system without locks, filelock creates a file that names the process instead.
    A thread that holds a directory may lock it again. On an object store the lock is a lease that
    its holder renews, for half a minute after it was killed too.
    """
    holder = f"pid {os.getpid()} on {socket.gethostname()}"
    if is_remote(directory):
        with lease.held(directory / DRIVER, holder):
            yield
        return
    from filelock import FileLock, Timeout

    made(directory)
    lock = FileLock(directory / _LOCK, timeout=0, is_singleton=True)
    driver = directory / DRIVER
    try:
        lock.acquire()
    except Timeout:
        other = driver.read_text() if driver.is_file() else ""
        raise InvalidInput(
            f"{directory} must have one command at a time, but "
            f"{other or 'a process that has just started'} writes there"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{directory} must be a directory that takes files: {error}") from None
    try:
        write_atomically(driver, holder.encode())
        yield
    finally:
        lock.release()
