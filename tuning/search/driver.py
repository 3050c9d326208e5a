"""The search: Ray Tune runs the trials, Optuna samples them, ASHA stops the weakest early.

Everything ends up in one directory:

    spec.yaml      what was searched             best.yaml   the winner, a recipe
    study.journal  Optuna's record of the trials trials.csv  the same as a table
    finalists.csv  the finalists, seed by seed   tune/       Tune's logs, TensorBoard's included
                                                (or below `search.directory`, a URI)
    states/        training states of trials that have not ended
    search-id      marks the trials of this search in a study that several share
    driver         the process that runs the search, which holds a lock on the directory
"""

from __future__ import annotations

from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from pyarrow.fs import FileSelector, FileSystem
from ray import tune
from ray.tune import Callback
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from raycrt import data
from raycrt.distributed.session import dashboard, session
from raycrt.distributed.training import train
from raycrt.errors import InvalidInput, require
from raycrt.foreign import factory
from raycrt.networks import checkpoint
from raycrt.specs import Spec, identity
from raycrt.system import trackers
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place, for_arrow, is_remote
from raycrt.tuning.analysis import study
from raycrt.tuning.search import finals, progress
from raycrt.tuning.search.board import Board
from raycrt.tuning.search.searcher import Deaths, Halving, Median, StudySearch
from raycrt.tuning.trials import process, resources, space, store

TUNE = "tune"
# How often a trial is restarted whose process dies (not one whose training fails).
_DEATHS = 2

# Tune would give these of the driver's environment to trials in a way that Ray writes to its logs.
ENV_VARS_TO_PROPAGATE.difference_update(
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
)

# The keys that identify a search. Its length, location and resources may change.
_SEARCHED = ("space", "radius", "rows", "rungs", "rung_rows", "constraints", "pareto")
_DRAWN = ("algorithm", "scheduler", "reduction", "storage")
IDENTITY = (
    *("model", "train", "certify", *identity.DATA, "data.validation", "run.seed"),
    *(f"search.{key}" for key in _SEARCHED + _DRAWN),
)


class SearchFailed(RuntimeError):
    """Too many trials failed, or all of them; the message says how the last one did."""


def run(spec: Spec, home: Place, *, resume: bool = False, console: Console | None = None) -> Spec:
    """Search `spec.search.space` and return the winner as a full spec, also written as `best.yaml`.

    The first trial is the recipe itself, so the winner is never below it on the validation rows. A
    search that was stopped in any way continues with `resume`: finished trials count, and trials
    that were running continue from their last rung. With `search.concurrent=1` the same seed gives
    the same trials. `InvalidInput` if another process drives the search in `home`.
    """
    console = console or Console()
    spec = factory.resolved(data.described(spec))
    data.require_training_rows(spec.data)
    space.check(spec)
    _check_directory(spec)
    if spec.search.workers > 1:
        train.folder_of_rows(spec, home)
    loggers, first = _loggers(spec, home), _first(spec)
    with outputs.held(home):
        _claim(spec, home, resume)
        record = store.start_study(spec, home, first)
        with session():
            resources.check(spec)
            total = len(first) if spec.search.algorithm == "grid" else spec.search.trials
            _run_trials(spec, home, record, loggers, total, console)
            trials = study.trials(record, spec)
            study.write_csv(home / study.TRIALS, trials, spec)
            _check_outcome(spec, record, home)
            progress.warn(trials, console)
            winner = finals.choose(spec, home, trials, console)
        best = space.apply(spec, winner.params)
        checkpoint.write_atomically(home / study.BEST, best.to_yaml().encode())
    return best


def _claim(spec: Spec, home: Place, resume: bool) -> None:
    """Make `home` the directory of this search, or check that it already is."""
    identity.refuse_another_than_stored(home, "a search", spec, IDENTITY)
    if (home / "spec.yaml").is_file() and not resume:
        raise InvalidInput(f"{home} holds a search already; resume it with --resume")
    spec.save(home)


def _first(spec: Spec) -> list[space.Params]:
    """The queued points: those that are tried first or, for a grid, all of it."""
    first = space.points(spec)
    if spec.search.algorithm != "grid":
        return first
    combinations = space.grid(spec)
    require(
        len(combinations) <= spec.search.trials,
        "search.trials covers the grid",
        trials=spec.search.trials,
        grid=len(combinations),
    )
    return first + [point for point in combinations if point not in first]


