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
def told(*options: str, program: str = "raycrt") -> Iterator[None]:
    """End the process where a signal stops the block: the command that goes on is named on standard
    error, the exit code is 128 and the signal's number.

    That is the command which runs now, with `options` where it lacks them. A signal that is ignored
    when the block begins, as Ctrl-C is in a shell's background, stays so.
    """
    lacking = [option for option in options if option not in sys.argv]
    go_on = f"to go on: {shlex.join([program, *sys.argv[1:], *lacking])}"

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
            os.write(2, f"\nraycrt: stopped at once; {go_on}\n".encode())
            os._exit(128 + number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        # What waits in C raises a plain KeyboardInterrupt for any signal.
        terminated = isinstance(error, Terminated) or signal.SIGTERM in received
        name = "SIGTERM" if terminated else "Ctrl-C"
        sys.stdout.flush()
        print(f"raycrt: stopped by {name}; {go_on}", file=sys.stderr, flush=True)
        # Threads that still wait for Ray would hold up or crash the interpreter's own end.
        os._exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
