"""`make bench`: certification on Ray against a bare loop, within one run.

    python -m tests.benchmarks.scale [--out FILE] [--rows N] [--data DIRECTORY]

Random inputs of 784 features in a file, a random 2x256 network, closed forms only: the cheapest
rows, of which reading, writing and Ray are the largest share. One thread for each process. The loop
reads, certifies and writes one shard after the other, as an actor does. Rates of actors count from
the first shard that is written: the start of Ray and of actors is left out. CPU time is that of the
driver and of the actors, from their start.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from raycrt import Certifier, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.certification.table import shards, storage
from raycrt.certification.table.shards import ShardCertifier
from raycrt.distributed import certification
from raycrt.distributed.session import session
from raycrt.networks import checkpoint, network
from raycrt.networks.network import Network
from raycrt.specs import Spec, validate
from tests.benchmarks import write

FEATURES, CLASSES = 784, 10
SPEC = validate(
    {
        "model": {"depth": 2, "width": 256},
        "certify": {"at": [0.1], "steps": 0},
        "run": {"workers": 2},
    }
)


def stored(home: Path, rows: int) -> Spec:
    """The spec of `rows` random inputs, written to files in `home`."""
    draws = np.random.default_rng(0)
    for name, number in (("train", CLASSES), ("test", rows)):
        inputs = np.lib.format.open_memmap(
            home / f"{name}-images.npy", "w+", np.float32, (number, FEATURES)
        )
        for first in range(0, number, 10_000):
            some = inputs[first : first + 10_000]
            draws.random(out=some, dtype=np.float32)
        np.save(home / f"{name}-labels.npy", np.arange(number) % CLASSES)
    named = SPEC.override({"data.source": "arrays", "data.path": str(home)})
    return data.opened_for_test(named)[0]


def loop_seconds(model: Network, spec: Spec, rows: int, out: Path) -> float:
    """Wall time of a loop over the shards of the first rows."""
    (out / storage.ROWS).mkdir(parents=True)
    certify = ShardCertifier(
        Certifier.of(model, spec.certify),
        data.test_rows(spec.data),
        out,
        batch=spec.certify.batch_size,
        at=spec.certify.at[0],
    )
    size = shards.rows_of_a_shard(rows, spec.certify.batch_size)
    first, *others = shards.shards(rows, size)
    certify(first)
    began = time.perf_counter()
    for shard in others:
        certify(shard)
    return (time.perf_counter() - began) * rows / (rows - size)


@dataclass
class Seen:
    """When shards were written, and the CPU time of the driver and of each actor."""

    workers: int
    ends: list[tuple[float, int]] = field(default_factory=list)
    driver: float = 0.0
    actors: dict[psutil.Process, float] = field(default_factory=dict)

    def watch(self, progress: certification.Progress) -> None:
        self.ends.append((time.perf_counter(), progress.counted))
        if len(self.ends) > 1 and len(self.actors) < self.workers:
            for process in psutil.Process().children(recursive=True):
                if "(Certify)" in " ".join(process.cmdline()):
                    self.actors[process] = 0.0
        for process in self.actors:
            times = process.cpu_times()
            self.actors[process] = times.user + times.system

    @property
    def rate(self) -> float:
        """Rows a second, from the first shard on."""
        (start, before), (end, after) = self.ends[1], self.ends[-1]
        return (after - before) / (end - start)


@contextmanager
def driver_time(seen: Seen) -> Iterator[None]:
    before = time.process_time()
    yield
    seen.driver = time.process_time() - before


def on_ray(model: Network, spec: Spec, out: Path, workers: int) -> Seen:
    """What was seen of `workers` actors that certify all rows."""
    seen = Seen(workers)
    with driver_time(seen):
        certification.certify(
            model,
            spec.override({"run.workers": workers}),
            data.test_rows(spec.data),
            out,
            digest=checkpoint.weights_hash(model),
            curvature=margin_curvature(model),
            watch=seen.watch,
        )
    return seen


def measured(home: Path, rows: int) -> dict[str, Any]:
    """The figures for `rows` rows and, for the exponent, a tenth and a hundredth of these."""
    found: dict[str, Any] = {"rows": rows, "seconds": {}}
    torch.manual_seed(0)
    model = network.build(SPEC.model, (FEATURES,), CLASSES)
    with session():
        for part in (rows // 100, rows // 10, rows):
            place = home / str(part)
            place.mkdir()
            spec = stored(place, part)
            two = on_ray(model, spec, place / "two", workers=2)
            found["seconds"][part] = part / two.rate
        one = on_ray(model, spec, place / "one", workers=1)
    bare = rows / loop_seconds(model, spec, rows // 10, place / "loop") / 10
    few, many = (found["seconds"][part] for part in (rows // 100, rows))
    return {
        **found,
        "loop_rows_per_second": bare,
        "one_actor_rows_per_second": one.rate,
        "two_actors_rows_per_second": two.rate,
        "two_actors_against_one": two.rate / one.rate,
        "one_actor_against_loop": one.rate / bare,
        "two_actors_against_two_loops": two.rate / (2 * bare),
        "driver_share_of_cpu": two.driver / (two.driver + sum(two.actors.values())),
        "exponent": math.log(many / few) / math.log(100),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scale.json"))
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--data", type=Path, help="directory for the inputs, 3 KB a row")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.data) as home:
        write(measured(Path(home), asked.rows), asked.out)


if __name__ == "__main__":
    main()
