"""The training loop, the same on a laptop, in a trial of a search and on each of many workers.

It does not depend on Ray. What differs between the places it runs in is passed as arguments:
`Workers` (the process's share of each batch, how gradients and sums are combined) and `report`
(where metrics and checkpoints go).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from raycrt.data import Split
from raycrt.errors import require
from raycrt.networks.floating_point import quicken_softplus
from raycrt.networks.network import Network
from raycrt.specs import Spec, TrainSpec
from raycrt.training import objectives, optimizers
from raycrt.training.batch_normalization import update_statistics
from raycrt.training.folding.part import TrainedPart
from raycrt.training.inputs.augmentation import random_maps, warp
from raycrt.training.inputs.batches import Batches, InMemory
from raycrt.training.optimizers import Optimizer
from raycrt.training.options import rules
from raycrt.training.precision import products_in

State = dict[str, Any]
Metrics = dict[str, float]


class TrainingDiverged(RuntimeError):
    """The loss or a weight became NaN or infinite; the message names the epoch and the step."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process's place among the processes that train one model together.

    Each batch is split into `size` interleaved shares, and this process takes number `rank`. `wrap`
    makes a module average its gradients over the workers, `total` sums a tensor over them.
    """

    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """The argument of `report` after each epoch (from 1), with the same numbers on every worker.

    `network` holds the weights that training would return now (the average, if one is kept);
    `state` returns the state from which `train` resumes as if it had never stopped.
    """

    epoch: int
    metrics: Metrics
    network: Network
    state: Callable[[], State]


Report = Callable[[EpochEnd], None]


def train(
    spec: Spec,
    split: Split | Batches,
    *,
    start: Network | None = None,
    report: Report = lambda end: None,
    workers: Workers | None = None,
    state: State | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Train `spec` on `split`, in memory or a stream of its batches, and return the network.

    It begins at the weights of `start`, a network of `spec.model`, or at ones drawn from the seed.

    With the same spec, rows and number of workers the weights are the same to the last bit on one
    machine's CPU, whether or not rows are streamed, and whether or not training was stopped after
    an epoch and resumed from its `state`.
    """
    rules.check_training(spec, fresh=start is None)
    quicken_softplus()
    workers = workers or Workers()
    rows = len(split)
    require(rows > 0, "at least one training row", rows=rows)
    part = TrainedPart.of(spec, split, start, device)
    model = part.network
    objective = objectives.build(model, spec.train, part.subspace)
    wrapped = workers.wrap(objective)
    optimizer = optimizers.build(model, spec.train)
    average = _averaged(model, spec.train.averaging)
    first = 0
    if state is not None:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        first = state["epoch"]
    batches: Batches
    if isinstance(split, Split):
        moved = split.images.to(device, dtype=next(model.parameters()).dtype)
        batches = InMemory(
            split=Split(images=moved, labels=split.labels.to(device)),
            batch_size=min(spec.train.batch_size, rows),
            seed=spec.run.seed,
            rank=workers.rank,
            size=workers.size,
        )
    else:
        batches = split

    def whole() -> Network:
        return part.whole(model if average is None else cast(Network, average.module))

    for epoch in range(first, spec.train.epochs):
        with products_in(spec.train.precision):
            steps = _epoch(spec, epoch, batches, objective, wrapped, optimizer, average, workers)

        def snapshot(done: int = epoch + 1) -> State:
            return {
                "epoch": done,
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
            }

        metrics = _summary(workers.total(steps), spec, epoch, rows)
        _require_finite(model, epoch, len(steps))
        metrics |= _settings(spec.train, epoch, objective)
        report(EpochEnd(epoch=epoch + 1, metrics=metrics, network=whole(), state=snapshot))
    return whole()


