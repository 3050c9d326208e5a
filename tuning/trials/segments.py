"""Optuna's journal on an object store, where nothing can be appended to what is there.

The records are in objects of limited size, the segments. The last one is written anew, whole, with
each record, so that none is ever cut short. One process writes: the one that holds the directory.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from raycrt.system.places import lease, outputs, storage
from raycrt.system.places.storage import Place

# Bytes from which on a segment is left as it is.
_FULL = 2**18


@cache
def opened(folder: str) -> Segments:
    """The journal in `folder`, a URI: one for all of this process."""
    return Segments(storage.place(folder))


class Segments(BaseJournalBackend):
    """The journal in `folder`. While this process holds the directory of the search, what it has
    read and written is all that there is; else new records are looked for at each reading."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._records: list[dict[str, Any]] = []
        # The number of the first record of each segment, and the content of the last.
        self._firsts: list[int] = []
        self._last = b""
        self._known_to: str | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        with self._lock:
            self._refresh()
            return self._records[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._lock:
            self._refresh()
            number, content = len(self._firsts) - 1, self._last + lines
            if not self._firsts or len(self._last) >= _FULL:
                number, content = number + 1, lines
            outputs.write_atomically(self._file(number), content)
            self._take(number, content)

    def _refresh(self) -> None:
        """Read the last known segment again, and those after it."""
        holder = lease.token(self._folder.parent, outputs.DRIVER)
        if holder is not None and holder == self._known_to:
            return
        number = max(0, len(self._firsts) - 1)
        while True:
            try:
                self._take(number, storage.content(self._file(number)))
            except FileNotFoundError:
                break
            number += 1
        self._known_to = holder

    def _take(self, number: int, content: bytes) -> None:
        """Let `content` be that of the segment `number`, the last one."""
        if number == len(self._firsts):
            self._firsts.append(len(self._records))
        self._records[self._firsts[number] :] = map(json.loads, content.splitlines())
        self._last = content

    def _file(self, number: int) -> Place:
        return self._folder / f"{number:06d}.jsonl"
