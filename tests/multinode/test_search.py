"""Hosts die and join while a search runs: its trials are those of an undisturbed search."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from raycrt.networks.checkpoint import STATE
from tests.cluster.conftest import Run
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.deaths import survived
from tests.multinode.hosts import awaited

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]

TRIALS = 2
# The trials of a random search that stops none are the same in whichever order they end.
SETTINGS = {
    "model.width": 16,
    "data.limit": 300,
    "certify.steps": 10,
    "search.algorithm": "random",
    "search.scheduler": "none",
    "search.rows": 50,
    "search.finalists": 0,
}


def options(**more: object) -> list[str]:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def trials(home: Path) -> list[dict[str, str]]:
    """The trials of a search as it lists them, without the time that they took."""
    rows = list(csv.DictReader((home / "search" / "trials.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# A trial with one worker dies after a rung; one with two dies while they start, at which time
# nobody but the dead knows what is reserved for them.
@pytest.mark.parametrize(("workers", "begun"), [(1, STATE), (2, "ray")])
def test_a_search_outlives_a_host(
    cluster: Cluster, laptop: Run, tmp_path: Path, say: Say, workers: int, begun: str
) -> None:
    there, here = cluster.shared / f"search-{workers}", tmp_path / "laptop"
    asked = options(
        train__epochs=60, search__rungs=[20, 40], search__trials=TRIALS, search__workers=workers
    )
    ended = survived(
        cluster,
        *("search", "--out", str(there), *asked),
        actor="ImplicitFunc",
        begun=lambda: any(there.glob(f"search/states/*/{begun}")),
        replaced=True,
    )
    assert ended.code == 0, ended.said
    say(f"ended {ended.seconds:.0f} s after the death")

    local = laptop("raycrt", "search", "--out", str(here), *asked)
    assert local.returncode == 0, local.stdout + local.stderr
    assert len(trials(there)) == TRIALS
    assert trials(there) == trials(here)


def test_a_host_that_joins_takes_part_in_a_search(cluster: Cluster, say: Say) -> None:
    cluster.up("one")
    there, log = cluster.shared / "joined", cluster.shared / "joined.log"
    asked = options(train__epochs=1600, search__rungs=[20, 40], search__trials=5)
    words = (sys.executable, "-m", "raycrt", "search", "--out", str(there), *asked)
    with cluster.head.running(*words, log=log) as command:
        awaited("a rung", lambda: any(there.glob(f"search/states/*/{STATE}")))
        cluster.start("two")

        def joined() -> bool:
            assert command.poll() is None, log.read_text()
            return "two" in cluster.having("ImplicitFunc", "ALIVE")

        seconds = awaited("its trial", joined)
        awaited("the end of the search", lambda: command.poll() is not None, 240)
    assert command.returncode == 0, log.read_text()
    say(f"{seconds:.0f} s from a host's start to its first trial")
    assert len(trials(there)) == 5
    assert cluster.trying(there / "search") == {"one", "two"}
    assert {trial["state"] for trial in trials(there)} == {"complete"}