def _loggers(spec: Spec, home: Place) -> list[Callback]:
    """What trials are logged to."""
    trackers.require_installed(mlflow=spec.run.mlflow, wandb=spec.run.wandb)
    name, found = store.study_name(spec), list[Callback]([Board(spec.train.epochs)])
    # Both take most of a second to import.
    if spec.run.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        found.append(MLflowLoggerCallback(tracking_uri=spec.run.mlflow, experiment_name=name))
    if spec.run.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        folder = None if is_remote(home) else str(home.absolute())
        found.append(WandbLoggerCallback(project=spec.run.wandb, group=name, dir=folder))
    return found


def _run_trials(
    spec: Spec,
    home: Place,
    record: optuna.Study,
    loggers: list[Callback],
    total: int,
    console: Console,
) -> None:
    """Run the remaining ones of the `total` trials of the search."""
    left, failed = _left(spec, home, record), store.own(record, home, TrialState.FAIL)
    if left <= 0 or len(failed) > spec.search.failures:
        return
    place, files, part = _place(spec, home)
    deaths = Deaths()
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                process.run,
                tree=data.located(spec).model_dump(mode="json"),
                home=str(home.resolve()),
            ),
            tune.PlacementGroupFactory([resources.for_process(spec)]),
        ),
        tune_config=tune.TuneConfig(
            num_samples=left,
            search_alg=StudySearch(spec, home, record, partial(resources.trials, spec), deaths),
            scheduler=_scheduler(spec, record),
            # The searcher holds back trials for which there is no room; Tune starts all others.
            max_concurrent_trials=left,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=part,
            storage_path=place,
            storage_filesystem=files,
            failure_config=tune.FailureConfig(max_failures=_DEATHS),
            callbacks=[deaths, *loggers],
            verbose=0,
        ),
    )
    logs = place if files is None else str(home / TUNE)
    progress.announce(spec, home, logs, dashboard(), console)
    with progress.watching(partial(store.open_study, spec, home), spec, home, total, console):
        tuner.fit()


def _left(spec: Spec, home: Place, record: optuna.Study) -> int:
    """How many trials this search still has to run; all searches of a grid share its trials."""
    if spec.search.algorithm != "grid":
        return spec.search.trials - len(store.own(record, home, *store.FINISHED))
    waiting = record.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return len(waiting) + len(store.own(record, home, TrialState.RUNNING))


def _place(spec: Spec, home: Place) -> tuple[str, FileSystem | None, str]:
    """The location of Tune's logs, on a file system if it names none, and the subdirectory for this
    start of the search."""
    place, files = for_arrow(home / TUNE)
    if spec.search.directory is not None:
        place, files = f"{spec.search.directory.rstrip('/')}/{store.identity(home)}", None
    looked, path = (files, place) if files else FileSystem.from_uri(place)
    parts = looked.get_file_info(FileSelector(path, allow_not_found=True))
    return place, files, f"part-{len(parts)}"


def _check_directory(spec: Spec) -> None:
    if spec.search.directory is None:
        return
    try:
        FileSystem.from_uri(spec.search.directory)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"search.directory must be a URI that PyArrow opens: {said}") from None


def _scheduler(spec: Spec, record: optuna.Study) -> TrialScheduler | None:
    if spec.search.scheduler == "asha" and spec.search.rungs:
        return Halving(spec, record)
    if spec.search.scheduler == "median" and spec.search.rungs:
        return Median(spec, record)
    return None


def _name(trial: Any) -> str:
    return f"trial-{trial.config[process.NUMBER]:05d}"


def _check_outcome(spec: Spec, record: optuna.Study, home: Place) -> None:
    failed = store.own(record, home, TrialState.FAIL)
    complete = record.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(failed) > spec.search.failures or not complete:
        last = failed[-1].user_attrs.get(store.REASON, "unknown") if failed else "none"
        raise SearchFailed(
            f"{len(failed)} trials failed (search.failures={spec.search.failures}), "
            f"{len(complete)} ran to the end; the last failure: {last}"
        )
