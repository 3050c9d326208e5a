"""The study: Optuna's record of every trial, the authoritative state of a search.

It is a journal in the output, or a database that several searches may share. Nothing that Ray
Tune stores beside it is needed to resume.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import warnings

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.event import listen

from raycrt.errors import InvalidInput, require
from raycrt.networks import checkpoint
from raycrt.specs import Spec
from raycrt.system.places.storage import Place, is_remote
from raycrt.tuning.trials import segments, space
from raycrt.tuning.trials.journal import Journal

JOURNAL, IDENTITY = "study.journal", "search-id"
# User attributes of a trial: the identity of the search that runs it (formerly its directory), the
# last measurement, the value at each rung (Optuna keeps none for several objectives), and the
# reason of a failure.
HOME, MEASURED, RUNGS, REASON = "home", "measured", "rungs", "reason"
DEFAULT = "default"
# Optuna's name for the parameters of a trial that was queued.
_QUEUED = "fixed_params"
_ATTEMPTS = 3
# How long a search that finds points missing waits for the study's creator to queue the next.
_SECONDS_TO_QUEUE = 10.0
# How long a transaction waits for those of other searches.
_SECONDS_TO_LOCK = 60.0
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def storage(spec: Spec, home: Place) -> BaseStorage:
    """The database of `search.storage`, or the journal in `home`."""
    if spec.search.storage is None:
        file = home / JOURNAL
        return JournalStorage(segments.opened(str(file)) if is_remote(file) else Journal(file))
    said = ""
    for _ in range(_ATTEMPTS):
        try:
            return _database(spec.search.storage)
        except ImportError as error:
            raise InvalidInput(
                f"search.storage needs a driver, but {error.__cause__ or error}; "
                "for PostgreSQL: pip install 'raycrt[postgresql]'"
            ) from None
        except Exception as error:
            said = " ".join(str(error).split())
            # Another search may be creating the tables at the moment.
            time.sleep(_SECONDS_TO_QUEUE / 20)
    raise InvalidInput(f"search.storage must be a database that opens: {said}")


def _database(url: str) -> RDBStorage:
    """The database at `url`, in which each trial is drawn by one search only.

    Optuna locks the row of a waiting trial while it reads it and marks it as running. SQLite has no
    row locks, so two searches could read before either marks. Here its transactions, which Python
    otherwise begins at their first change, begin at once and run one after the other.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return RDBStorage(url)
    by_hand = {"isolation_level": None, "timeout": _SECONDS_TO_LOCK}
    storage = RDBStorage(url, engine_kwargs={"connect_args": by_hand})
    listen(storage.engine, "begin", lambda line: line.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def state_folder(home: Place, number: int) -> Place:
    """Where a trial that has not ended keeps its training state; shared by driver and trials."""
    return home / "states" / f"{number:05d}"


def study_name(spec: Spec) -> str:
    """The name of the study, the same for searches whose trials can be compared.

    It depends on what is trained and searched. Values left at their defaults do not count, so that
    a later version with more keys finds the study again.
    """
    tree = spec.model_dump(mode="json", exclude_defaults=True)
    same = {part: tree.get(part, {}) for part in ("model", "train", "certify", "data", "search")}
    for place in ("directory", "download"):
        same["data"].pop(place, None)
    counted = ("space", "radius", "rows", "rungs", "rung_rows", "constraints", "pareto")
    same["search"] = {key: same["search"][key] for key in counted if key in same["search"]}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return f"raycrt-{spec.data.title}-{digest[:12]}"


def start_study(spec: Spec, home: Place, points: list[space.Params]) -> optuna.Study:
    """The study of `spec` with `points` queued, each once: the first of them is the default.

    Of several searches that start at the same time, one creates the study and queues the points;
    the others wait for it, and queue the missing points if it was stopped in between.
    """
    study, is_ours = _open(spec, home)
    missing = _missing(study, points)
    deadline = time.monotonic() + _SECONDS_TO_QUEUE
    while missing and not is_ours and time.monotonic() < deadline:
        time.sleep(0.1)
        before, missing = missing, _missing(study, points)
        if len(missing) < len(before):
            deadline = time.monotonic() + _SECONDS_TO_QUEUE
    for point in missing:
        study.enqueue_trial(point, user_attrs={DEFAULT: point == points[0]})
    return study


def _missing(study: optuna.Study, points: list[space.Params]) -> list[space.Params]:
    """Those of `points` that were never queued."""
    queued = [trial.system_attrs.get(_QUEUED) for trial in study.get_trials(deepcopy=False)]
    return [point for point in points if point not in queued]


def open_study(spec: Spec, home: Place) -> optuna.Study:
    """The study of `spec`, created if missing."""
    return _open(spec, home)[0]


def _open(spec: Spec, home: Place) -> tuple[optuna.Study, bool]:
    """The study, and whether this call created it: a storage accepts each name once."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [StudyDirection.MAXIMIZE] * len(objectives(spec))
    name, kept = study_name(spec), storage(spec, home)
    try:
        study = optuna.create_study(study_name=name, storage=kept, directions=directions)
        return study, True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=kept)
    require(
        study.directions == directions,
        "the stored study maximises the same number of objectives",
        study=study.study_name,
    )
    return study, False


def objectives(spec: Spec) -> tuple[str, ...]:
    """The objectives that Optuna maximises: certified accuracy alone, or with clean accuracy."""
    return ("certified", "clean") if spec.search.pareto else ("certified",)


def load_study(spec: Spec, home: Place) -> optuna.Study:
    """The study of `spec`; `InvalidInput` where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if spec.search.storage is None and not (home / JOURNAL).exists():
        raise InvalidInput(f"a search must hold {JOURNAL}, but {home} does not")
    try:
        return optuna.load_study(study_name=study_name(spec), storage=storage(spec, home))
    except KeyError:
        raise InvalidInput(f"the study of {home} must exist, but its storage has none") from None
    except OSError as error:
        raise InvalidInput(f"the study of {home} must be readable: {error}") from None


def own(study: optuna.Study, home: Place, *states: TrialState) -> list[FrozenTrial]:
    """The trials that the search in `home` started and that are in one of `states`."""
    marks = (identity(home), str(home.resolve()))
    trials = study.get_trials(deepcopy=False, states=states)
    return [trial for trial in trials if trial.user_attrs.get(HOME) in marks]


def identity(home: Place) -> str:
    """The mark of the trials of the search in `home`, which stays when `home` is moved."""
    file = home / IDENTITY
    if not file.is_file():
        checkpoint.write_atomically(file, uuid.uuid4().hex.encode())
    return file.read_text()


def sampler(spec: Spec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that draws trial `number`.

    It is created anew for each trial from seed and number, so that a draw is a function of the
    seed, the number and the finished trials: an interrupted search continues as it would have.
    """
    seed = (spec.run.seed * 1_000_003 + number) % 2**32
    startup = max(4, spec.search.trials // 4)
    samplers = optuna.samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match spec.search.algorithm:
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=startup)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed)
            case "random" | "grid":
                return samplers.RandomSampler(seed=seed)
            case "tpe":
                return samplers.TPESampler(
                    seed=seed,
                    n_startup_trials=startup,
                    multivariate=True,
                    group=space.conditional(spec),
                )
