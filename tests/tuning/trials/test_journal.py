"""A study outlasts full disks and killed processes."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend

from raycrt.errors import InvalidInput
from raycrt.tuning import cli
from raycrt.tuning.analysis import study
from raycrt.tuning.trials import journal, store
from raycrt.tuning.trials.journal import Journal
from tests.tuning.driver import LANDSCAPE, drive

BUDGET = 27 * 3


def value(params: dict[str, Any], epoch: int) -> float:
    return params["model.depth"] / 10 + epoch / 1000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A search with finished trials, and the first few of what came next torn off."""
    home = tmp_path / "search"
    drive(LANDSCAPE, home, value, budget=BUDGET)
    LANDSCAPE.save(home)
    return home


def tear(home: Path, by: int = 20) -> bytes:
    """Cut the end of the last record off; what is left of it."""
    file = home / store.JOURNAL
    whole = file.read_bytes()
    file.write_bytes(whole[:-by])
    return whole[:-by].splitlines()[-1]


def test_a_torn_tail_is_kept_aside_and_the_search_goes_on(home: Path, caplog: Any) -> None:
    whole = (home / store.JOURNAL).read_bytes()
    left = tear(home)
    with caplog.at_level(logging.WARNING, journal.__name__):
        after = drive(LANDSCAPE, home, value, budget=2 * BUDGET)
    assert (home / "study.journal.torn").read_bytes() == left
    [warning] = [r.message for r in caplog.records if "was cut short" in r.message]
    assert "study.journal.torn" in warning
    lines = (home / store.JOURNAL).read_bytes().splitlines(keepends=True)
    kept = whole.splitlines(keepends=True)[:-1]
    assert lines[: len(kept)] == kept and all(json.loads(line) for line in lines)
    assert study.load(home)[1] == after


@pytest.mark.parametrize(
    "tail", [b"\n", b"\xff\xfe\n", b"\0\0\0\0\0\0\n", b'{"op_code":5\n', b"7\n"]
)
def test_a_last_line_that_is_no_record_is_torn_too(home: Path, tail: bytes) -> None:
    before = study.load(home)[1]
    with (home / store.JOURNAL).open("ab") as file:
        file.write(tail)
    if tail != b"7\n":
        assert study.load(home)[1] == before
    file = home / store.JOURNAL
    Journal(file).append_logs([{"a": "b" * journal._BLOCK}])
    assert Path(f"{file}.torn").read_bytes() == tail
    assert file.read_bytes().endswith(b'"}\n')
    Journal(file).append_logs([{"a": 1}])
    assert Path(f"{file}.torn").read_bytes() == tail


def test_study_reads_a_torn_journal_and_writes_nothing_into_the_search(home: Path) -> None:
    complete = study.load(home)[1]
    tear(home)
    before = {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()}
    cli.study([home.parent])
    assert {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()} == before
    assert len(study.load(home)[1]) == len(complete)


def test_damage_in_the_middle_is_named_with_its_line(home: Path) -> None:
    file = home / store.JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    lines[6] = lines[6][:-9] + lines[7]
    del lines[7]
    file.write_bytes(b"".join(lines))
    for reads in (lambda: study.load(home), lambda: store.open_study(LANDSCAPE, home)):
        with pytest.raises(InvalidInput, match=r"line 7 of .*study\.journal must be a record"):
            reads()


def test_what_a_full_disk_does_not_take_is_not_there_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "journal"
    backend = Journal(file)
    backend.append_logs([{"a": 1}])

    def half(stream: Any, lines: bytes) -> None:
        stream.write(lines[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(journal, "_write", half)
        with pytest.raises(OSError, match="No space left"):
            backend.append_logs([{"b": 2}, {"c": 3}])
    assert file.read_bytes() == b'{"a":1}\n'
    backend.append_logs([{"d": 4}])
    assert list(JournalFileBackend(str(file)).read_logs(0)) == [{"a": 1}, {"d": 4}]
    assert not (tmp_path / "journal.torn").exists()


@pytest.mark.parametrize("left", ["file", "link", "link to nowhere"])
def test_a_lock_that_a_dead_process_left_is_waited_out(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_GRACE_SECONDS", 3)
    lock = tmp_path / "journal.lock"
    backend = Journal(tmp_path / "journal")
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if left == "file":
        lock.touch()
    else:
        lock.symlink_to(tmp_path / "journal" if left == "link" else "elsewhere/journal")
    backend.append_logs([{"a": 1}])
    assert (tmp_path / "journal").read_bytes() == b'{"a":1}\n'
    assert not lock.is_symlink() and not lock.exists()


def test_a_journal_that_may_not_be_read_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Journal, "read_logs", refuse)
    with pytest.raises(InvalidInput, match=r"the study of .* must be readable: .*Permission"):
        study.load(home)
