"""Importances of the parameters, as in optuna-dashboard, with confidence intervals.

PED-ANOVA compares, for each parameter, its values in the best tenth of the complete trials with its
values in all of them. With few trials the best tenth is one or two trials, whose values are chance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from raycrt.specs import Spec
from raycrt.tuning.analysis import landscape
from raycrt.tuning.analysis.agreement import TOO_FEW
from raycrt.tuning.analysis.study import TrialRecord

EVALUATOR = "PED-ANOVA"
ENOUGH = "enough trials"
# Optuna requires five trials in the best tenth, which takes 41 complete ones.
_IN_THE_BEST_TENTH = 5
FEWEST = 10 * (_IN_THE_BEST_TENTH - 1) + 1
# Two values of a parameter (two thirds of a range) need this many complete trials each.
FEWEST_EACH = 5
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A parameter's share of all importances, and its 95 % interval: percentiles of the shares in
    200 samples of as many trials, drawn with replacement. `interval` is None with fewer trials
    than `importances` requires for one."""

    share: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """`enough trials` or `too few trials to tell`."""
        return TOO_FEW if self.interval is None else ENOUGH


def importances(
    record: optuna.Study, records: list[TrialRecord], spec: Spec
) -> dict[str, Importance]:
    """The importance of each searched parameter for a high `certified`, the greatest first.

    There are enough trials to judge a parameter if 41 ran to the end, so that the best tenth has
    five, and two of its choices (or thirds of its range) have five of them each. Empty if all
    trials are equal. The parameters that `left_out` names are missing, and so is their part of the
    sum of 1.
    """
    complete = record.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.values[0] for trial in complete}) < 2:
        return {}
    paths = sorted({path for trial in complete for path in trial.params})
    shares = _shares(complete, record, paths)
    cells = landscape.marginals(records, spec)
    judged = [
        path
        for path in paths
        if len(complete) >= FEWEST
        and sum(cell["trials"] >= FEWEST_EACH for cell in cells.get(path, ())) > 1
    ]
    intervals = _intervals(complete, record, paths) if judged else {}
    omitted = left_out(records, spec)
    return {
        path: Importance(share=shares[path], interval=intervals[path] if path in judged else None)
        for path in sorted(paths, key=lambda path: -shares[path])
        if path not in omitted
    }


def left_out(records: list[TrialRecord], spec: Spec) -> dict[str, str]:
    """The reason for each searched parameter that has no importance: no complete trial has it, as
    it has no effect under their other values, or all that have it agree on its value."""
    complete = [trial for trial in records if trial.complete]
    found: dict[str, str] = {}
    for path in spec.search.space:
        values = [trial.params[path] for trial in complete if path in trial.params]
        if complete and not values:
            found[path] = f"drawn in none of {len(complete)} complete trials"
        elif len(set(values)) == 1:
            found[path] = f"{values[0]} in every complete trial that has it"
    return found


class _Sample(optuna.Study):
    """A study whose trials are a bootstrap sample."""

    drawn: list[FrozenTrial]

    def get_trials(self, *_: object, **__: object) -> list[FrozenTrial]:
        return self.drawn


def _shares(trials: list[FrozenTrial], record: optuna.Study, paths: list[str]) -> dict[str, float]:
    storage = optuna.storages.InMemoryStorage()
    name = optuna.create_study(storage=storage, directions=record.directions).study_name
    sample = _Sample(name, storage)
    sample.drawn = trials
    with warnings.catch_warnings():
        # Optuna warns that low targets count as good, and of parameters that few trials have.
        warnings.simplefilter("ignore")
        found = get_param_importances(
            sample,
            evaluator=PedAnovaImportanceEvaluator(),
            params=[path for path in paths if any(path in trial.params for trial in trials)],
            target=lambda trial: -trial.values[0],
        )
    return {path: float(found.get(path, 0.0)) for path in paths}


def _intervals(
    trials: list[FrozenTrial], record: optuna.Study, paths: list[str]
) -> dict[str, tuple[float, float]]:
    generator = np.random.default_rng(0)
    drawn = []
    for rows in generator.integers(len(trials), size=(_RESAMPLES, len(trials))):
        shares = _shares([trials[row] for row in rows], record, paths)
        drawn.append([shares[path] for path in paths])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return {path: (float(low[k]), float(high[k])) for k, path in enumerate(paths)}
