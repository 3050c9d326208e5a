"""The whole pipeline, small, and how it is submitted."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.multinode.cluster import JOBS

# The trials of a random search without rungs are the same in whichever order they end.
SETTINGS = {
    "model.width": 16,
    "train.epochs": 3,
    "data.limit": 300,
    "certify.steps": 10,
    "certify.batch_size": 32,
    "search.algorithm": "random",
    "search.trials": 4,
    "search.rungs": [],
    "search.rows": 50,
    "search.finalists": 1,
    "search.seeds": 1,
    "run.workers": 2,
}
SUBMIT = (sys.executable, "-m", "raycrt.cluster.submit", "--address", JOBS)
PIPELINE = ("python", "-m", "raycrt.cluster.pipeline")


def options(**more: object) -> Iterator[str]:
    """The words that set `SETTINGS` and `more`, with "__" in place of a dot."""
    asked = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    for key, value in asked.items():
        yield from ("--set", f"{key}={value}")
