"""Handling of Ctrl-C and SIGTERM: both end a command in the same way, with one sentence.

The first signal raises `KeyboardInterrupt` in the main thread, wherever it is executing: results
are stored already or are stored while the exception propagates, and nothing is marked as finished.
A second signal ends the process without waiting for that.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

# Some programs, such as timeout(1), send one signal twice: to the process and to its group.
_SECONDS_OF_ONE_SIGNAL = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, as schedulers, Kubernetes and `ray job stop` send it."""


@contextmanager
def reported(*options: str, program: str = "raycrt") -> Iterator[None]:
    """End the process if a signal stops the block: standard error names the command that resumes
    the work, and the exit code is 128 plus the signal's number.

    The command named is the current one, with those of `options` that it lacks.
    """
    lacking = [option for option in options if option not in sys.argv]
    go_on = f"to go on: {shlex.join([*shlex.split(program), *sys.argv[1:], *lacking])}"
    with raised(f"raycrt: stopped at once; {go_on}") as received:
        try:
            yield
        except KeyboardInterrupt as error:
            number = signal_of(error, received)
            name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
            sys.stdout.flush()
            print(f"raycrt: stopped by {name}; {go_on}", file=sys.stderr, flush=True)
            # Threads still waiting for Ray would delay or crash the interpreter's shutdown.
            os._exit(128 + number)


@contextmanager
def raised(last_words: str) -> Iterator[list[int]]:
    """Make the first SIGINT or SIGTERM raise in the block; the yielded list then has its number.

    A second signal prints `last_words` and ends the process at once. A signal that is ignored when
    the block begins, as Ctrl-C is in a background job of a shell, stays ignored.
    """
    received: list[int] = []
    since = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not received:
            since = time.monotonic()
            received.append(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - since > _SECONDS_OF_ONE_SIGNAL:
            Console(stderr=True).show_cursor()
            os.write(2, f"\n{last_words}\n".encode())
            os._exit(128 + number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_of(error: KeyboardInterrupt, received: list[int]) -> int:
    """The signal that raised `error`; code waiting in C raises KeyboardInterrupt for either."""
    if received:
        return received[0]
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the block, in C as well as in Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
