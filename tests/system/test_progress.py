"""Progress in a log: a line now and then, the first and the last always; a bar on a terminal."""

from io import StringIO

import pytest
from rich.console import Console

from raycrt.system import progress


def _console(terminal):
    return Console(file=StringIO(), force_terminal=terminal, width=60)


def test_a_log_gets_lines_that_end_with_what_there_is_to_say(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = _console(False)
    with progress.shown("train", 100, console) as tell:
        for epoch in range(1, 101):
            now[0] += 4.0
            tell(epoch, f"loss {1 / epoch:.3g}")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "train 1/100, 0:00:04  loss 1"
    assert lines[1] == "train 6/100, 0:00:24, 0:06:16 left  loss 0.167"
    assert lines[-1] == "train 100/100, 0:06:40, 0:00:00 left  loss 0.01"
    assert len(lines) == 21


@pytest.mark.parametrize("before", [0, 90], ids=["at first", "taken up again"])
def test_the_pace_is_that_of_this_run_once_it_has_started(monkeypatch, before):
    """The first epoch takes a minute, as it includes the start; those after it take 20 seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = _console(False)
    with progress.shown("train", 100, console) as tell:
        for epoch, seconds in enumerate((60.0, 20.0), before + 1):
            now[0] += seconds
            tell(epoch, "")
    first, second = console.file.getvalue().splitlines()
    assert first == f"train {before + 1}/100, 0:01:00"
    left = {0: "0:32:40", 90: "0:02:40"}[before]
    assert second == f"train {before + 2}/100, 0:01:20, {left} left"


def test_nothing_is_extrapolated_from_nothing(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    console = _console(False)
    with progress.shown("certify", 10, console) as tell:
        tell(0, "")
        tell(10, "all of it")
    assert console.file.getvalue() == (
        "certify 0/10, 0:00:00\ncertify 10/10, 0:00:00, 0:00:00 left  all of it\n"
    )


def test_a_terminal_gets_a_bar():
    console = _console(True)
    with progress.shown("certify", 10, console) as tell:
        tell(10, "all of it")
    assert "10/10" in console.file.getvalue()


@pytest.mark.parametrize(
    ("left", "done", "seconds", "expected"),
    [(10, 5, 60.0, "0:02:00"), (3, 0, 5.0, "?"), (0, 4, 9.0, "0:00:00")],
)
def test_the_time_left_is_extrapolated(left, done, seconds, expected):
    assert progress.remaining(left, done, seconds) == expected
