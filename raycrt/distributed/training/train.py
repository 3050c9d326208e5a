"""The training loop on many workers of Ray Train, with checkpoints."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import (
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raycrt import data
from raycrt.data.parts.streaming import store
from raycrt.distributed import room, session
from raycrt.distributed.training import lines, worker
from raycrt.distributed.training.process_group import ProcessGroup
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.specs import Spec, WorkerRange
from raycrt.specs.provenance import Rows, Training
from raycrt.system.places import storage
from raycrt.system.places.storage import Place
from raycrt.training.loop import EpochEnd, Metrics

_SECONDS_BETWEEN_LOOKS = 0.5
_FAILURES = 3
# Where nodes come and go, their losses count as failures too.
_FAILURES_OF_A_RANGE = 20
# How often a training whose number of workers may change looks for room.
_SECONDS_BETWEEN_SIZES = 30.0
# The file in which Ray lists the checkpoints of a run.
_LISTING = "checkpoint_manager_snapshot.json"


def fit(
    spec: Spec,
    out: Place,
    *,
    name: str = "train",
    rows: Rows = "fit",
    watch: Callable[[int, Metrics], None] = lambda epoch, metrics: None,
    measure: Callable[[EpochEnd], Metrics | None] = lambda end: None,
    stop: threading.Event | None = None,
    seconds_between_checkpoints: float = 15.0,
) -> Network:
    """Train on `spec.run.workers` workers and write the model into `out`.

    If these are a range, training begins on as many as there is room for, goes on with fewer when a
    node is lost, and on more, from the last checkpoint, when there is room again. All workers
    together take `train.batch_size` rows in a step, so that neither the batch nor the learning rate
    depends on how many they are; the weights do, by the rounding of sums.

    `rows` is the part of the data set trained on ("train", or "fit": train and validation rows
    together). A run of the same `name` in the same `out` is resumed from its last checkpoint. Where
    it had another `run.workers`, the range of both is stated with the weights.

    While training runs, `watch` is called in a thread of this process with each epoch's metrics.
    They include the number of `workers` and what `measure` returns for the epoch on the first one;
    a measured epoch's checkpoint is stored before the call. At four epochs, the last among them,
    they also include what `assess` proves on 256 rows, as `validation/...`, or as
    `training_rows/...` if these rows are trained on. A checkpoint takes Ray seconds, so epochs
    shorter than `seconds_between_checkpoints` share one; the first epoch, the last and measured
    ones always have their own, and so do all after the notice that a node is about to leave. If a
    worker dies, it is replaced and all continue from the last checkpoint.

    Once `stop` is set, the workers stop after the current epoch, which gets a checkpoint; their
    resources are freed and `Stopped` is raised. Ctrl-C does the same and raises KeyboardInterrupt,
    at once if no epoch has begun. When the loss or a weight is no longer finite,
    `TrainingDiverged` is raised without retrying; the last checkpoint is kept.
    """
    stop = stop or threading.Event()
    line = lines.start()
    stored = folder_of_rows(spec, out)
    place, files = storage.for_arrow(out / "ray")
    if stored is not None:
        store(spec.data, rows, stored)
    stated = with_former_workers(spec, last_checkpoint(out, name))
    workers: int | tuple[int, int]
    if isinstance(spec.run.workers, WorkerRange):
        workers, failures = (spec.run.least, spec.run.most), _FAILURES_OF_A_RANGE
    else:
        workers, failures = spec.run.workers, _FAILURES
    trainer = TorchTrainer(
        worker.train,
        train_loop_config={
            "spec": stated.model_dump(mode="json"),
            "data": data.located(spec).data.model_dump(mode="json"),
            "rows": rows,
            "stored": stored,
            "measure": measure,
            "line": line,
            "seconds": seconds_between_checkpoints,
            "from": _mended(out, name),
        },
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=workers,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_SIZES,
            use_gpu=spec.run.gpus_per_worker > 0,
            resources_per_worker=room.for_worker(spec.run),
        ),
        torch_config=ProcessGroup(),
        run_config=RunConfig(
            name=name,
            storage_path=place,
            storage_filesystem=files,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=failures, controller_failure_limit=failures
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
    checkpoint.save_model(out, model, spec, Training.of(stated, rows))
    if stored is not None:
        storage.remove(stored)
    return model


def folder_of_rows(spec: Spec, out: Place) -> Path | None:
    """Where a training in `out` puts rows that are streamed; None if they are in memory."""
    if not spec.run.stream:
        return None
    if storage.is_remote(out):
        raise InvalidInput(f"run.stream=true must have its --out on a disk, but got {out}")
    if spec.train.components is not None:
        raise InvalidInput(
            "train.components must be left out where run.stream=true: principal directions are "
            f"found on rows in memory, but got components={spec.train.components}"
        )
    return (out / "rows").resolve()


def with_former_workers(spec: Spec, kept: Place | None) -> Spec:
    """`spec` for a training that goes on from the checkpoint `kept`, with the numbers of workers of
    both as a range where they differ: its weights do not repeat to the last bit."""
    made = None if kept is None else checkpoint.load_provenance(kept).training
    if made is None:
        return spec
    low, high = min(made.run.least, spec.run.least), max(made.run.most, spec.run.most)
    if low == high:
        return spec
    return spec.override({"run.workers": {"low": low, "high": high}})


def _result(trainer: TorchTrainer, stop: threading.Event, line: Any) -> Result:
    """The result of `trainer`; Ctrl-C sets `stop` and is raised once the workers have stopped.

    `trainer` runs in a thread: in the main thread Ray would handle Ctrl-C itself and stop the
    workers without a checkpoint. There is nothing to wait for before the workers have begun, or if
    the signal has ended Ray too, as a signal to the whole process group does.
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
    """Whether a training ended because its workers waited for resources for longer than Ray Train
    waits by itself."""
    return isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def last_checkpoint(out: Place, name: str = "train") -> Place | None:
    """The directory of the newest checkpoint that a run of `name` left in `out`, with a model
    that loads and the state to resume from; None if there is none. Truncated ones are skipped."""
    found = (
        state.parent for state in (out / "ray" / name).glob(f"checkpoint_*/{checkpoint.STATE}")
    )
    whole = [kept for kept in sorted(found, key=str) if _whole(kept)]
    return whole[-1] if whole else None


def _whole(kept: Place) -> bool:
    try:
        checkpoint.load_provenance(kept)
    except InvalidInput:
        return False
    with (kept / checkpoint.STATE).open("rb") as file:
        return zipfile.is_zipfile(file)


def _mended(out: Place, name: str) -> str | None:
    """The checkpoint to start from if Ray's list of them is missing or truncated; else None."""
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
