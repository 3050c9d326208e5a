"""The margins of a batch of images, on their way from values and gradients to certificates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.certificate import Certificates, Status, Witnesses


@dataclass(frozen=True, kw_only=True)
class Margins:
    """All margins of a batch at its images: `value`, `m`, `radius` (n, classes) and so on.

    `length` (n,) bounds |x|, `first` (n, width) is z_1; `first_fast`, z_1 again, and the
    `slopes` above it have the solver's type. Margins that are `constant` are the same everywhere,
    infinite or not, and no point but the image says more of them.
    """

    x: Tensor
    label: Tensor
    length: Tensor
    first: Tensor
    first_fast: Tensor
    slopes: tuple[Tensor, ...]
    value: Tensor
    m: Tensor
    radius: Tensor
    constant: Tensor


def witness_points(
    witnesses: Witnesses, row: Tensor, target: Tensor, rows: int, classes: int
) -> Tensor:
    """The witness points (k, features) of margins (row, target), 0 where there is none, float64."""
    known = torch.full((rows, classes), len(witnesses.row), device=row.device)
    known[witnesses.row, witnesses.target] = torch.arange(len(witnesses.row), device=row.device)
    nothing = witnesses.point.new_zeros(1, witnesses.point.shape[1])
    return torch.cat([witnesses.point, nothing])[known[row, target]].double()


def collect(
    margins: Margins,
    runner_up: Tensor,
    witnesses: Witnesses,
    region: Tensor,
    finite_input: Tensor,
    finite_logits: Tensor,
) -> Certificates:
    """The certificates that proved margins give; rows that fail have radius 0 and a status."""
    label = margins.label
    rows = torch.arange(len(label), device=label.device)
    radius, binding = margins.radius.min(1)
    status = torch.full_like(label, int(Status.CERTIFIED))
    status[radius <= 0] = int(Status.NO_RADIUS)
    same = torch.isinf(radius)
    status[same] = int(Status.CONSTANT)
    binding = torch.where(same, runner_up, binding)
    status[margins.value[rows, runner_up] <= 0] = int(Status.TIED)
    sound = finite_logits & torch.isfinite(margins.m).all(1)
    status[~sound] = int(Status.NON_FINITE_NETWORK)
    status[~finite_input] = int(Status.NON_FINITE_INPUT)
    good = (status == int(Status.CERTIFIED)) | (status == int(Status.CONSTANT))
    kept = good[witnesses.row]
    return Certificates(
        radius=torch.where(good, radius, 0.0),
        radius_runner_up=torch.where(good, margins.radius[rows, runner_up], 0.0),
        prediction=label,
        runner_up=runner_up,
        binding=binding,
        status=status,
        curvature=margins.m[rows, binding],
        region_radius=torch.where(good, region, torch.inf),
        witnesses=witnesses.take(kept),
    )


def failed(x: Tensor, status: Status) -> Certificates:
    """Certificates that prove nothing of the images x (n, features), all for the same reason."""
    zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Certificates(
        radius=zeros,
        radius_runner_up=zeros,
        prediction=none,
        runner_up=none,
        binding=none,
        status=none + int(status),
        curvature=zeros,
        region_radius=zeros + torch.inf,
        witnesses=Witnesses.none(x.shape[1], x.device),
    )
