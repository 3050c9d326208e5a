"""Searches that share a study in PostgreSQL; skipped where no server is installed."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState

from raycrt import InvalidInput
from raycrt.tuning.analysis import study
from raycrt.tuning.trials import store
from tests.tuning.driver import LANDSCAPE, drive
from tests.tuning.search.test_searcher import landscape

pytestmark = pytest.mark.slow


def _programs() -> Path | None:
    """The directory of `initdb` and `pg_ctl`."""
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    places += [Path(on_path).parent] if on_path else []
    return next((place for place in sorted(places) if (place / "pg_ctl").exists()), None)


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty database on loopback; its password is in PGPASSWORD."""
    pytest.importorskip("psycopg", reason="psycopg connects to PostgreSQL")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    # Not below pytest's directories, which are root's alone.
    base = Path(tempfile.mkdtemp(prefix="raycrt-pg-"))
    password = secrets.token_hex(16)
    (base / "password").write_text(password)
    if user:
        for path in (base, base / "password"):
            shutil.chown(path, user)
    data, port = base / "data", _free_port()

    def run(*command: object) -> None:
        done = subprocess.run(
            [str(word) for word in command],
            cwd="/",
            user=user,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    how = ["--auth=scram-sha-256", f"--pwfile={base / 'password'}", "-U", "raycrt"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={base}"
    try:
        run(programs / "initdb", "-D", data, *how)
        run(programs / "pg_ctl", "-D", data, "-w", "-l", base / "log", "-o", options, "start")
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PGPASSWORD", password)
                yield f"postgresql+psycopg://raycrt@127.0.0.1:{port}/postgres"
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(base)


def test_two_searches_at_once_share_one_study(server: str, tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.storage": server})
    with ThreadPoolExecutor(2) as threads:
        for done in [
            threads.submit(drive, spec, tmp_path / name, landscape, budget=150)
            for name in ("a", "b")
        ]:
            done.result()
    record = store.load_study(spec, tmp_path / "a")
    trials = study.trials(record, spec)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    homes = {trial.user_attrs[store.HOME] for trial in record.get_trials()}
    assert homes == {store.identity(tmp_path / "a"), store.identity(tmp_path / "b")}
    assert len(homes) == 2
    assert sum(t.user_attrs.get(store.DEFAULT, False) for t in record.get_trials()) == 1
    assert record.best_value == study.ranking(trials)[0].certified


def test_a_search_that_died_goes_on_in_the_database(server: str, tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.storage": server, "search.radius": 0.4})
    died = drive(spec, tmp_path, landscape, budget=120, die_at=(4, 3))
    assert died[-1].state == "running"
    trials = drive(spec, tmp_path, landscape, budget=120)
    assert trials[: len(died) - 1] == died[:-1]
    record = store.load_study(spec, tmp_path)
    assert not record.get_trials(states=(TrialState.RUNNING,))


def test_a_database_that_does_not_answer_is_refused(server: str, tmp_path: Path) -> None:
    url = server.replace("raycrt@", "nobody@")
    with pytest.raises(InvalidInput, match=r"search\.storage must be a database that opens"):
        store.open_study(LANDSCAPE.override({"search.storage": url}), tmp_path)
