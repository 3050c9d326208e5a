"""`make bench`: what a search costs beyond the training of its trials, within one run.

    python -m tests.benchmarks.search [--out FILE] [--rounds N] [--trials N]

The recipe `digits` is searched one trial at a time, in rounds; after each round its trials are
trained and measured again in this process without Ray, so that other work on the machine slows both
alike. Reported: the ratio of the two times, from the second trial of each round on and with the
starts of one search; what a trial takes besides training; the most memory of a trial's process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from raycrt import data, recipes
from raycrt.distributed.session import session
from raycrt.spec import Spec
from tests.benchmarks import write
from tuning import search, space, store
from tuning.objective import evaluate

_SECONDS_BETWEEN_LOOKS = 0.2


class Memory(threading.Thread):
    """The peak of the resident memory of this process's trials, by looking at them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stop = 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(_SECONDS_BETWEEN_LOOKS):
            for child in psutil.Process().children(recursive=True):
                try:
                    if "ImplicitFunc" in " ".join(child.cmdline()):
                        self.peak = max(self.peak, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def spec_of(trials: int) -> Spec:
    return recipes.load("digits").override(
        {
            "search.trials": trials,
            "search.concurrent": 1,
            "search.algorithm": "random",
            "search.scheduler": "none",
            "search.finalists": 0,
        }
    )


def bare(spec: Spec, params: space.Params) -> float:
    """The seconds of a trial that is trained and measured here."""
    began = time.perf_counter()
    evaluate(space.apply(spec, params), data.load(spec.data))
    return time.perf_counter() - began


def measured(rounds: int, trials: int, home: Path) -> dict[str, Any]:
    """All figures, of `rounds` times `trials` trials."""
    torch.set_num_threads(1)
    memory = Memory()
    memory.start()
    began = time.time()
    first: list[float] = []
    later: list[float] = []
    times = {"search": 0.0, "bare": 0.0}
    with session():
        ray_seconds = time.time() - began
        for number in range(rounds):
            spec = spec_of(trials * (number + 1))
            began = time.time()
            search.run(spec, home, resume=True)
            fresh = store.load_study(spec, home).get_trials()[-trials:]
            ends = [began, *(trial.datetime_complete.timestamp() for trial in fresh)]
            spent = [trial.user_attrs[store.MEASURED]["seconds"] for trial in fresh]
            besides = [
                end - start - s for (start, end), s in zip(pairwise(ends), spent, strict=True)
            ]
            first.append(besides[0])
            later += besides[1:]
            times["search"] += ends[-1] - ends[1]
            times["bare"] += sum(bare(spec, trial.params) for trial in fresh[1:])
    memory.stop.set()
    memory.join()
    overhead = times["search"] / times["bare"] - 1
    one = times["bare"] / len(later)
    starts = ray_seconds + statistics.median(first)
    return {
        "trials": len(later),
        "bare_seconds_of_a_trial": one,
        "overhead_after_first": overhead,
        "overhead_of_20_trials_with_starts": overhead + starts / (20 * one),
        "start_of_ray": ray_seconds,
        "besides_training": {
            "first": statistics.median(first),
            "later": statistics.median(later),
            "later_at_most": max(later),
        },
        "peak_memory_of_a_trial_mib": memory.peak / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/search.json"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()
    # Ray gives its workers niceness 15, which would slow them alone where other work runs.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    with tempfile.TemporaryDirectory() as home:
        found = measured(options.rounds, options.trials, Path(home))
    results = {"cores": os.cpu_count(), "torch": torch.__version__, **found}
    write(results, options.out)


if __name__ == "__main__":
    main()
