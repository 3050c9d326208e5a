"""The finals: which trainings decide, without running them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from raycrt import InvalidInput
from raycrt.specs import Spec
from raycrt.system.progress import Report
from raycrt.tuning.analysis import study
from raycrt.tuning.analysis.study import Row, TrialRecord
from raycrt.tuning.search import finals
from tests.tuning.analysis.test_study import record
from tests.tuning.driver import LANDSCAPE


def test_finalists_are_trained_with_seeds_that_no_trial_had() -> None:
    for seed in (0, 7):
        spec = LANDSCAPE.override({"run.seed": seed, "search.seeds": 2})
        assert list(finals.seeds(spec)) == [seed + 1, seed + 2]


def test_what_breaks_a_constraint_is_neither_trained_in_the_finals_nor_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def train(spec: Spec, home: Path, chosen: list[TrialRecord], report: Report) -> list[Row]:
        trained.extend(trial.number for trial in chosen)
        judged = {"clean": 0.9, "mean_radius": 0.5, "rows": 100}
        return [{"number": t.number, "seed": 1, "certified": t.certified, **judged} for t in chosen]

    monkeypatch.setattr(finals, "_train_all", train)
    trials = [record(n, (9 - n) / 10, 0.9, feasible=n >= 3) for n in range(6)]
    quiet = Console(quiet=True)
    spec = LANDSCAPE.override({"search.seeds": 1, "search.finalists": 2})
    assert finals.choose(spec, tmp_path, trials, quiet).number == 3
    assert trained == [3, 4]
    without = spec.override({"search.finalists": 0})
    assert finals.choose(without, tmp_path, trials, quiet).number == 3
    with pytest.raises(InvalidInput, match=r"keeps search\.constraints"):
        finals.choose(spec, tmp_path, trials[:3], quiet)


def test_rows_of_the_trials_own_seed_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(number: int, seed: int, certified: float) -> Row:
        judged = {"certified": certified, "clean": 0.9, "mean_radius": certified}
        return {"number": number, "seed": seed, **judged, "rows": 100}

    stored = [row(0, 0, 0.1), row(0, 1, 0.6), row(0, 2, 0.6)]
    stored += [row(1, 0, 0.9), row(1, 1, 0.5), row(1, 2, 0.5)]

    def trained(*given: object) -> list[Row]:
        return stored

    monkeypatch.setattr(finals, "_train_all", trained)
    spec = LANDSCAPE.override({"search.seeds": 2, "search.finalists": 2})
    trials: list[TrialRecord] = [record(0, 0.1, 0.9), record(1, 0.9, 0.9)]
    assert study.ranking(trials)[0].number == 1
    assert finals.choose(spec, tmp_path, trials, Console(quiet=True)).number == 0
