"""The searcher and the scheduler, driven as Tune drives them."""

from __future__ import annotations

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from raycrt.specs import Spec
from raycrt.tuning.analysis import importance, study
from raycrt.tuning.search import driver
from raycrt.tuning.search.searcher import Deaths, Halving, Median, StudySearch
from raycrt.tuning.trials import space, store
from raycrt.tuning.trials.process import NUMBER
from tests.tuning.driver import LANDSCAPE, drive, result

GRID = LANDSCAPE.override(
    {
        "search.algorithm": "grid",
        "search.space": {
            "model.depth": {"low": 2, "high": 5},
            "model.activation": {"choices": ["softplus", "sigmoid", "tanh"]},
        },
    }
)


def landscape(params: dict[str, Any], epoch: int) -> float:
    """A known peak of 0.9 at gamma 0.03, rate 0.01, depth 4, tanh; curves that keep their order."""
    distance = (
        math.log10(params["train.gamma"] / 0.03) ** 2
        + math.log10(params["train.learning_rate"] / 0.01) ** 2
        + ((params["model.depth"] - 4) / 2) ** 2
        + (0 if params["model.activation"] == "tanh" else 1)
    )
    return 0.9 * math.exp(-distance / 4) * (1 - math.exp(-epoch / 6))


@pytest.mark.slow
def test_tpe_with_asha_beats_random_at_the_same_budget(tmp_path: Path) -> None:
    budget = 15 * LANDSCAPE.train.epochs
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for seed in range(5):
        for algorithm, scheduler in (("tpe", "asha"), ("random", "none")):
            spec = LANDSCAPE.override(
                {
                    "search.algorithm": algorithm,
                    "search.scheduler": scheduler,
                    "run.seed": seed,
                }
            )
            trials = drive(spec, tmp_path / f"{algorithm}-{seed}", landscape, budget=budget)
            best[algorithm].append(study.ranking(trials)[0].certified)
    assert mean(best["tpe"]) > mean(best["random"]) + 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    def params(home: str, spec: Spec) -> list[dict[str, Any]]:
        return [t.params for t in drive(spec, tmp_path / home, landscape, budget=200)]

    first = params("a", LANDSCAPE)
    assert len(first) > 10
    assert params("b", LANDSCAPE) == first
    assert params("c", LANDSCAPE.override({"run.seed": 1}))[1:] != first[1:]


@pytest.mark.slow
def test_a_search_that_died_goes_on_exactly_as_it_would_have(tmp_path: Path) -> None:
    whole = drive(LANDSCAPE, tmp_path / "whole", landscape, budget=250)
    victim = next(t.number for t in whole if t.number > 5 and t.complete)
    home = tmp_path / "died"
    died = drive(LANDSCAPE, home, landscape, budget=250, die_at=(victim, 9))
    assert died[-1].state == "running"
    resumed = drive(LANDSCAPE, home, landscape, budget=250)
    assert [(t.number, t.params, t.state, t.rungs) for t in resumed] == [
        (t.number, t.params, t.state, t.rungs) for t in whole
    ]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/shared.db", None])
def test_a_search_that_was_moved_counts_its_trials_once(
    storage: str | None, tmp_path: Path
) -> None:
    url = None if storage is None else storage.format(tmp_path)
    spec = LANDSCAPE.override({"search.storage": url})
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    died = drive(spec, old, landscape, budget=150, die_at=(4, 3))
    new.parent.mkdir()
    old.rename(new)
    old.mkdir()
    record = store.load_study(spec, new)
    assert len(store.own(record, new, *store.FINISHED)) == len(died) - 1 == 4
    [orphan] = store.own(record, new, TrialState.RUNNING)
    assert StudySearch(spec, new, record).suggest("again")[NUMBER] == orphan.number == 4
    assert store.own(record, old, *store.FINISHED, TrialState.RUNNING) == []


def test_trials_that_are_marked_by_their_directory_still_count(tmp_path: Path) -> None:
    record = store.open_study(LANDSCAPE, tmp_path)
    for directory in (tmp_path, tmp_path / "other"):
        record.ask().set_user_attr(store.HOME, str(directory.resolve()))
    assert [trial.number for trial in store.own(record, tmp_path, TrialState.RUNNING)] == [0]


