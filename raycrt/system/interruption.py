"""How a command is stopped: Ctrl-C and SIGTERM end it in the same way, in one sentence.

The first of either is a `KeyboardInterrupt` in the main thread, wherever that is: what was kept is
there already or is kept on the way out, and nothing is marked as finished. A second one does not
wait for that.
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
    """SIGTERM came, which schedulers, Kubernetes and `ray job stop` send."""


@contextmanager
def reported(*options: str, program: str = "raycrt") -> Iterator[None]:
    """End the process where a signal stops the block: the command that goes on is named on standard
    error, the exit code is 128 and the signal's number.

    That is the command which runs now, with `options` where it lacks them.
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
            # Threads that still wait for Ray would hold up or crash the interpreter's own end.
            os._exit(128 + number)


@contextmanager
def raised(last_words: str) -> Iterator[list[int]]:
    """Have the first SIGINT or SIGTERM raise in the block; its number is in the list then.

    A second one ends the process at once, with `last_words`. A signal that is ignored when the
    block begins, as Ctrl-C is in a shell's background, stays so.
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
    """The signal that raised `error`: what waits in C raises a plain KeyboardInterrupt for any."""
    if received:
        return received[0]
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Undo what the block does to the handlers of SIGINT and SIGTERM, in C as well as in Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
