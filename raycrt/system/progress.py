"""Progress with an estimate of the time left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Lines in a log are at least so far apart, the last one excepted.
_SECONDS = 20.0
# Tells how much is done, and what there is to say of it.
Tell = Callable[[int, str], None]
_Item = TypeVar("_Item")


@contextmanager
def shown(name: str, total: int, console: Console | None = None) -> Iterator[Tell]:
    """Show the progress of `name` towards `total` for the length of a block."""
    console = console or Console()
    if not console.is_terminal:
        yield _lines(name, total, console)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as bar:
        task = bar.add_task(name, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def over(name: str, items: Sequence[_Item], console: Console | None = None) -> Iterator[_Item]:
    """Go through `items` and show how many are done."""
    with shown(name, len(items), console) as tell:
        for done, item in enumerate(items, 1):
            yield item
            tell(done, "")


def _lines(name: str, total: int, console: Console) -> Tell:
    """Each line: what is done of how much, the time since the start, the time left, the note."""
    began = time.monotonic()
    last = -_SECONDS
    start: int | None = None

    def tell(done: int, note: str) -> None:
        nonlocal last, start
        # What an earlier run has done says nothing of this one's pace.
        start = max(0, done - 1) if start is None else start
        passed = time.monotonic() - began
        if passed - last < _SECONDS and done < total:
            return
        last = passed
        left = timedelta(seconds=round(passed / max(done - start, 1) * (total - done)))
        elapsed = timedelta(seconds=round(passed))
        text = f"{name} {done}/{total}, {elapsed}, {left} left  {note}"
        console.print(text.rstrip(), highlight=False, soft_wrap=True)

    return tell