def test_the_default_is_first_and_runs_to_the_end_whatever_it_is_worth(tmp_path: Path) -> None:
    own = space.defaults(LANDSCAPE)

    def hopeless_default(params: dict[str, Any], epoch: int) -> float:
        return 0.0 if all(params[k] == v for k, v in own.items()) else landscape(params, epoch)

    trials = drive(LANDSCAPE, tmp_path, hopeless_default, budget=200)
    assert trials[0].params == own
    assert trials[0].complete


def test_a_stopped_trial_is_pruned_with_the_value_of_its_last_rung(tmp_path: Path) -> None:
    trials = drive(LANDSCAPE, tmp_path, landscape, budget=250)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial.epochs in LANDSCAPE.search.rungs
        assert trial.certified == trial.rungs[trial.epochs] == landscape(trial.params, trial.epochs)
    assert study.saved_epochs(trials, LANDSCAPE) == sum(27 - t.epochs for t in pruned)


def test_ends_never_count_as_rungs_even_of_a_trial_that_was_taken_up_again(tmp_path: Path) -> None:
    record = store.open_study(LANDSCAPE, tmp_path)
    halving = Halving(LANDSCAPE, record)
    for number, epochs in ((3, (3, 9, 27)), (4, (9, 27)), (5, (27,))):
        trial = SimpleNamespace(trial_id=f"tune-{number}", config={NUMBER: number})
        halving.on_trial_add(None, trial)
        for epoch in epochs:
            found = result(1.0 if epoch == 27 else 0.5, epoch)
            assert halving.on_trial_result(None, trial, found) == TrialScheduler.CONTINUE
        halving.on_trial_complete(None, trial, found)
    rungs = {epoch: set(values.values()) for epoch, values in halving._brackets[0]._rungs}
    assert rungs == {3: {0.5}, 9: {0.5}}


class TuneTrial:
    """What the median rule sees of a trial; it may be the key of a dictionary."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"tune-{number}", {NUMBER: number}


def controller(*statuses: str) -> SimpleNamespace:
    """Tune's controller with live trials in these states."""
    return SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status=s) for s in statuses])


def test_the_median_rule_stops_what_lies_below_it_but_never_the_default(tmp_path: Path) -> None:
    median = Median(LANDSCAPE, store.open_study(LANDSCAPE, tmp_path))
    trials = [TuneTrial(number) for number in range(5)]

    def told(number: int, epoch: int, certified: float) -> str:
        return median.on_trial_result(controller(), trials[number], result(certified, epoch))

    for number in (1, 2, 3):
        for epoch in LANDSCAPE.search.rungs:
            assert told(number, epoch, 0.5) == TrialScheduler.CONTINUE
    assert [told(0, epoch, 0.1) for epoch in (3, 9, 27)] == [TrialScheduler.CONTINUE] * 3
    assert told(4, 3, 0.1) == TrialScheduler.STOP


def test_the_median_rule_pauses_no_trial_for_one_that_waits(tmp_path: Path) -> None:
    median = Median(LANDSCAPE, store.open_study(LANDSCAPE, tmp_path))
    told = median.on_trial_result(controller("PENDING"), TuneTrial(1), result(0.5, 3))
    assert told == TrialScheduler.CONTINUE


