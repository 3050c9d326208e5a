"""Certification whose processes are killed at random: a command that is begun again until it ends.

    python -m tests.chaos.harness --kills 100 --out runs/chaos

Each kill is of a random kind at a random time: an actor, the driver, the node (all processes of its
raylet), or all of them at once. Nothing that is killed is told of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

from raycrt import Certifier, data
from raycrt.certification.table import shards, storage
from raycrt.networks import checkpoint, network
from raycrt.specs import Spec, validate

# The variable by which the processes of a run are found, whoever their parent is.
MARK = "RAYCRT_CHAOS"
ROWS, BATCH, FEATURES, CLASSES = 6_000, 20, 32, 4
KINDS = ("actor", "driver", "node", "all")


@dataclass(kw_only=True)
class Told:
    """How often each kind of death happened, and how often the command was begun."""

    deaths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    begun: int = 0


def prepared(home: Path, *, seed: int = 0, solver_steps: int = 40) -> Spec:
    """A model with random weights in `home / "run"` and data for it in `home / "data"`."""
    draws = np.random.default_rng(seed)
    (home / "data").mkdir(parents=True)
    for name, rows in (("train", 40), ("test", ROWS)):
        inputs = draws.normal(size=(rows, FEATURES)).astype(np.float32)
        np.save(home / "data" / f"{name}-images.npy", inputs)
        np.save(home / "data" / f"{name}-labels.npy", np.arange(rows) % CLASSES)
    spec = validate(
        {
            "data": {"source": "arrays", "path": str(home / "data")},
            "model": {"depth": 3, "width": 96, "activation": "tanh"},
            "certify": {"at": [0.1], "batch_size": BATCH, "steps": solver_steps},
            "run": {"workers": 2, "cpus_per_worker": 0.5},
        }
    )
    spec = data.described(spec)
    torch.manual_seed(seed)
    made = network.build(spec.model, (FEATURES,), CLASSES)
    checkpoint.save_model(home / "run" / "train", made, spec)
    return spec


def twin(home: Path, spec: Spec) -> pa.Table:
    """The rows that one process makes."""
    torch.set_num_threads(1)
    model, _ = checkpoint.load_model(home / "run" / "train")
    certifier = Certifier.of(model, spec.certify)
    rows = data.read(spec.data).test
    found = certifier(torch.from_numpy(rows.images))
    return storage.to_table(found, 0, rows.labels, rows.images, rows.keys)


def survive(home: Path, kills: int, seed: int, say: Callable[[str], None] = print) -> Told:
    """Certify the run in `home` while processes are killed `kills` times; what happened."""
    draws, told = random.Random(seed), Told()
    mark = f"{os.getpid()}-{seed}"
    rows = home / "run" / "certificates" / storage.ROWS
    command = _begun(home, mark, told)
    while sum(told.deaths.values()) < kills:
        before = _written(rows)
        # Most kills are of processes that work: half of them wait until a shard has been written.
        waits = draws.random() < 0.5
        deadline = time.monotonic() + draws.uniform(0, 25)
        while time.monotonic() < deadline and command.poll() is None:
            if waits and _written(rows) > before:
                time.sleep(draws.uniform(0, 0.5))
                break
            time.sleep(0.05)
        if command.poll() is not None:
            if command.returncode == 0:
                # All is done: some of it is undone, so that there is work for the next deaths.
                _undo(rows, draws)
            command = _begun(home, mark, told)
            continue
        kind = draws.choice(KINDS)
        if _kill(kind, command, mark, draws):
            told.deaths[kind] += 1
            say(f"{sum(told.deaths.values())}/{kills} {kind}: {_written(rows)} shards are written")
        if kind in ("driver", "all"):
            command.wait()
            if draws.random() < 0.5:
                # Others begin while actors of the dead driver may still be there.
                _end(mark)
            command = _begun(home, mark, told)
    code = command.wait()
    while code != 0:
        command = _begun(home, mark, told)
        code = command.wait()
    _end(mark)
    return told


def _begun(home: Path, mark: str, told: Told) -> subprocess.Popen[bytes]:
    told.begun += 1
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "raycrt", "certify", "--out", str(home / "run")],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _written(rows: Path) -> int:
    return len(list(rows.glob("[!.]*.parquet"))) if rows.is_dir() else 0


def _undo(rows: Path, draws: random.Random) -> None:
    for file in draws.sample(sorted(rows.glob("[!.]*.parquet")), 40):
        file.unlink()


def _of(mark: str) -> list[psutil.Process]:
    """The processes of the run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _kill(kind: str, command: subprocess.Popen[bytes], mark: str, draws: random.Random) -> bool:
    """Kill what `kind` says; whether it was there."""
    ours = _of(mark)
    names = {process: _name(process) for process in ours}
    if kind == "actor":
        actors = [process for process, name in names.items() if "(Certify)" in name]
        chosen = draws.sample(actors, 1) if actors else []
    elif kind == "driver":
        chosen = [process for process in ours if process.pid == command.pid]
    elif kind == "node":
        raylets = [process for process, name in names.items() if "raylet/raylet" in name]
        chosen = [each for raylet in raylets for each in (raylet, *_below(raylet))]
    else:
        chosen = ours
    for process in chosen:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    return bool(chosen)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _end(mark: str) -> None:
    for process in _of(mark):
        try:
            process.kill()
        except psutil.Error:
            continue


def check(home: Path, expected: pa.Table) -> None:
    """Raise `AssertionError` unless the rows are the expected ones, each once, and nothing else."""
    directory = home / "run" / "certificates"
    table, manifest = storage.read(directory)
    assert manifest["complete"] is True
    assert table.equals(expected)
    names = sorted(file.name for file in (directory / storage.ROWS).iterdir())
    size = shards.rows_of_a_shard(ROWS, BATCH)
    assert names == [f"{first:09d}.parquet" for first in range(0, ROWS, size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    spec = prepared(asked.out, seed=asked.seed)
    expected = twin(asked.out, spec)
    began = time.monotonic()
    told = survive(asked.out, asked.kills, asked.seed, lambda line: print(line, flush=True))
    check(asked.out, expected)
    facts = {**told.deaths, "begun": told.begun, "seconds": round(time.monotonic() - began)}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