def _epoch(
    spec: Spec,
    epoch: int,
    batches: Batches,
    objective: objectives.Objective,
    wrapped: nn.Module,
    optimizer: Optimizer,
    average: AveragedModel | None,
    workers: Workers,
) -> Tensor:
    """One pass over the rows; sums of (loss, correct, robust) for each step, (steps, 3)."""
    like = next(objective.network.parameters())
    steps = math.ceil(len(batches) / min(spec.train.batch_size, len(batches)))
    sums = torch.zeros(steps, 3, dtype=torch.float64, device=like.device)
    for index, batch in enumerate(batches.epoch(epoch)):
        done = (epoch * steps + index) / (spec.train.epochs * steps)
        radius = like.new_tensor(spec.train.radius * ramp_share(spec.train, done))
        inputs, labels = batch.moved_to(like)
        if spec.train.augmentation.moves and done < spec.train.augmentation.until:
            seed = spec.run.seed * 1_000_003 + epoch * steps + index
            maps = random_maps(batch.rows, inputs.shape[1:], spec.train.augmentation, seed)
            inputs = warp(inputs, maps[workers.rank :: workers.size])
        update_statistics(objective.network, inputs, epoch * steps + index, workers.total)
        objective.before_step()
        losses = wrapped(inputs, labels, radius)
        optimizer.zero_grad()
        # The sum over this worker's rows divided by the size of the whole batch, times the number
        # of workers that a data-parallel average divides by: the exact gradient of the batch mean.
        (losses.loss.sum() * (workers.size / batch.rows)).backward()
        optimizer.step(rate_share(spec.train, done))
        if average is not None:
            average.update_parameters(objective.network)
        sums[index, 0] = losses.loss.detach().sum()
        sums[index, 1] = losses.correct.sum()
        sums[index, 2] = losses.robust.sum()
    return sums


def rate_share(spec: TrainSpec, done: float) -> float:
    """Share of the learning rate when the share `done` of training has run.

    It grows linearly to 1 while `done < warm_up`, then decays to 0 along a cosine.
    """
    if done < spec.warm_up:
        return done / spec.warm_up
    return (1 + math.cos(math.pi * (done - spec.warm_up) / (1 - spec.warm_up))) / 2


def ramp_share(spec: TrainSpec, done: float) -> float:
    """Share of the radius after the share `done` of training: grows linearly, then stays 1."""
    return 1.0 if spec.ramp == 0 else min(1.0, done / spec.ramp)


def _summary(steps: Tensor, spec: Spec, epoch: int, rows: int) -> Metrics:
    finite = torch.isfinite(steps[:, 0])
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0, 0]) + 1
        raise TrainingDiverged(
            f"the loss must stay finite, but it is {float(steps[step - 1, 0])} "
            f"at step {step} of epoch {epoch + 1}; try a smaller train.learning_rate"
        )
    loss, correct, robust = (steps.sum(0) / rows).tolist()
    return {"loss": loss, "train_accuracy": correct, "train_robust": robust}


def _require_finite(model: Network, epoch: int, steps: int) -> None:
    """Raise `TrainingDiverged` unless all weights are finite: the loss of a step is computed before
    its update, so that only the weights show the effect of the last step."""
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise TrainingDiverged(
                f"weights must stay finite, but {name} is not after step {steps} of epoch "
                f"{epoch + 1}; try a smaller train.learning_rate"
            )


@torch.no_grad()
def _settings(spec: TrainSpec, epoch: int, objective: objectives.Objective) -> Metrics:
    """The scheduled values when `epoch` (from 0) began, and the mean curvature after it."""
    done = epoch / spec.epochs
    settings = {"learning_rate": spec.learning_rate * rate_share(spec, done)}
    if "radius" in objective.uses:
        settings["radius"] = spec.radius * ramp_share(spec, done)
    if objective.pairwise:
        settings["curvature"] = float(objective.curvature.margins(objective.network).mean())
    return settings


def _averaged(model: Network, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of the weights of `model`; None without a decay."""
    if decay is None:
        return None

    def moved(kept: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        # The memory is shorter early on, so that the first random weights are soon forgotten.
        count = torch.as_tensor(updates, dtype=torch.float64)
        memory = (count / (count + 9)).clamp(max=decay)
        return kept.lerp(new, (1 - memory).to(kept))

    average = AveragedModel(model, avg_fn=moved)
    # The average starts at the initial weights: torch copies the weights of the first call.
    average.update_parameters(model)
    return average.requires_grad_(False)
