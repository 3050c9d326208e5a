"""Ray Train: the training loop on many workers, checkpoints included."""

from __future__ import annotations

import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raycrt import checkpoint, data, training
from raycrt.assessment import assess
from raycrt.network import Network
from raycrt.spec import Spec, validate
from raycrt.training import EpochEnd, Metrics, TrainingDiverged, Workers

_FAILURES = 3
# The network is certified on the first of the held-out rows so many times, evenly spread.
_ASSESSMENTS, _ROWS_ASSESSED = 4, 256


def fit(
    spec: Spec,
    out: Path,
    *,
    name: str = "train",
    rows: str = "fit",
    watch: Callable[[int, Metrics], None] = lambda epoch, metrics: None,
    seconds_between_checkpoints: float = 15.0,
) -> Network:
    """Train on `spec.run.workers` workers and write the model into `out`.

    `rows` is the part of the data set trained on ("train", or "fit": train and validation rows
    together). A run of the same `name` in the same `out` is taken up from its last checkpoint.
    `watch` is called here with each epoch's metrics while training runs. At four epochs, the last
    among them, they hold what `assess` proves on 256 rows, as `validation/...`, or as
    `training_rows/...` where these rows are trained on. A checkpoint costs seconds
    of Ray's time, so that epochs shorter than `seconds_between_checkpoints` share one; the last
    epoch always has its own. A worker that dies is replaced; all go on from the last checkpoint.

    The last checkpoint is kept when Ctrl-C stops the workers, which raises KeyboardInterrupt, and
    when the loss or a weight is no longer finite, which raises `TrainingDiverged` without retrying.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "rows": rows,
            "queue": queue,
            "seconds": seconds_between_checkpoints,
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
    watcher = threading.Thread(target=_watch, args=(queue, watch, finished), daemon=True)
    watcher.start()
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit:
        # Ray's own handler of Ctrl-C, which it leaves behind, ends the process when it is done.
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        finished.set()
        watcher.join()
        queue.shutdown()
    diverged: str | None = result.return_value  # type: ignore[attr-defined]
    if diverged is not None:
        raise TrainingDiverged(diverged)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as directory:
        model, _ = checkpoint.load_model(Path(directory))
    checkpoint.save_model(out, model, spec)
    return model


def last_checkpoint(out: Path, name: str = "train") -> Path | None:
    """The directory of the newest checkpoint that a run of `name` left in `out`: a model that
    loads, and the state that training goes on from."""
    found = sorted((out / "ray" / name).glob(f"checkpoint_*/{checkpoint.STATE}"))
    return found[-1].parent if found else None


def _watch(queue: Queue, watch: Callable[[int, Metrics], None], finished: threading.Event) -> None:
    while True:
        try:
            watch(*queue.get(timeout=0.5))
        except Empty:
            if finished.is_set():
                return


def _work(config: dict[str, Any]) -> str | None:
    """What runs on every worker: nothing, or why training cannot go on, the same on each."""
    spec = validate(config["spec"])
    context = ray.train.get_context()
    device = get_device()
    workers = data_parallel(context.get_world_rank(), context.get_world_size())
    started = ray.train.get_checkpoint()
    state = None
    if started is not None:
        with started.as_directory() as directory:
            state = checkpoint.load_state(Path(directory))
    dataset = data.load(spec.data)
    split = getattr(dataset, config["rows"])
    watched = dataset.validation.take(slice(_ROWS_ASSESSED))
    name = "validation" if config["rows"] == "train" else "training_rows"
    assessed = {math.ceil(spec.train.epochs * k / _ASSESSMENTS) for k in range(1, _ASSESSMENTS + 1)}
    last = began = time.monotonic()

    def observe(end: EpochEnd) -> None:
        seen = {**end.metrics, "rows_per_second": len(split) / (time.monotonic() - began)}
        if end.epoch in assessed:
            found = assess(end.network, watched, spec.certify)
            seen |= {f"{name}/{key}": value for key, value in found.items()}
        config["queue"].put((end.epoch, seen))

    def report(end: EpochEnd) -> None:
        nonlocal began
        if workers.rank == 0:
            observe(end)
        keep(end)
        began = time.monotonic()

    def keep(end: EpochEnd) -> None:
        nonlocal last
        waited = _total(torch.tensor([time.monotonic() - last], device=device)) / workers.size
        if float(waited) < config["seconds"] and end.epoch < spec.train.epochs:
            return
        last = time.monotonic()
        metrics = {"epoch": end.epoch, **end.metrics}
        if workers.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as directory:
            checkpoint.save_model(Path(directory), end.network, spec)
            checkpoint.save_state(Path(directory), end.state())
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))

    try:
        training.train(spec, split, report=report, workers=workers, state=state, device=device)
    except TrainingDiverged as error:
        return str(error)
    return None


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
