"""A trial: train a configuration, and prove its certified accuracy on validation rows.

It does not depend on Tune: measurements are passed to a `report` function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raycrt import Certifier, Network
from raycrt.data import Dataset, Split
from raycrt.evaluation.accuracy import accuracy
from raycrt.specs import Spec
from raycrt.system import devices
from raycrt.training import loop
from raycrt.training.loop import EpochEnd, State

# The measurement that is maximised.
METRIC = "certified"
# Steps of the solver at a rung. They rank trials as well as 60 steps do; the closed form alone does
# not (docs/searching.md).
_RUNG_STEPS = 5
# Prefix of the share certified at one radius, as a study keeps it: "certified_at/0.5".
AT = "certified_at/"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The accuracy of a network after `epoch` epochs, as shares of the `rows` it was measured on.

    `certified_at` maps each of `search.radius` to the share of rows predicted correctly with a
    larger proved radius against ALL classes, `certified` is their mean; `mean_radius` is that of
    finite radii and counts a wrong row as 0; `curvature` is the mean proved bound of the binding
    margins.
    """

    certified: float
    certified_at: dict[float, float]
    clean: float
    mean_radius: float
    curvature: float
    parameters: int
    rows: int
    epoch: int
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary, as Tune and a study store it: `certified_at/0.5` for each radius."""
        values = asdict(self)
        certified_at = values.pop("certified_at")
        shares = {f"{AT}{radius:g}": share for radius, share in certified_at.items()}
        return {**values, **shares}

    @staticmethod
    def of(values: dict[str, Any]) -> Measurement:
        """The measurement in `values` as `as_dict` returns it; other keys are ignored."""
        known = {f.name: values[f.name] for f in fields(Measurement) if f.name in values}
        shares = {float(n.removeprefix(AT)): v for n, v in values.items() if n.startswith(AT)}
        return Measurement(**known, certified_at=shares)


def evaluate(
    spec: Spec,
    dataset: Dataset,
    *,
    state: State | None = None,
    report: Callable[[Measurement, EpochEnd], None] = lambda measured, end: None,
) -> Measurement:
    """Train `spec` on the training rows; return the final measurement, on validation rows.

    `report` gets a measurement at each of `search.rungs` and at the end (see `judge`).
    """
    began = time.monotonic()
    last: list[Measurement] = []

    def at_epoch(end: EpochEnd) -> None:
        measured = judge(end, spec, dataset.validation)
        if measured is not None:
            last[:] = [replace(measured, seconds=time.monotonic() - began)]
            report(last[0], end)

    device = devices.of(spec.run.gpus_per_worker)
    loop.train(spec, dataset.train, report=at_epoch, state=state, device=device)
    return last[0]


def judge(end: EpochEnd, spec: Spec, validation: Split) -> Measurement | None:
    """The measurement of a trial after an epoch; None between rungs.

    At the end it is taken on the first `search.rows` of the `validation` rows, as `spec.certify`
    states. At a rung it is taken on the first `search.rung_rows` of these with a few steps of the
    solver, a lower bound of what all steps certify. Rungs are compared only with rungs, and ends
    with ends.
    """
    plan = spec.search
    if end.epoch == spec.train.epochs:
        rows, steps = plan.rows, spec.certify.steps
    elif end.epoch in plan.rungs:
        rows, steps = plan.rung_rows or plan.rows, min(_RUNG_STEPS, spec.certify.steps)
    else:
        return None
    return measure(end.network, validation.take(slice(rows)), spec, steps=steps, epoch=end.epoch)


def measure(network: Network, split: Split, spec: Spec, *, steps: int, epoch: int) -> Measurement:
    """Certify every row of `split` as `spec.certify` states, with `steps` steps of the solver (0:
    closed form), for the radii of the search."""
    certifier = Certifier.of(network, spec.certify, radii=spec.search.radii, steps=steps)
    found = certifier(split.images.to(next(network.parameters()).device))
    prediction, radius = found.prediction.cpu(), found.radius.cpu()
    reached = accuracy(prediction, split.labels, radius, spec.search.radii)
    return Measurement(
        certified=sum(reached.certified.values()) / len(reached.certified),
        certified_at=reached.certified,
        clean=reached.clean,
        mean_radius=reached.mean_radius,
        curvature=float(found.curvature.mean()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        rows=len(split),
        epoch=epoch,
    )


def nothing_certified(spec: Spec, rows: int) -> Measurement:
    """The measurement of a training that diverged: all shares are 0."""
    return Measurement(
        certified=0.0,
        certified_at=dict.fromkeys(spec.search.radii, 0.0),
        clean=0.0,
        mean_radius=0.0,
        curvature=0.0,
        parameters=0,
        rows=rows,
        epoch=0,
    )
