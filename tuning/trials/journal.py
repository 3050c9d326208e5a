"""Optuna's journal file, made robust against a full disk, kill -9 and power cuts.

Optuna appends lines and reads all of them again. A truncated line is harmless while it is the last
one; anything appended to it makes the file permanently unreadable.
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
    """The journal at `file`: a record is appended completely or not at all.

    A truncated last line is moved to `file` + `.torn` before anything is appended; reading writes
    nothing. `InvalidInput` names a line in the middle that cannot be read.
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
    """Optuna's lock file of `file`, removed if it is a dangling symbolic link: Optuna would wait
    for it forever, and its other kind of lock leaves one for a relative path."""

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
    """Write all of `lines`; a single call may write only a part, as on a disk that fills up."""
    while lines:
        lines = lines[journal.write(lines) :]


def _cut_tail(file: Path, journal: BinaryIO) -> None:
    """Move the last line to the file of torn lines if it is truncated."""
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
    """The offset after the last line break, not counting one at the very end."""
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
    """The number of the first line that is not a record although others follow; else None."""
    bad = None
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if bad is not None:
                return bad
            if not _is_record(line):
                bad = number
    return None
