"""A trial: train a configuration, and prove its certified accuracy on validation rows.

It knows nothing of Tune: what it finds goes to a `report` function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raycrt import Certifier, Network, training
from raycrt.data import Dataset, Split
from raycrt.spec import Spec
from raycrt.training import EpochEnd, State


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a network is worth after `epoch` epochs: shares of the `rows` that were certified.

    `certified` is the share of rows predicted right with a radius above `search.radius` against ALL
    classes; `mean_radius` counts a wrong row as 0; `curvature` is the mean proved bound of the
    binding margins.
    """

    certified: float
    clean: float
    mean_radius: float
    curvature: float
    parameters: int
    rows: int
    epoch: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    spec: Spec,
    dataset: Dataset,
    *,
    rows: int | None,
    rungs: tuple[int, ...] = (),
    state: State | None = None,
    report: Callable[[Measurement, EpochEnd], None] = lambda measurement, end: None,
) -> Measurement:
    """Train `spec` on the training rows and measure it on the first `rows` validation rows.

    `report` gets a measurement at each of the `rungs` and at the end, all on the same rows with the
    same solver, so that they can be compared.
    """
    began = time.monotonic()
    split = dataset.validation.take(slice(rows))
    last: list[Measurement] = []

    def at_epoch(end: EpochEnd) -> None:
        if end.epoch not in (*rungs, spec.train.epochs):
            return
        seconds = time.monotonic() - began
        last[:] = [measure(end.network, split, spec, epoch=end.epoch, seconds=seconds)]
        report(last[0], end)

    training.train(spec, dataset.train, report=at_epoch, state=state, device=_device())
    return last[0]


def measure(
    network: Network, split: Split, spec: Spec, *, epoch: int, seconds: float
) -> Measurement:
    """Certify every row of `split`, as `spec.certify` says."""
    steps, batch_size = spec.certify.steps, spec.certify.batch_size
    certifier = Certifier(network, steps=steps, batch_size=batch_size)
    found = certifier(split.images.to(_device()))
    right = found.prediction.cpu() == split.labels
    radius = torch.where(right, found.radius.cpu(), 0.0)
    return Measurement(
        certified=float((radius > spec.search.radius).double().mean()),
        clean=float(right.double().mean()),
        mean_radius=float(radius.mean()),
        curvature=float(found.curvature.mean()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        rows=len(split),
        epoch=epoch,
        seconds=seconds,
    )


def worthless(rows: int) -> Measurement:
    """The measurement of a training that came to nothing: nothing is certified."""
    return Measurement(
        certified=0.0,
        clean=0.0,
        mean_radius=0.0,
        curvature=0.0,
        parameters=0,
        rows=rows,
        epoch=0,
        seconds=0.0,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
