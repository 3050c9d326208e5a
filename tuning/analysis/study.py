"""The results of a search: its trials as records and tables, and statistics of them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import mean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raycrt.errors import InvalidInput
from raycrt.evaluation.intervals import wilson
from raycrt.networks import checkpoint
from raycrt.specs import Spec
from raycrt.system.places.storage import Place, content
from raycrt.tuning.trials import store
from raycrt.tuning.trials.trial import AT

TRIALS, BEST, FINALISTS = "trials.csv", "best.yaml", "finalists.csv"

_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
STATES = tuple(_NAMES.values())


_JUDGED = ("certified", "clean", "mean_radius")
FINALIST_COLUMNS = ("number", "seed", *_JUDGED, "rows")
Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial and its last measurement, 0 where there is none.

    `certified_at` maps each radius of the objective to the share certified there, `rungs` maps each
    measured epoch to `certified`.
    """

    number: int
    state: str
    reason: str
    params: dict[str, Any]
    epochs: int
    certified: float
    clean: float
    mean_radius: float
    curvature: float
    parameters: int
    rows: int
    seconds: float
    feasible: bool
    certified_at: dict[float, float] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.state == "complete"

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `certified`."""
        return wilson(self.certified, self.rows)


def trials(record: optuna.Study, spec: Spec) -> list[TrialRecord]:
    """Every trial of the study that has been started, by number."""
    return [_record(trial, spec) for trial in record.get_trials() if _started(trial)]


def load(run: Place) -> tuple[Spec, list[TrialRecord], optuna.Study]:
    """The spec, trials and Optuna study of a search's directory, or of the run that holds it."""
    spec = Spec.load(home(run))
    record = store.load_study(spec, home(run))
    return spec, trials(record, spec), record


def home(run: Place) -> Place:
    """The search directory in the directory of a run; `run` itself if it is a search directory."""
    found = run / "search" if (run / "search").is_dir() else run
    if not (found / "spec.yaml").is_file():
        raise InvalidInput(f"a run must hold a search, but there is none in {run}")
    return found


def winner(run: Place) -> Spec:
    """The winner of a finished search as a full spec."""
    file = home(run) / BEST
    if not file.is_file():
        raise InvalidInput(f"a search must have finished to have a winner; {file} is missing")
    return Spec.load(file)


def ranking(records: list[TrialRecord]) -> list[TrialRecord]:
    """Trials that ran to the end and keep the constraints, best first; ties go to the earlier."""
    return sorted(_allowed(records), key=lambda t: (-t.certified, -t.mean_radius, t.number))


def pareto(records: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that may win and that no other trial matches or beats in both clean and certified
    accuracy."""
    front: list[TrialRecord] = []
    for trial in sorted(_allowed(records), key=lambda t: (-t.certified, -t.clean, t.number)):
        if not front or trial.clean > front[-1].clean:
            front.append(trial)
    return front


def history(records: list[TrialRecord]) -> list[tuple[TrialRecord, float]]:
    """Each complete trial, and the best `certified` of the complete trials up to it."""
    complete = [trial for trial in records if trial.complete]
    return list(zip(complete, accumulate((t.certified for t in complete), max), strict=True))


def saved_epochs(records: list[TrialRecord], spec: Spec) -> int:
    """Epochs that pruned trials did not run."""
    return sum(spec.train.epochs - t.epochs for t in records if t.state == "pruned")


def saved_seconds(records: list[TrialRecord], spec: Spec) -> float:
    """An estimate of the seconds for these epochs, at the pace of each pruned trial."""
    pruned = [t for t in records if t.state == "pruned" and t.epochs]
    return sum(t.seconds * (spec.train.epochs - t.epochs) / t.epochs for t in pruned)


def finalists(run: Place) -> list[Row]:
    """The measurements of the finals: a row for each finalist and seed."""
    file = home(run) / FINALISTS
    if not file.is_file():
        return []
    lines = content(file).decode().splitlines()
    return [
        {k: float(v) if k in _JUDGED else int(v) for k, v in row.items()}
        for row in csv.DictReader(lines)
    ]


def standings(rows: list[Row]) -> list[Row]:
    """Means over the seeds of each finalist, the best first; `rows` is that of one seed, as all
    seeds are measured on the same validation rows."""
    found: list[Row] = []
    for number in sorted({row["number"] for row in rows}):
        runs = [row for row in rows if row["number"] == number]
        means = {name: mean(run[name] for run in runs) for name in _JUDGED}
        found.append({"number": number, "seeds": len(runs), **means, "rows": runs[0]["rows"]})
    return sorted(found, key=lambda row: (-row["certified"], -row["mean_radius"], row["number"]))


def write_csv(file: Place, records: list[TrialRecord], spec: Spec) -> None:
    """Write a row for each trial: its parameters, how it ended, its last measurement."""
    paths = list(spec.search.space)
    head = ["number", *paths, "state", "reason", "epochs"]
    numbers = ["certified", "clean", "mean_radius", "curvature", "parameters", "rows", "seconds"]
    radii = spec.search.radii if len(spec.search.radii) > 1 else ()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*head, *numbers, *(f"{AT}{radius:g}" for radius in radii)])
    for trial in records:
        params = [trial.params.get(path, "") for path in paths]
        outcome = [trial.state, trial.reason, trial.epochs]
        measured = [getattr(trial, name) for name in numbers]
        stated = [trial.certified_at.get(radius, 0.0) for radius in radii]
        table.writerow([trial.number, *params, *outcome, *measured, *stated])
    checkpoint.write_atomically(file, text.getvalue().encode())


def _allowed(records: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that ran to the end and keep the constraints."""
    return [trial for trial in records if trial.complete and trial.feasible]


def _started(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING


def _record(trial: FrozenTrial, spec: Spec) -> TrialRecord:
    measured = trial.user_attrs.get(store.MEASURED, {})
    return TrialRecord(
        number=trial.number,
        state=_NAMES[trial.state],
        reason=trial.user_attrs.get(store.REASON, ""),
        params={path: trial.params[path] for path in spec.search.space if path in trial.params},
        epochs=int(measured.get("epoch", 0)),
        certified=float(measured.get("certified", 0.0)),
        clean=float(measured.get("clean", 0.0)),
        mean_radius=float(measured.get("mean_radius", 0.0)),
        curvature=float(measured.get("curvature", 0.0)),
        parameters=int(measured.get("parameters", 0)),
        rows=int(measured.get("rows", 0)),
        seconds=float(measured.get("seconds", 0.0)),
        feasible=all(value <= 0 for value in trial.constraints.values())
        if trial.constraints
        else True,
        certified_at={
            float(name.removeprefix(AT)): share
            for name, share in measured.items()
            if name.startswith(AT)
        },
        rungs={int(e): value for e, value in trial.user_attrs.get(store.RUNGS, {}).items()},
    )
