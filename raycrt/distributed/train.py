"""Ray Train: the training loop on many workers, checkpoints included."""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raycrt import data
from raycrt.distributed import lines, session
from raycrt.errors import InvalidInput
from raycrt.evaluation.assessment import assess
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.spec import DataSpec, Spec, validate
from raycrt.spec.provenance import Rows, Training
from raycrt.training import loop
from raycrt.training.loop import EpochEnd, Metrics, TrainingDiverged, Workers

_SECONDS_BETWEEN_LOOKS = 0.5
_FAILURES = 3
# In which Ray lists the checkpoints of a run.
_LISTING = "checkpoint_manager_snapshot.json"
# The network is certified on the first of the held-out rows so many times, evenly spread.
_ASSESSMENTS, _ROWS_ASSESSED = 4, 256


class Stopped(RuntimeError):
    """Training ended early because `stop` was set."""


def fit(
    spec: Spec,
    out: Path,
    *,
    name: str = "train",
    rows: Rows = "fit",
    watch: Callable[[int, Metrics], None] = lambda epoch, metrics: None,
    measure: Callable[[EpochEnd], Metrics | None] = lambda end: None,
    stop: threading.Event | None = None,
    seconds_between_checkpoints: float = 15.0,
) -> Network:
    """Train on `spec.run.workers` workers and write the model into `out`.

    `rows` is the part of the data set trained on ("train", or "fit": train and validation rows
    together). A run of the same `name` in the same `out` is taken up from its last checkpoint.
    `watch` is called in a thread here with each epoch's metrics while training runs, and with what
    `measure` found of the epoch on the first worker: its checkpoint is stored before. At four
    epochs, the last among them, they hold what `assess` proves on 256 rows, as `validation/...`, or
    as `training_rows/...` where these rows are trained on. A checkpoint costs seconds of Ray's
    time, so that epochs shorter than `seconds_between_checkpoints` share one; the first epoch, the
    last and those that are measured always have their own. A worker that dies is replaced; all go
    on from the last checkpoint.

    Once `stop` is set, workers stop after the epoch that runs, which has a checkpoint, their
    resources are free and `Stopped` is raised. Ctrl-C does the same and raises KeyboardInterrupt,
    at once where no epoch has begun. When the loss or a weight is no longer finite,
    `TrainingDiverged` is raised without retrying; the last checkpoint is kept.
    """
    stop = stop or threading.Event()
    line = lines.start()
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "data": data.located(spec).data.model_dump(mode="json"),
            "rows": rows,
            "measure": measure,
            "line": line,
            "seconds": seconds_between_checkpoints,
            "from": _mended(out, name),
        },
        scaling_config=ScalingConfig(
            num_workers=spec.run.workers,
            use_gpu=spec.run.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": spec.run.cpus_per_worker,
                **({"GPU": spec.run.gpus_per_worker} if spec.run.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(out.resolve() / "ray"),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=_FAILURES, controller_failure_limit=_FAILURES
            ),
        ),
    )
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(line, watch, stop, finished), daemon=True)
    watcher.start()
    try:
        result = _result(trainer, stop, line)
    except WorkerGroupError as failed:
        raise failed from next(iter(failed.worker_failures.values()), None)
    except ControllerError as failed:
        raise failed from failed.controller_failure
    finally:
        finished.set()
        watcher.join(lines.SECONDS_FOR_AN_ANSWER)
    error = ray.get(line.error.remote())
    if error is not None:
        raise error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as directory:
        model, _ = checkpoint.load_model(Path(directory))
    checkpoint.save_model(out, model, spec, Training.of(spec, rows))
    return model


def _result(trainer: TorchTrainer, stop: threading.Event, line: Any) -> Result:
    """What `trainer` ends with; Ctrl-C sets `stop` and is raised when the workers have stopped.

    It runs in a thread, since in the main one Ray would take Ctrl-C for itself and stop the workers
    without a checkpoint. Before they have begun there is nothing to wait for, and neither is where
    the signal has ended Ray too, as one to a group of processes does.
    """
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return ended.result()
    except KeyboardInterrupt:
        stop.set()
        if lines.begun(line):
            print("stopping after this epoch; a second signal stops at once", flush=True)
            while not wait([ended], _SECONDS_BETWEEN_LOOKS).done and session.lives():
                pass
        raise


def waited(error: ControllerError) -> bool:
    """Whether a training has ended because its workers waited for room, for longer than Ray Train
    does by itself."""
    return isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def last_checkpoint(out: Path, name: str = "train") -> Path | None:
    """The directory of the newest checkpoint that a run of `name` left in `out`: a model that
    loads, and the state that training goes on from. Truncated checkpoints are skipped."""
    found = sorted((out / "ray" / name).glob(f"checkpoint_*/{checkpoint.STATE}"))
    whole = [state.parent for state in found if _whole(state.parent)]
    return whole[-1] if whole else None


def _whole(kept: Path) -> bool:
    try:
        checkpoint.load_provenance(kept)
    except InvalidInput:
        return False
    return zipfile.is_zipfile(kept / checkpoint.STATE)


def _mended(out: Path, name: str) -> str | None:
    """The checkpoint to start from where Ray's own list of them has been cut; else none."""
    listing = out / "ray" / name / _LISTING
    try:
        json.loads(listing.read_text())
    except FileNotFoundError:
        pass
    except ValueError:
        listing.unlink()
    else:
        return None
    kept = last_checkpoint(out, name)
    return str(kept.resolve()) if kept else None


def _watch(
    line: Any,
    watch: Callable[[int, Metrics], None],
    stop: threading.Event,
    finished: threading.Event,
) -> None:
    while True:
        last = finished.wait(_SECONDS_BETWEEN_LOOKS)
        if stop.is_set():
            line.stop.remote()
        for epoch, metrics in ray.get(line.news.remote()):
            watch(epoch, metrics)
        if last:
            return


def _work(config: dict[str, Any]) -> None:
    """What runs on every worker."""
    spec = validate(config["spec"])
    context = ray.train.get_context()
    device = get_device()
    workers = data_parallel(context.get_world_rank(), context.get_world_size())
    started = ray.train.get_checkpoint()
    state = None
    if started is not None:
        with started.as_directory() as directory:
            state = checkpoint.load_state(Path(directory))
    elif config["from"] is not None:
        state = checkpoint.load_state(Path(config["from"]))
    dataset = data.load(DataSpec.model_validate(config["data"]))
    split = getattr(dataset, config["rows"])
    watched = dataset.validation.take(slice(_ROWS_ASSESSED))
    name = "validation" if config["rows"] == "train" else "training_rows"
    assessed = {math.ceil(spec.train.epochs * k / _ASSESSMENTS) for k in range(1, _ASSESSMENTS + 1)}
    line, first = config["line"], workers.rank == 0
    last = began = time.monotonic()

    def observe(end: EpochEnd, measured: Metrics) -> Metrics:
        seen = {"rows_per_second": len(split) / (time.monotonic() - began)}
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
        if late or measured or stopped or end.epoch in (1, spec.train.epochs):
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
        # The run was lost after its last checkpoint and before that was reported.
        report(EpochEnd(epoch=state["epoch"], metrics={}, network=network, state=lambda: state))


def _keep(end: EpochEnd, spec: Spec, rows: Rows, first: bool) -> None:
    """Report an epoch to Ray Train, which all workers must do together; the first one's model and
    state are its checkpoint."""
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
    """Worker `rank` of `size` in the process group that has been joined: gradients are averaged."""
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
