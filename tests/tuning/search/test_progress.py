"""What a search shows, in a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from raycrt.tuning.search import progress
from raycrt.tuning.trials import space, store
from tests.tuning.analysis.test_study import record
from tests.tuning.driver import LANDSCAPE, drive


def value(params: dict[str, Any], epoch: int) -> float:
    return epoch / 100 * params["model.depth"] / 8


def shown(home: Path, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    store.start_study(LANDSCAPE, home, space.points(LANDSCAPE))
    with progress.watching(lambda: store.open_study(LANDSCAPE, home), LANDSCAPE, home, 30, console):
        drive(LANDSCAPE, home, value, budget=80)
    return console.file.getvalue()


def test_each_trial_that_ended_has_one_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=False)
    table = pd.read_csv(tmp_path / "trials.csv")
    lines = [line for line in text.splitlines() if line.startswith("trial ")]
    assert [int(line.split()[1]) for line in lines] == list(table["number"])
    assert "gamma 0.001" in lines[0]
    assert f"{len(table)}/30 trials, best" in lines[-1]
    assert "pruned" in lines[-1]
    assert "eta" in lines[-1]


def test_a_terminal_gets_a_table(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "certified" in text
    assert "30 trials, best" in text


def announced(home: Path, storage: str | None, dashboard: str | None) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    spec = LANDSCAPE.override({"search.storage": storage})
    progress.announce(spec, home, f"{home}/tune", dashboard, console)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_a_search_says_how_to_watch_it_by_lines_to_copy() -> None:
    home = Path("/runs/a long name of a directory/search")
    assert announced(home, None, "http://127.0.0.1:8265") == [
        "watch it:",
        "Ray dashboard: http://127.0.0.1:8265 (its token: ray get-auth-token)",
        f"tensorboard --logdir '{home}/tune'",
        f"optuna-dashboard '{home}/study.journal'",
    ]


def test_a_study_in_a_database_is_watched_there_and_no_dashboard_is_made_up() -> None:
    assert announced(Path("a"), "sqlite:///studies.db", None) == [
        "watch it:",
        "tensorboard --logdir a/tune",
        "optuna-dashboard sqlite:///studies.db",
    ]


def test_a_weak_rung_is_warned_of_in_one_line() -> None:
    def warned(order: int) -> str:
        console = Console(file=io.StringIO(), width=40)
        trials = [record(n, n / 9, 0.9, rungs={3: n * order % 9, 27: n / 9}) for n in range(9)]
        progress.warn(trials, console)
        return console.file.getvalue()

    assert warned(5).startswith("warning: the rung at epoch 3 orders trials only weakly")
    assert warned(5).count("\n") == 1
    assert warned(1) == ""
