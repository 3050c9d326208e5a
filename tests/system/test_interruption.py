"""Signals: where they raise, what is said, with which code a command ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from raycrt.system import interruption
from raycrt.system.interruption import Terminated, reported


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The exit codes that the process would have had, in the command `raycrt search --out a b`."""
    codes: list[int] = []

    def end(code: int) -> NoReturn:
        codes.append(code)
        raise Left

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "argv", ["/bin/raycrt", "search", "--out", "a b"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield codes
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # a handler runs between two instructions


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_the_command_that_goes_on_is_named(
    number: int, code: int, name: str, ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Left), reported("--resume"):
        send(number)
        pytest.fail("nothing was raised")
    assert ended == [code]
    said = f"raycrt: stopped by {name}; to go on: raycrt search --out 'a b' --resume\n"
    assert capfd.readouterr().err == said
    assert signal.getsignal(number) is before


def test_an_option_that_is_there_is_not_added(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "--resume", "--out", "/a"])
    with pytest.raises(Left), reported("--resume", program="python -m raycrt.cluster.pipeline"):
        send(signal.SIGTERM)
    told_of = capfd.readouterr().err
    assert told_of.endswith("to go on: python -m raycrt.cluster.pipeline --resume --out /a\n")


def test_what_waits_in_c_forgets_which_signal_it_was(ended: list[int]) -> None:
    def wait() -> None:
        try:
            send(signal.SIGTERM)
        except Terminated:
            raise KeyboardInterrupt from None

    with pytest.raises(Left), reported():
        wait()
    assert ended == [143]


@pytest.mark.parametrize(("seconds", "codes"), [(-1.0, [143]), (1e9, [130])])
def test_a_second_signal_stops_at_once_unless_it_is_the_first_sent_twice(
    seconds: float, codes: list[int], ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "_SECONDS_OF_ONE_SIGNAL", seconds)

    def keep() -> None:
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)

    with pytest.raises(Left), reported():
        keep()
    assert ended[:1] == codes


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with reported():
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_that_a_library_takes_are_given_back() -> None:
    def raising(act: Callable[[], None]) -> None:
        with interruption.handlers_kept():
            act()

    with interruption.raised("") as received:
        raising(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN) and None)
        with pytest.raises(Terminated):
            send(signal.SIGTERM)
        assert received == [signal.SIGTERM]
