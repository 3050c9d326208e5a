"""Progress and the time left: a bar on a terminal, a line at intervals in a log."""

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

# The shortest time between two lines in a log; the last line is always printed.
_SECONDS = 20.0
# Called with the amount of work done and a note about it.
Report = Callable[[int, str], None]
_Item = TypeVar("_Item")


@contextmanager
def shown(name: str, total: int, console: Console | None = None) -> Iterator[Report]:
    """Show the progress of `name` towards `total` for the duration of a block."""
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
    """Iterate over `items` and show how many are done."""
    with shown(name, len(items), console) as report:
        for done, item in enumerate(items, 1):
            yield item
            report(done, "")


def remaining(left: int, done: int, seconds: float) -> str:
    """The time for `left` more items as h:mm:ss, if `done` items took `seconds`; "?" for none."""
    if left <= 0:
        return _clock(0)
    return _clock(left * seconds / done) if done else "?"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _lines(name: str, total: int, console: Console) -> Report:
    """A `Report` that prints a line: items done of the total, time passed, time left once there is
    a pace, a note."""
    began = time.monotonic()
    last = -_SECONDS
    origin: tuple[int, float] | None = None

    def report(done: int, note: str) -> None:
        nonlocal last, origin
        now = time.monotonic()
        # The pace is that of the items after the first one, before which everything has to start;
        # items of an earlier run have none here.
        if origin is None and done:
            origin = done, now
        if now - began - last < _SECONDS and done < total:
            return
        last = now - began
        first, since = origin or (done, now)
        known = done > first or done >= total
        left = f", {remaining(total - done, done - first, now - since)} left" if known else ""
        text = f"{name} {done}/{total}, {_clock(last)}{left}  {note}"
        console.print(text.rstrip(), highlight=False, soft_wrap=True)

    return report
