"""Tune's searcher and schedulers on an Optuna study that outlives the process.

`OptunaSearch` is extended in three ways: a trial that an earlier process left running is resumed
under its own number; a trial that ASHA stopped is stored as pruned with the value of its last rung,
not as complete; a trial that failed is stored as failed with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raycrt.specs import Spec
from raycrt.system.places import storage
from raycrt.system.places.storage import Place
from raycrt.tuning.trials import space, store
from raycrt.tuning.trials.process import NUMBER
from raycrt.tuning.trials.trial import AT, METRIC, Measurement

MODE = "max"
_MEASURED = {field.name for field in fields(Measurement)}


class Deaths(Callback):
    """Records why the process of a trial died; Tune reports to its searcher only that it did."""

    def __init__(self) -> None:
        self._started: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started[trial.trial_id] = trial

    def reason(self, trial_id: str) -> str:
        """The first sentence of the last error that Tune wrote, which says if memory ran out."""
        trial = self._started.get(trial_id)
        if trial is None or trial.error_file is None:
            return "its process died before it started"
        said = Path(trial.error_file).read_text().split("Failure # ")[-1].splitlines()[1]
        return f"its process died: {said.split('. ')[0].rstrip('.')}; see error.txt beside its logs"


class StudySearch(OptunaSearch):
    """Draws trials from `study` for Tune and stores their results, for the search in `home`.

    No trial is drawn while as many are running as the current `room` allows.
    """

    def __init__(
        self,
        spec: Spec,
        home: Place,
        study: optuna.Study,
        room: Callable[[], float] = lambda: math.inf,
        deaths: Deaths | None = None,
    ) -> None:
        self._room, self._deaths = room, deaths or Deaths()
        self._home, self._spec, self._study = home, spec, study
        self._orphans = store.own(study, home, TrialState.RUNNING)
        self._failures = len(store.own(study, home, TrialState.FAIL))
        super().__init__(
            space=lambda trial: space.suggest(spec, trial),
            metric=METRIC,
            mode=MODE,
            study_name=study.study_name,
            storage=store.storage(spec, home),
        )

    def suggest(self, trial_id: str) -> Any:
        """The parameters of the next trial, by path, and its number in the study."""
        if self._failures > self._spec.search.failures:
            return Searcher.FINISHED
        if len(self._ot_trials) >= self._room():
            return None
        if self._orphans:
            trial = Trial(self._study, self._orphans.pop(0)._trial_id)
        else:
            drawn = self._draw()
            if drawn is None:
                return Searcher.FINISHED
            trial = drawn
            trial.set_user_attr(store.HOME, store.identity(self._home))
        self._ot_trials[trial_id] = trial
        params = space.suggest(self._spec, trial)
        return {**params, NUMBER: trial.number}

    def _draw(self) -> Trial | None:
        """The next queued trial, or else one that the sampler draws. A grid is queued as a whole
        from the start; None once the searches that share it have drawn all of it."""
        if self._spec.search.algorithm == "grid":
            queued = self._study._pop_waiting_trial_id()
            return None if queued is None else Trial(self._study, queued)
        trials = self._study.get_trials(deepcopy=False)
        drawn = [trial for trial in trials if trial.state != TrialState.WAITING]
        self._study.sampler = store.sampler(self._spec, len(drawn))
        return self._study.ask()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._note(self._ot_trials[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self._ot_trials.pop(trial_id)
        result = result or {}
        self._note(trial, result)
        if error or store.REASON in result:
            self._failures += 1
            reason = result.get(store.REASON) or self._deaths.reason(trial_id)
            trial.set_user_attr(store.REASON, reason)
            self._study.tell(trial, state=TrialState.FAIL)
        elif result.get("epoch") == self._spec.train.epochs:
            for name, violation in violations(self._spec, result).items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, [result[name] for name in store.objectives(self._spec)])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        # Last: until the study has the trial as ended, it can be resumed from this state.
        storage.remove(store.state_folder(self._home, trial.number))

    def _note(self, trial: Trial, result: dict[str, Any]) -> None:
        """Store a measurement once: Tune reports the last result of a trial twice, and workers
        that were restarted repeat what came after their last checkpoint."""
        epoch = result.get("epoch")
        before = trial.user_attrs.get(store.MEASURED, {})
        if epoch is None or store.REASON in result or before.get("epoch", 0) >= epoch:
            return
        measured = {n: v for n, v in result.items() if n in _MEASURED or n.startswith(AT)}
        trial.set_user_attr(store.MEASURED, measured)
        rungs = {**trial.user_attrs.get(store.RUNGS, {}), str(epoch): result[METRIC]}
        trial.set_user_attr(store.RUNGS, rungs)
        if not self._spec.search.pareto:
            trial.report(result[METRIC], epoch)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is stored already, and its database's password is not copied."""
        Path(checkpoint_path).touch()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its searcher for a restore that this project does not use.
        return (OptunaSearch, ())


