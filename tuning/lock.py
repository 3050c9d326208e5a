"""One driver for each search: a lock on its directory that dies with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raycrt.errors import InvalidInput

FILE = "driver"


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Be the one driver of the search in `home`, for the length of a block.

    `InvalidInput` names the process that is it already. The lock is the operating system's, on an
    open file: however a driver ends, kill -9 too, it is free.
    """
    file = os.open(home / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (home / FILE).read_text() or "a process that has just started"
            raise InvalidInput(
                f"{home} must have one driver at a time, but {holder} drives its search"
            ) from None
        os.ftruncate(file, 0)
        os.write(file, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(file)
