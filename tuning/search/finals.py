"""The finals: the best trials and the default, trained with several seeds, on all validation rows.

A search compares many configurations on few rows, so its best value is partly luck. The finals use
new seeds, and the default takes part, so that the winner is not below it on the validation rows.
"""

from __future__ import annotations

import csv
import io

import ray
import torch
from rich.console import Console

from raycrt import data
from raycrt.errors import require
from raycrt.evaluation.intervals import wilson
from raycrt.networks import checkpoint
from raycrt.specs import Spec, validate
from raycrt.system import progress
from raycrt.system.places.storage import Place, place, remove
from raycrt.training.loop import TrainingDiverged
from raycrt.tuning.analysis import study
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.trials import resources, space, workers
from raycrt.tuning.trials.trial import Measurement, evaluate, nothing_certified


def choose(spec: Spec, home: Place, records: list[TrialRecord], console: Console) -> TrialRecord:
    """The winner: highest mean `certified` over the seeds, or without finals the best trial."""
    ranked = study.ranking(records)
    require(
        bool(ranked), "a trial ran to the end and keeps search.constraints", trials=len(records)
    )
    if spec.search.finalists == 0:
        return ranked[0]
    default = [trial for trial in ranked if trial.number == 0]
    chosen = ranked[: spec.search.finalists]
    chosen += [trial for trial in default if trial not in chosen]
    asked = {(trial.number, seed) for trial in chosen for seed in seeds(spec)}
    named = ", ".join("0 (the recipe)" if t.number == 0 else str(t.number) for t in chosen)
    console.print(
        f"finals: trials {named}, each trained with {spec.search.seeds} new seeds and judged on "
        "all validation rows",
        highlight=False,
        soft_wrap=True,
    )
    with progress.shown("finals", len(asked), console) as report:
        rows = _train_all(spec, home, chosen, report)
    order = study.standings([row for row in rows if (row["number"], row["seed"]) in asked])
    for row in order:
        low, high = wilson(row["certified"], int(row["rows"]))
        console.print(
            f"finalist {row['number']}: certified {row['certified']:.1%} "
            f"(95 %: {100 * low:.1f} - {100 * high:.1f}), "
            f"clean {row['clean']:.1%} over {row['seeds']} seeds",
            highlight=False,
        )
    return next(trial for trial in chosen if trial.number == order[0]["number"])


def seeds(spec: Spec) -> range:
    """The seeds of the finals; `run.seed`, the seed of the trials, is left out, as their ranking
    already depends on it."""
    return range(spec.run.seed + 1, spec.run.seed + 1 + spec.search.seeds)


def _train_all(
    spec: Spec, home: Place, chosen: list[TrialRecord], report: progress.Report
) -> list[study.Row]:
    """Run the trainings missing in `finalists.csv`, as many at a time as fit, and `report` how many
    there are; return all rows."""
    file = home / study.FINALISTS
    rows = study.finalists(home)
    done = {(row["number"], row["seed"]) for row in rows}
    need = resources.for_process(spec)
    task = ray.remote(_train).options(
        num_cpus=need.pop("CPU", 0),
        num_gpus=need.pop("GPU", 0),
        memory=need.pop("memory", None),
        resources=need,
    )
    tree = data.located(spec).model_dump(mode="json")
    waiting = [(t, seed) for t in chosen for seed in seeds(spec) if (t.number, seed) not in done]
    ended = len(chosen) * len(seeds(spec)) - len(waiting)
    report(ended, "")
    at_a_time = resources.trials(spec)
    pending: dict[ray.ObjectRef, tuple[int, int]] = {}
    while waiting or pending:
        while waiting and len(pending) < at_a_time:
            trial, seed = waiting.pop(0)
            folder = str(home.resolve() / "states" / f"final-{trial.number:05d}-{seed}")
            pending[task.remote(tree, trial.params, seed, folder)] = trial.number, seed
        [ready], _ = ray.wait(list(pending), num_returns=1)
        number, seed = pending.pop(ready)
        measured = ray.get(ready).as_dict()
        named = {"number": number, "seed": seed, **measured}
        rows.append({name: named[name] for name in study.FINALIST_COLUMNS})
        rows.sort(key=lambda row: (row["number"], row["seed"]))
        _write(file, rows)
        ended += 1
        report(ended, f"trial {number}, seed {seed}: certified {named['certified']:.1%}")
    return rows


def _train(tree: dict[str, object], params: space.Params, seed: int, folder: str) -> Measurement:
    torch.set_num_threads(1)
    base = validate(tree)
    dataset = data.load(base.data)
    rows = len(dataset.validation)
    whole = {"search.rows": rows, "search.rung_rows": None, "search.rungs": (), "run.seed": seed}
    spec = space.apply(base, {**params, **whole})
    try:
        if spec.search.workers == 1:
            return evaluate(spec, dataset)
        measured = workers.evaluate(spec, place(folder))
        remove(place(folder))
        return measured
    except TrainingDiverged:
        return nothing_certified(spec, rows)


def _write(file: Place, rows: list[study.Row]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, study.FINALIST_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    checkpoint.write_atomically(file, text.getvalue().encode())
