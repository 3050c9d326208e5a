"""The function that each training worker runs: the loop on its share of the rows, checkpoints."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raycrt import data
from raycrt.data import Split
from raycrt.data.parts.streaming import Stored
from raycrt.distributed.training.streaming import Streamed
from raycrt.evaluation.assessment import assess
from raycrt.networks import checkpoint
from raycrt.specs import DataSpec, Spec, validate
from raycrt.specs.provenance import Rows, Training
from raycrt.system import devices
from raycrt.system.places.storage import place
from raycrt.training import loop
from raycrt.training.loop import EpochEnd, Metrics, TrainingDiverged, Workers

# How often a training assesses its network, evenly spread, and on how many validation rows.
_ASSESSMENTS, _ROWS_ASSESSED = 4, 256


class Stopped(RuntimeError):
    """Training ended early because `stop` was set."""


def train(config: dict[str, Any]) -> None:
    """Train as `config` states and report to Ray Train; runs on every worker."""
    spec = validate(config["spec"])
    context = ray.train.get_context()
    device = devices.checked(get_device())
    workers = data_parallel(context.get_world_rank(), context.get_world_size())
    started = ray.train.get_checkpoint()
    state = None
    if started is not None:
        with started.as_directory() as directory:
            state = checkpoint.load_state(Path(directory))
    elif config["from"] is not None:
        state = checkpoint.load_state(place(config["from"]))
    split, watched = _rows(spec, config, workers)
    name = "validation" if config["rows"] == "train" else "training_rows"
    assessed = {math.ceil(spec.train.epochs * k / _ASSESSMENTS) for k in range(1, _ASSESSMENTS + 1)}
    line, first = config["line"], workers.rank == 0
    last = began = time.monotonic()

    def observe(end: EpochEnd, measured: Metrics) -> Metrics:
        seen = {
            "rows_per_second": len(split) / (time.monotonic() - began),
            "workers": float(workers.size),
        }
        if end.epoch in assessed:
            found = assess(end.network, watched, spec.certify)
            seen |= {f"{name}/{key}": value for key, value in found.items()}
        return {**end.metrics, **seen, **measured}

    def report(end: EpochEnd) -> None:
        nonlocal last, began
        found = config["measure"](end) if first else None
        news = observe(end, found or {}) if first else {}
        stops = first and ray.get(line.stopped.remote())
        ours = [time.monotonic() - last, float(found is not None), float(stops)]
        waited, measured, stopped = _total(torch.tensor(ours, device=device)).tolist()
        late = waited / workers.size >= config["seconds"]
        # The notice that a node is about to leave reaches all workers at the same epoch.
        leaving = ray.train.get_preemption_info() is not None
        if late or measured or stopped or leaving or end.epoch in (1, spec.train.epochs):
            last = time.monotonic()
            _keep(end, spec, config["rows"], first)
        if first:
            line.tell.remote(end.epoch, news)
        if stopped and end.epoch < spec.train.epochs:
            raise Stopped(f"training was stopped after epoch {end.epoch} of {spec.train.epochs}")
        began = time.monotonic()

    if first:
        line.begin.remote()
    try:
        network = loop.train(
            spec, split, report=report, workers=workers, state=state, device=device
        )
    except (Stopped, TrainingDiverged) as error:
        if first:
            ray.get(line.give_up.remote(error))
        return
    if state is not None and state["epoch"] == spec.train.epochs:
        # The run ended after its last checkpoint was stored and before that was reported.
        report(EpochEnd(epoch=state["epoch"], metrics={}, network=network, state=lambda: state))


def _rows(spec: Spec, config: dict[str, Any], workers: Workers) -> tuple[Split | Streamed, Split]:
    """The rows to be trained on, in memory or streamed, and those that are assessed."""
    part, stored, some = config["rows"], config["stored"], slice(_ROWS_ASSESSED)
    if stored is not None:
        streamed = Streamed(spec, stored, part, rank=workers.rank, size=workers.size)
        return streamed, Split.of(Stored(stored, "validation").read(some))
    dataset = data.load(DataSpec.model_validate(config["data"]))
    return getattr(dataset, part), dataset.validation.take(some)


def _keep(end: EpochEnd, spec: Spec, rows: Rows, first: bool) -> None:
    """Report an epoch to Ray Train, which all workers must do together; the checkpoint holds the
    first worker's model and state."""
    metrics = {"epoch": end.epoch, **end.metrics}
    if not first:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        made = Training.of(spec, rows, end.epoch)
        checkpoint.save_model(Path(directory), end.network, spec, made)
        checkpoint.save_state(Path(directory), end.state())
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def data_parallel(rank: int, size: int) -> Workers:
    """Worker `rank` of `size` in the current process group, with averaged gradients."""
    return Workers(
        rank=rank,
        size=size,
        wrap=lambda module: DistributedDataParallel(module, broadcast_buffers=False),
        total=_total,
    )


def _total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all workers, the same on each of them."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