def test_the_median_rule_knows_what_earlier_processes_measured(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.scheduler": "median"})
    record = store.open_study(spec, tmp_path)
    searcher = StudySearch(spec, tmp_path, record)
    for number, rungs in enumerate(
        [{3: 0.4, 9: 0.5}, {3: 0.4, 9: 0.5}, {3: 0.4, 9: 0.5}, {3: 0.6}]
    ):
        searcher.suggest(f"tune-{number}")
        for epoch, certified in rungs.items():
            searcher.on_trial_result(f"tune-{number}", result(certified, epoch))
    median = Median(spec, record)
    # The means at epoch 9 are 0.45; the best of trial 3 was 0.6, before its process died.
    again, new = TuneTrial(3), TuneTrial(4)
    for trial in (again, new):
        median.on_trial_add(None, trial)
    assert median.on_trial_result(controller(), again, result(0.3, 9)) == TrialScheduler.CONTINUE
    assert median.on_trial_result(controller(), new, result(0.41, 3)) == TrialScheduler.CONTINUE
    assert median.on_trial_result(controller(), new, result(0.42, 9)) == TrialScheduler.STOP


def test_the_median_rule_counts_a_rung_once_that_workers_repeat(tmp_path: Path) -> None:
    median = Median(LANDSCAPE, store.open_study(LANDSCAPE, tmp_path))
    for trial in [TuneTrial(number) for number in range(1, 4)]:
        for epoch, certified in ((3, 0.2), (3, 0.2), (3, 0.2), (9, 0.8)):
            told = median.on_trial_result(controller(), trial, result(certified, epoch))
            assert told == TrialScheduler.CONTINUE
    # Below the mean of 0.2 and 0.8, above that of 0.2 three times and 0.8.
    last = TuneTrial(4)
    assert median.on_trial_result(controller(), last, result(0.42, 3)) == TrialScheduler.CONTINUE
    assert median.on_trial_result(controller(), last, result(0.42, 9)) == TrialScheduler.STOP


@pytest.mark.parametrize("scheduler", [Halving, Median])
def test_a_failure_is_no_measurement_of_the_rung_before_it(
    scheduler: type[Halving] | type[Median], tmp_path: Path
) -> None:
    rule = scheduler(LANDSCAPE, store.open_study(LANDSCAPE, tmp_path))
    trials = [TuneTrial(number) for number in range(1, 6)]
    for trial in trials:
        rule.on_trial_add(None, trial)
    for trial in trials[:4]:
        rule.on_trial_result(controller(), trial, result(0.5, 3))
        failed = {"certified": 0.0, "epoch": 3, store.REASON: "TrainingDiverged"}
        assert rule.on_trial_result(controller(), trial, failed) == TrialScheduler.CONTINUE
    # Below the 0.5 of the others, not above a mean with their failures in it.
    assert rule.on_trial_result(controller(), trials[4], result(0.4, 3)) == TrialScheduler.STOP


def test_each_radius_of_the_objective_reaches_the_study(tmp_path: Path) -> None:
    trials = drive(LANDSCAPE, tmp_path, landscape, budget=60)
    assert all(trial.certified_at == {0.5: trial.certified} for trial in trials)


def test_a_failed_trial_keeps_its_reason_and_too_many_end_the_search(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.failures": 1})
    record = store.open_study(spec, tmp_path)
    searcher = StudySearch(spec, tmp_path, record)
    for name in ("a", "b"):
        searcher.suggest(name)
        failed = {"certified": 0.0, "epoch": 0, "reason": "TrainingDiverged: nan at step 3"}
        searcher.on_trial_complete(name, failed)
    assert searcher.suggest("c") == StudySearch.FINISHED
    trials = study.trials(record, spec)
    assert [(t.state, t.reason) for t in trials] == [
        ("failed", "TrainingDiverged: nan at step 3")
    ] * 2
    assert study.ranking(trials) == []


def test_failures_count_on_when_a_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = LANDSCAPE.override({"search.failures": 1})
    record = store.open_study(spec, tmp_path)

    def fail(name: str) -> StudySearch:
        searcher = StudySearch(spec, tmp_path, record)
        searcher.suggest(name)
        searcher.on_trial_complete(name, error=True)
        return searcher

    fail("a")
    assert fail("b").suggest("c") == StudySearch.FINISHED

    def started(*args: object, **options: object) -> None:
        raise AssertionError("Tune was started")

    monkeypatch.setattr(driver.tune, "Tuner", started)
    driver._run_trials(spec, tmp_path, record, [], spec.search.trials, Console(quiet=True))
    with pytest.raises(driver.SearchFailed, match=r"2 trials failed \(search\.failures=1\)"):
        driver._check_outcome(spec, record, tmp_path)


def test_a_lost_process_is_a_failure(tmp_path: Path) -> None:
    record = store.open_study(LANDSCAPE, tmp_path)
    searcher = StudySearch(LANDSCAPE, tmp_path, record)
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    [trial] = study.trials(record, LANDSCAPE)
    assert trial.state == "failed"
    assert "process died" in trial.reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on the node "
            "(IP: 127.0.0.1) was 11GB\nmore",
            "its process died: 1 worker(s) were killed due to the node running low on memory;",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: Trial",
            "its process died: The actor died unexpectedly before finishing this task;",
        ),
    ],
)
def test_the_reason_of_a_death_is_what_ray_said_last(
    said: str, reason: str, tmp_path: Path
) -> None:
    record = store.open_study(LANDSCAPE, tmp_path)
    deaths = Deaths()
    searcher = StudySearch(LANDSCAPE, tmp_path, record, deaths=deaths)
    searcher.suggest("a")
    file = tmp_path / "error.txt"
    file.write_text(f"Failure # 1 (occurred at 1)\nlost\nFailure # 2 (occurred at 2)\n{said}\n")
    deaths.on_trial_start(0, [], SimpleNamespace(trial_id="a", error_file=str(file)))
    searcher.on_trial_complete("a", error=True)
    [trial] = study.trials(record, LANDSCAPE)
    assert trial.reason == f"{reason} see error.txt beside its logs"