class AtRungs(TrialScheduler):
    """Compares trials at rungs only, since their ends are measured differently.

    A trial stops or continues; none is paused for another. Trial 0, the default, runs to its end,
    as the winner is compared with it.
    """

    rungs: tuple[int, ...]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["epoch"] not in self.rungs or store.REASON in result:
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(tune_controller, trial, result)
        stops = action == TrialScheduler.STOP and trial.config[NUMBER] != 0
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ignored: ASHA would take the end of a trial for its next rung, and the median rule would
        count the last rung of a stopped trial twice."""


class Halving(AtRungs, ASHAScheduler):
    """Tune's ASHA with rungs at the given epochs, filled with measurements of earlier processes."""

    def __init__(self, spec: Spec, study: optuna.Study) -> None:
        self.rungs = rungs = spec.search.rungs
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode=MODE,
            grace_period=rungs[0],
            max_t=spec.train.epochs + 1,
            reduction_factor=spec.search.reduction,
        )
        earlier = _earlier(study)
        self._brackets[0]._rungs = [
            (
                rung,
                {
                    f"study-{number}": values[rung]
                    for number, values in earlier.items()
                    if rung in values
                },
            )
            for rung in reversed(rungs)
        ]


class Median(AtRungs, MedianStoppingRule):
    """Tune's median rule: stops a trial whose best is below the median of the others' means.

    Measurements of earlier processes are included. Those of a trial that is resumed count as its
    own, not as another trial's.
    """

    def __init__(self, spec: Spec, study: optuna.Study) -> None:
        self.rungs = spec.search.rungs
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode=MODE,
            grace_period=self.rungs[0],
        )
        for number, values in _earlier(study).items():
            past = [{"epoch": rung, METRIC: values[rung]} for rung in self.rungs if rung in values]
            if past:
                self._results[number] = past

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        past = self._results.pop(trial.config[NUMBER], [])
        if past:
            self._results[trial] = past

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if any(past["epoch"] >= result["epoch"] for past in self._results.get(trial, [])):
            # Workers that were started again repeat what came after their last checkpoint.
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.CONTINUE:
            # Tune's rule fails if asked again about a trial that it would have stopped.
            self._stopped_trials.discard(trial)
        return action


def _earlier(study: optuna.Study) -> dict[int, dict[int, float]]:
    """The stored measurements of each trial by epoch, by the number of the trial."""
    return {
        trial.number: {int(e): value for e, value in trial.user_attrs[store.RUNGS].items()}
        for trial in study.get_trials(deepcopy=False)
        if store.RUNGS in trial.user_attrs
    }


def violations(spec: Spec, measured: dict[str, Any]) -> dict[str, float]:
    """The violation of each of `search.constraints`; it holds where the value is <= 0."""
    bounds = spec.search.constraints
    return {
        name: bound - measured[name] if name == "clean" else measured[name] - bound
        for name, bound in bounds.items()
    }
