"""Optuna's journal file, made to outlast what kills a search: a full disk, kill -9, a power cut.

Optuna appends lines and reads all of them again. A line that was cut short is harmless while it is
the last one; whatever is appended behind it makes the file unreadable for good.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from raycrt.errors import InvalidInput

TORN = ".torn"
# A lock is held for one write. One that is older was left by a process that died.
_GRACE_SECONDS = 10
_SECONDS_BETWEEN_LOOKS = 0.01
_BLOCK = 2**16
_log = logging.getLogger(__name__)


class Journal(JournalFileBackend):
    """The journal at `file`: what is appended is whole or not there.

    A last line that was cut short is moved to `file` + `.torn` before anything is appended; reading
    writes nothing. `InvalidInput` names a line in the middle that cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = Path(os.path.abspath(file))
        self._writing = _Lock(self._file)
        super().__init__(str(self._file), self._writing)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._writing, self._file.open("r+b", buffering=0) as journal:
            _cut_tail(self._file, journal)
            end = journal.seek(0, os.SEEK_END)
            try:
                _write(journal, lines)
                os.fsync(journal.fileno())
            except OSError:
                journal.truncate(end)
                raise

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError:
            line = _damaged_line(self._file)
            if line is None:
                return
            raise InvalidInput(
                f"line {line} of {self._file} must be a record of Optuna's "
                "journal, but cannot be read; the lines after it may depend on it"
            ) from None


class _Lock(JournalFileOpenLock):
    """Optuna's lock file of `file`. Optuna waits for ever where it is a link to nowhere, as one is
    that its other kind of lock made for a relative path."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file), _GRACE_SECONDS)
        self._link = Path(f"{file}.lock")

    def acquire(self) -> bool:
        began = time.monotonic()
        while self._link.is_symlink() and not self._link.exists():
            if time.monotonic() - began > _GRACE_SECONDS:
                self._link.unlink(missing_ok=True)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return super().acquire()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _write(journal: BinaryIO, lines: bytes) -> None:
    """All of `lines`: a disk that gets full takes a part first."""
    while lines:
        lines = lines[journal.write(lines) :]


def _cut_tail(file: Path, journal: BinaryIO) -> None:
    """Move the last line to the file of torn lines, if it was cut short."""
    end = journal.seek(0, os.SEEK_END)
    start = _start_of_last_line(journal, end)
    journal.seek(start)
    tail = journal.read()
    if not tail or (tail.endswith(b"\n") and _is_record(tail)):
        return
    torn = Path(f"{file}{TORN}")
    with torn.open("ab") as kept:
        kept.write(tail)
    journal.truncate(start)
    _log.warning("warning: the last line of %s was cut short; it is in %s now", file, torn)


def _start_of_last_line(journal: BinaryIO, end: int) -> int:
    """Behind the last line break but one at the very end."""
    start, found = end, -1
    while start > 0 and found < 0:
        stop = start
        start = max(0, stop - _BLOCK)
        journal.seek(start)
        found = journal.read(min(stop, end - 1) - start).rfind(b"\n")
    return start + found + 1


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _damaged_line(file: Path) -> int | None:
    """The number of the first line that is no record though others follow."""
    bad = None
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if bad is not None:
                return bad
            if not _is_record(line):
                bad = number
    return None
