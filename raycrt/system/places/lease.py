"""The lock of a directory on an object store: an object that its holder writes again and again.

A store has no locks that end with a process. The object is created on the condition that there is
none; while its holder lives, its content changes every few seconds. One that stays as it is was
left by a process that ended, and is taken over.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from raycrt.errors import InvalidInput
from raycrt.system.places import storage

if TYPE_CHECKING:
    from upath import UPath

_BEAT, _LEASE = 5.0, 30.0
_SEPARATOR = " #"
# The tokens of the leases that this process has, by their URIs.
_OWN: dict[str, str] = {}


def token(directory: storage.Place, name: str) -> str | None:
    """What tells the lease that this process has from all others; None if it has none."""
    return _OWN.get(str(directory / name))


@contextmanager
def held(lock: UPath, holder: str) -> Iterator[None]:
    """The lease `lock` for a block, in the name of `holder`; this process may take it again.

    `InvalidInput` names another holder that lives, or says why nothing can be written.
    """
    if str(lock) in _OWN:
        yield
        return
    own = uuid.uuid4().hex
    try:
        _take(lock, holder, own)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            f"{lock.parent} must be a place that takes files: {storage.told(error)}"
        ) from None
    _OWN[str(lock)] = own
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, holder, own, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        del _OWN[str(lock)]
        ended.set()
        beating.join()
        # The command is over, whatever becomes of the object.
        with suppress(Exception):
            if _is_own(_read(lock), own):
                lock.unlink()


def _take(lock: UPath, holder: str, own: str) -> None:
    """Create the object; wait for one that is there, until it changes or its time is over."""
    if _created(lock, holder, own):
        return
    seen, since = _read(lock), time.monotonic()
    print(
        f"{lock.parent}: {_holder(seen)} wrote there; waiting {_LEASE:g} s for a sign of it",
        file=sys.stderr,
    )
    while time.monotonic() - since < _LEASE:
        time.sleep(_BEAT / 5)
        now = _read(lock)
        if now is None:
            break
        if now != seen:
            _refuse(lock, now)
    with suppress(FileNotFoundError):
        lock.unlink()
    created = _created(lock, holder, own)
    # Another process that waited too may have deleted what this one created.
    time.sleep(_BEAT)
    now = _read(lock)
    if not created or not _is_own(now, own):
        _refuse(lock, now)


def _refuse(lock: UPath, content: str | None) -> None:
    raise InvalidInput(
        f"{lock.parent} must have one command at a time, but {_holder(content)} writes there"
    )


def _holder(content: str | None) -> str:
    return (content or "").partition(_SEPARATOR)[0] or "another process"


def _beat(lock: UPath, holder: str, own: str, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(_BEAT):
        number += 1
        # A store may be out of reach for a while.
        with suppress(Exception):
            now = _read(lock)
            if now is not None and not _is_own(now, own):
                # This process stood still for so long that another one took over.
                _thread.interrupt_main()
                return
            lock.fs.pipe_file(lock.path, _content(holder, own, number))


def _created(lock: UPath, holder: str, own: str) -> bool:
    try:
        lock.fs.pipe_file(lock.path, _content(holder, own, 0), mode="create")
    except FileExistsError:
        return False
    return True


def _read(lock: UPath) -> str | None:
    try:
        return storage.content(lock).decode()
    except FileNotFoundError:
        return None


def _content(holder: str, own: str, number: int) -> bytes:
    return f"{holder}{_SEPARATOR}{own} {number}".encode()


def _is_own(content: str | None, own: str) -> bool:
    return content is not None and content.partition(_SEPARATOR)[2].startswith(own)
