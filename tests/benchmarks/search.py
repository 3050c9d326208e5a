"""`make bench`: what a search costs beyond the bare training of its trials, within one run.

    python -m tests.benchmarks.search [--out FILE] [--rounds N] [--trials N] [--concurrent N]
                                      [--epochs N]

Each round searches the recipe `digits`, as `raycrt search` does, and trains and measures the same
trials without Ray: as many processes at a time, as many threads each, at the same priority. Every
other round begins with the bare trainings, so that a machine that slows down favours neither.

`overhead` is the time of a search, from the call to the winner, over that of the bare trainings in
processes that have trained already; once without and once with the start of Ray. A later trial's
`besides_training` is all the time since its slot was freed but that of its training.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console

from raycrt import data, recipes
from raycrt.distributed.session import session
from raycrt.errors import require
from raycrt.specs import DataSpec, Spec
from raycrt.tuning.search import driver
from raycrt.tuning.trials import space, store
from raycrt.tuning.trials.trial import evaluate
from tests.benchmarks import write

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_START = 600.0


class Watch(threading.Thread):
    """The peak of the resident memory of this process's trials, and their niceness."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.niceness, self._ended = 0.0, set[int](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            for child in psutil.Process().children(recursive=True):
                try:
                    if "ImplicitFunc" in " ".join(child.cmdline()):
                        self.peak = max(self.peak, peak_memory(child.pid))
                        self.niceness.add(child.nice())
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue

    def end(self) -> None:
        self._ended.set()
        self.join()


def peak_memory(pid: int | str = "self") -> float:
    """The most resident memory that a process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def spec_of(trials: int, concurrent: int, epochs: int) -> Spec:
    recipe = recipes.load("digits")
    # Rates at which no training diverges: every trial has to be trained twice.
    rate = {"train.learning_rate": {"low": 0.0005, "high": 0.03, "log": True}}
    return recipe.override(
        {
            "search.space": {**recipe.search.model_dump()["space"], **rate},
            "train.epochs": epochs,
            "search.rungs": [rung for rung in recipe.search.rungs if rung < epochs],
            "search.trials": trials,
            "search.concurrent": concurrent,
            "search.algorithm": "random",
            "search.scheduler": "none",
            "search.finalists": 0,
        }
    )


def searched(spec: Spec, home: Path) -> tuple[dict[str, Any], list[space.Params]]:
    """A search from its start: its times, and the parameters of its trials."""
    began = time.time()
    with session():
        ray_started = time.time()
        watch = Watch()
        watch.start()
        driver.run(spec, home, console=Console(stderr=True))
        ended = time.time()
        watch.end()
    trials = store.load_study(spec, home).get_trials()
    complete = [t for t in trials if t.state.name == "COMPLETE" and t.datetime_complete]
    require(len(complete) == len(trials), "every trial runs to its end", complete=len(complete))
    slots = spec.search.concurrent
    starts = [trial.datetime_start.timestamp() for trial in complete]
    ends = [trial.datetime_complete.timestamp() for trial in complete]
    spent = [trial.user_attrs[store.MEASURED]["seconds"] for trial in complete]
    freed = starts[:slots] + sorted(ends)[: len(ends) - slots]
    besides = [end - s - free for end, s, free in zip(ends, spent, freed, strict=True)]
    times = {
        "start_of_ray": ray_started - began,
        "seconds": ended - ray_started,
        "training": sum(spent),
        "first": besides[:slots],
        "later": besides[slots:],
        "memory": watch.peak,
        "niceness": sorted(watch.niceness),
    }
    return times, [trial.params for trial in complete]


def bare(spec: Spec, params: list[space.Params]) -> dict[str, Any]:
    """The same trials without Ray, in processes that are warm when the clock starts."""
    slots, spawn = spec.search.concurrent, multiprocessing.get_context("spawn")
    ready = spawn.Barrier(slots + 1, timeout=_SECONDS_TO_START)
    with ProcessPoolExecutor(slots, spawn, _prepare, (ready, spec)) as pool:
        warm = [pool.submit(os.getpid) for _ in range(slots)]
        ready.wait()
        [future.result() for future in warm]
        began = time.perf_counter()
        trials = [space.apply(spec, values) for values in params]
        found = list(pool.map(_bare_trial, trials))
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "training": sum(spent for spent, _ in found),
        "memory": max(peak for _, peak in found),
    }


def _prepare(ready: Any, spec: Spec) -> None:
    """Load everything, and train an epoch: a first training imports and compiles."""
    torch.set_num_threads(1)
    short = spec.override({"train.epochs": 1, "search.rungs": ()})
    evaluate(short, _dataset(spec.data.model_dump_json()))
    ready.wait()


def _bare_trial(spec: Spec) -> tuple[float, float]:
    found = evaluate(spec, _dataset(spec.data.model_dump_json()))
    return found.seconds, peak_memory()


@lru_cache(maxsize=1)
def _dataset(spec: str) -> data.Dataset:
    return data.load(DataSpec.model_validate_json(spec))


def measured(spec: Spec, rounds: int, home: Path) -> dict[str, Any]:
    """All figures. The trials of each round are the same: random draws of one seed."""
    searches: list[dict[str, Any]] = []
    bares: list[dict[str, Any]] = []
    params: list[space.Params] = []
    for number in range(rounds):
        if number % 2:
            bares.append(bare(spec, params))
        found, params = searched(spec, home / str(number))
        searches.append(found)
        if number % 2 == 0:
            bares.append(bare(spec, params))
    pairs = list(zip(searches, bares, strict=True))
    later = [seconds for found in searches for seconds in found["later"]]
    return {
        "trials": spec.search.trials,
        "concurrent": spec.search.concurrent,
        "niceness_of_trials": sorted({n for found in searches for n in found["niceness"]}),
        "overhead": median(s["seconds"] / b["seconds"] - 1 for s, b in pairs),
        "overhead_with_start_of_ray": median(
            (s["start_of_ray"] + s["seconds"]) / b["seconds"] - 1 for s, b in pairs
        ),
        "training_slower_by": median(s["training"] / b["training"] - 1 for s, b in pairs),
        "besides_training": {
            "first": median(seconds for found in searches for seconds in found["first"]),
            "later": median(later),
            "later_at_most": max(later),
        },
        "peak_memory_of_a_process_mib": {
            "trial": max(found["memory"] for found in searches),
            "bare": max(found["memory"] for found in bares),
        },
        "rounds": [
            {
                "start_of_ray": s["start_of_ray"],
                "search": s["seconds"],
                "bare": b["seconds"],
                "bare_of_a_trial": b["training"] / spec.search.trials,
            }
            for s, b in pairs
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/search.json"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=recipes.load("digits").train.epochs)
    options = parser.parse_args()
    spec = spec_of(options.trials, options.concurrent, options.epochs)
    # What Ray sets for a worker of one CPU; the bare processes inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as home:
        found = measured(spec, options.rounds, Path(home))
    results = {"cores": os.cpu_count(), "torch": torch.__version__, **found}
    write(results, options.out)


if __name__ == "__main__":
    main()