def test_constraints_reach_the_study_and_rule_a_winner_out(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.constraints": {"clean": 0.5, "parameters": 20}})
    record = store.open_study(spec, tmp_path)
    searcher = StudySearch(spec, tmp_path, record)
    for name, certified in (("a", 0.9), ("b", 0.6), ("c", 0.4)):
        searcher.suggest(name)
        found = result(certified, 27)
        found["parameters"] = 100 if name == "a" else 10
        searcher.on_trial_complete(name, found)
    assert [t.number for t in study.ranking(study.trials(record, spec))] == [1]
    assert record.get_trials()[0].constraints == {"clean": pytest.approx(-0.4), "parameters": 80}


def test_what_curves_too_much_cannot_win(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.constraints": {"curvature": 2.0}})
    record = store.open_study(spec, tmp_path)
    searcher = StudySearch(spec, tmp_path, record)
    for name, curvature in (("a", 2.5), ("b", 2.0)):
        searcher.suggest(name)
        searcher.on_trial_complete(name, {**result(0.5, 27), "curvature": curvature})
    assert [trial.constraints for trial in record.get_trials()] == [
        {"curvature": 0.5},
        {"curvature": 0.0},
    ]
    assert [trial.number for trial in study.ranking(study.trials(record, spec))] == [1]


@pytest.mark.slow
def test_two_searches_share_one_database_and_its_password_is_not_pickled(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.storage": f"sqlite:///{tmp_path}/shared.db?secret"})
    drive(spec, tmp_path / "a", landscape, budget=60)
    trials = drive(spec, tmp_path / "b", landscape, budget=150)
    record = store.load_study(spec, tmp_path / "b")
    homes = {trial.user_attrs[store.HOME] for trial in record.get_trials()}
    assert homes == {store.identity(tmp_path / "a"), store.identity(tmp_path / "b")}
    assert len(homes) == 2
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(t.user_attrs.get(store.DEFAULT, False) for t in record.get_trials()) == 1
    assert b"secret" not in pickle.dumps(StudySearch(spec, tmp_path, record))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/shared.db", None])
def test_of_searches_that_start_at_once_one_queues_the_first_points(
    storage: str | None, tmp_path: Path
) -> None:
    url = None if storage is None else storage.format(tmp_path)
    spec = LANDSCAPE.override({"search.storage": url})
    points = space.points(spec)
    together = threading.Barrier(4, timeout=60)

    def start() -> None:
        together.wait()
        store.start_study(spec, tmp_path, points)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(start) for _ in range(4)]:
            done.result()
    assert len(store.load_study(spec, tmp_path).get_trials()) == len(points)


def test_points_are_queued_though_the_maker_of_the_study_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SECONDS_TO_QUEUE", 0.0)
    store.open_study(LANDSCAPE, tmp_path)
    points = space.points(LANDSCAPE)
    assert len(store.start_study(LANDSCAPE, tmp_path, points).get_trials()) == len(points)


def test_points_are_queued_though_their_maker_was_stopped_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SECONDS_TO_QUEUE", 0.0)
    points = space.grid(GRID)
    store.start_study(GRID, tmp_path, points[:3])
    record = store.start_study(GRID, tmp_path, points)
    assert [trial.system_attrs["fixed_params"] for trial in record.get_trials()] == points


@pytest.mark.slow
def test_a_grid_is_run_once_by_searches_that_share_it(tmp_path: Path) -> None:
    spec = GRID.override({"search.storage": f"sqlite:///{tmp_path}/shared.db"})
    together = threading.Barrier(3, timeout=60)

    def run(name: str) -> int:
        home = tmp_path / name
        home.mkdir()
        record = store.start_study(spec, home, driver._first(spec))
        searcher = StudySearch(spec, home, record)
        together.wait()
        count = 0
        while (config := searcher.suggest(str(count))) != StudySearch.FINISHED:
            searcher.on_trial_complete(str(count), result(config["model.depth"] / 10, 27))
            count += 1
        assert driver._left(spec, home, record) == 0
        return count

    with ThreadPoolExecutor(3) as threads:
        counts = list(threads.map(run, ["a", "b", "c"]))
    trials = study.trials(store.load_study(spec, tmp_path), spec)
    assert sum(counts) == len(trials) == 12
    assert [trial.number for trial in trials] == list(range(12))
    assert trials[0].params == space.defaults(spec)
    assert all(trial.complete for trial in trials)
    drawn = {tuple(sorted(trial.params.items())) for trial in trials}
    assert drawn == {tuple(sorted(point.items())) for point in space.grid(spec)}


@pytest.mark.slow
def test_of_searches_that_draw_at_once_each_gets_trials_of_its_own(tmp_path: Path) -> None:
    """SQLite does not lock rows: without more, several searches draw one trial of the queue."""
    url = f"sqlite:///{tmp_path}/shared.db"
    spec = LANDSCAPE.override({"search.storage": url, "search.algorithm": "random"})
    record = store.open_study(spec, tmp_path)
    for _ in range(12):
        record.enqueue_trial({"model.depth": 3})
    together = threading.Barrier(3, timeout=60)

    def draw(name: str) -> list[int]:
        home = tmp_path / name
        home.mkdir()
        searcher = StudySearch(spec, home, store.load_study(spec, home))
        together.wait()
        return [searcher.suggest(str(n))[NUMBER] for n in range(6)]

    with ThreadPoolExecutor(3) as threads:
        drawn = [number for numbers in threads.map(draw, "abc") for number in numbers]
    assert sorted(drawn) == list(range(18))


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "cmaes", "nsga2", "random"])
def test_every_algorithm_draws_valid_trials(algorithm: str, tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.algorithm": algorithm, "search.trials": 8})
    trials = drive(spec, tmp_path, landscape, budget=120)
    assert len(trials) >= 5
    for trial in trials:
        space.apply(spec, trial.params)


def test_the_journal_opens_with_optuna_alone(tmp_path: Path) -> None:
    trials = drive(LANDSCAPE, tmp_path, landscape, budget=100)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / store.JOURNAL))
    )
    loaded = optuna.load_study(study_name=None, storage=storage)
    assert len(loaded.trials) == len(trials)
    assert loaded.best_value == study.ranking(trials)[0].certified


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_certified_and_clean_accuracy_are_searched_together(algorithm: str, tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.pareto": True, "search.algorithm": algorithm})
    trials = drive(spec, tmp_path, landscape, budget=300)
    record = store.load_study(spec, tmp_path)
    complete = [trial for trial in trials if trial.complete]
    assert len(complete) > 3
    assert any(trial.state == "pruned" for trial in trials)
    assert {t.number for t in record.best_trials} >= {t.number for t in study.pareto(trials)}
    assert importance.importances(record, trials, spec)


def test_the_study_of_a_recipe_has_a_name_of_its_own() -> None:
    name = store.study_name(LANDSCAPE)
    assert name == store.study_name(LANDSCAPE.override({"search.trials": 99, "run.seed": 3}))
    assert name == store.study_name(LANDSCAPE.override({"data.directory": "/elsewhere"}))
    assert name != store.study_name(LANDSCAPE.override({"model.width": 7}))
    assert name != store.study_name(LANDSCAPE.override({"search.radius": 0.4}))
    assert name != store.study_name(LANDSCAPE.override({"search.radius": [0.4, 0.5]}))
    assert name != store.study_name(LANDSCAPE.override({"search.rung_rows": 10}))
