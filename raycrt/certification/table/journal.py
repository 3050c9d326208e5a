"""What is known of the processes that began a shard and did not end it.

A row that ends its process, by exhausting memory or in a library, would do so for ever. A shard
that was begun twice in vain is therefore done with a note before each batch. A batch that ended
three processes is done row by row, and a row that ended three is left out. Processes that ended for
another reason hardly ever end at the same batch three times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from raycrt.system.places.outputs import write_atomically
from raycrt.system.places.storage import Place

_IN_VAIN = 2
_ENDS = 3


class Journal:
    """The journal of a shard, in a `file` beside it until the shard is written.

    The shard was `begun` so many times; `ends` counts the processes that ended at a batch or at a
    single row, by the first and the last number of these.
    """

    def __init__(self, file: Place, begun: int, ends: Counter[str]) -> None:
        self.file, self.begun, self.ends = file, begun, ends

    @staticmethod
    def of(shard: Place) -> Journal:
        """The journal of the shard with the file `shard`, in which one more beginning is noted."""
        file = shard.with_name(f".{shard.stem}.journal.partial")
        known = _read(file)
        ends = Counter(known.get("ends", {}))
        if known.get("at"):
            ends[known["at"]] += 1
        journal = Journal(file, known.get("begun", 0) + 1, ends)
        journal._note(None)
        return journal

    @property
    def careful(self) -> bool:
        """Whether processes ended while they had this shard."""
        return self.begun > _IN_VAIN

    def steps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The rows `first` .. `last` - 1 as one batch, or, if that ended processes, one by one
        without those that did. Each step is noted before it is given."""
        if self._may(first, last):
            yield first, last
        elif last - first > 1:
            yield from ((row, row + 1) for row in range(first, last) if self._may(row, row + 1))

    def lost(self, first: int, last: int) -> tuple[int, ...]:
        """The rows among `first` .. `last` - 1 that are left out."""
        return tuple(r for r in range(first, last) if self.ends[_name(r, r + 1)] >= _ENDS)

    def end(self) -> None:
        """Remove the journal: the shard is written."""
        self.file.unlink(missing_ok=True)

    def _may(self, first: int, last: int) -> bool:
        name = _name(first, last)
        if self.ends[name] >= _ENDS:
            return False
        self._note(name)
        return True

    def _note(self, at: str | None) -> None:
        known = {"begun": self.begun, "ends": self.ends, "at": at}
        write_atomically(self.file, json.dumps(known).encode())


class Beginnings:
    """Counts, beside the files of rows in `directory`, the processes that ended while they made
    themselves ready, since the last one that was."""

    def __init__(self, directory: Place) -> None:
        self.file = directory / ".processes.journal.partial"

    def note(self) -> int:
        """Note that one more begins; the number of those that ended."""
        ended = int(_read(self.file).get("begun", 0))
        write_atomically(self.file, json.dumps({"begun": ended + 1}).encode())
        return ended

    def end(self) -> None:
        """Begin to count anew: a process is ready, or a command begins."""
        self.file.unlink(missing_ok=True)


def _read(file: Place) -> dict[str, Any]:
    """What a journal states; nothing where a failing disk has left it damaged."""
    try:
        known = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        known = {}
    return known if isinstance(known, dict) else {}


def _name(first: int, last: int) -> str:
    return f"{first}-{last}"
