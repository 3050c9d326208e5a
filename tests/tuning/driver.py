"""What Tune does with a searcher and a scheduler, one trial after the other, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from raycrt.specs import Spec, validate
from raycrt.tuning.analysis import study
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.search.searcher import Halving, StudySearch
from raycrt.tuning.trials import space, store

Value = Callable[[dict[str, Any], int], float]

LANDSCAPE = validate(
    {
        "train": {"epochs": 27, "gamma": 1e-3, "learning_rate": 1e-3},
        "search": {
            "trials": 30,
            "concurrent": 1,
            "rungs": [3, 9],
            "space": {
                "train.gamma": {"low": 1e-5, "high": 1.0, "log": True},
                "train.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
                "model.depth": {"low": 2, "high": 8},
                "model.activation": {"choices": ["softplus", "sigmoid", "tanh"]},
            },
        },
    }
)


def result(certified: float, epoch: int) -> dict[str, Any]:
    return {
        "certified": certified,
        "certified_at/0.5": certified,
        "clean": certified,
        "mean_radius": certified,
        "curvature": 1.0,
        "parameters": 10,
        "rows": 100,
        "epoch": epoch,
        "seconds": 0.0,
    }


def drive(
    spec: Spec, home: Path, value: Value, *, budget: int, die_at: tuple[int, int] | None = None
) -> list[TrialRecord]:
    """Run trials until `budget` epochs are spent; die in trial `die_at[0]` at epoch `die_at[1]`."""
    home.mkdir(parents=True, exist_ok=True)
    record = store.start_study(spec, home, space.points(spec))
    search = StudySearch(spec, home, record)
    halving = Halving(spec, record) if spec.search.scheduler == "asha" else None
    spent = sum(trial.epochs for trial in study.trials(record, spec) if trial.state != "running")
    started = 0
    while spent < budget:
        config = search.suggest(f"tune-{started}")
        trial = SimpleNamespace(trial_id=f"tune-{started}", config=config)
        started += 1
        if halving:
            halving.on_trial_add(None, trial)
        reports = (*spec.search.rungs, spec.train.epochs) if halving else (spec.train.epochs,)
        for epoch in reports:
            if die_at == (config["trial"], epoch):
                return study.trials(record, spec)
            found = result(value(config, epoch), epoch)
            action = halving.on_trial_result(None, trial, found) if halving else None
            if action == TrialScheduler.STOP or epoch == spec.train.epochs:
                search.on_trial_complete(trial.trial_id, found)
                spent += epoch
                break
            search.on_trial_result(trial.trial_id, found)
    return study.trials(record, spec)
