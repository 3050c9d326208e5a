"""Certificates: radii with their status, and the witnesses that prove them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from itertools import accumulate

import torch
from torch import Tensor

from raycrt.margins.images import Margins


class Status(IntEnum):
    """The reason for a radius: it is positive if CERTIFIED, infinite if CONSTANT, else 0."""

    CERTIFIED = 0
    NON_FINITE_INPUT = 1
    NON_FINITE_NETWORK = 2
    TIED = 3
    NO_RADIUS = 4
    CONSTANT = 5

    @property
    def sentence(self) -> str:
        """The meaning of this status for a row, in one sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CERTIFIED: "No l2 perturbation below the radius changes the prediction.",
    Status.NON_FINITE_INPUT: "The image holds NaN or infinite values.",
    Status.NON_FINITE_NETWORK: "The weights, logits or curvature bounds are not finite.",
    Status.TIED: "Two classes share the largest logit, up to rounding.",
    Status.NO_RADIUS: "The bound of some margin proves nothing, up to rounding.",
    Status.CONSTANT: "The prediction is the same for every input.",
}


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """Points that prove radii: `margins.proofs.radius` at image + point, for that image and class.

    `row` and `target` (k,) index the image and class, sorted by row, then class; `point`
    (k, features) is float16; `curvature` (k,) float64 is the m with which the radius was proved.
    Values, gradients and the dual multiplier are not stored: they follow from these.
    """

    row: Tensor
    target: Tensor
    point: Tensor
    curvature: Tensor

    def moved(self, rows: int) -> Witnesses:
        """The same witnesses with their row indices shifted by `rows`."""
        return replace(self, row=self.row + rows)

    def sorted(self, classes: int) -> Witnesses:
        return self.take((self.row * classes + self.target).argsort())

    def take(self, chosen: Tensor) -> Witnesses:
        """The witnesses selected by an index tensor or a boolean mask."""
        return Witnesses(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    @staticmethod
    def none(features: int, device: torch.device) -> Witnesses:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        point = torch.empty(0, features, dtype=torch.float16, device=device)
        return Witnesses(row=empty, target=empty, point=point, curvature=empty.double())

    @staticmethod
    def concatenate(parts: list[Witnesses]) -> Witnesses:
        names = [f.name for f in fields(Witnesses)]
        return Witnesses(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Certificates of n images; all tensors have length n.

    `radius` float64: for every x' with |x' - x|_2 < radius the network predicts `prediction`.
    `radius_runner_up` float64: the same against the second-largest logit only, for comparison with
    the literature; it proves nothing about the prediction. `binding` is the class whose margin
    gives `radius`, and `status` a `Status`. The radius against a class that is never predicted, or
    whose margin does not depend on the input, is infinite. `curvature` is the global bound m for
    the binding margin.
    `witnesses` are the points that prove what the closed form at the image does not. Where
    `region_radius` is finite, the curvatures of the row's witnesses hold on the ball of that radius
    around the image, which contains the points and the certified ball; else they hold on all
    inputs. Where `enclosure_radius` is positive, enclosures of the layers on the ball of that
    radius prove the classes that nothing else proves up to `radius`.
    """

    radius: Tensor
    radius_runner_up: Tensor
    prediction: Tensor
    runner_up: Tensor
    binding: Tensor
    status: Tensor
    curvature: Tensor
    region_radius: Tensor
    enclosure_radius: Tensor
    witnesses: Witnesses

    def __len__(self) -> int:
        return len(self.radius)

    def certified_at(self, at: float | Tensor) -> Tensor:
        """Whether the radius exceeds `at`, one number or one for each image (n,): bool (n,)."""
        return self.radius > torch.as_tensor(at, dtype=torch.float64, device=self.radius.device)

    def statuses(self) -> dict[Status, int]:
        """The number of images with each `Status` that occurs, in the order of `Status`."""
        return {Status(s): n for s, n in sorted(Counter(self.status.tolist()).items())}

    @staticmethod
    def concatenate(parts: list[Certificates]) -> Certificates:
        """The certificates of several batches of images, in order."""
        names = [f.name for f in fields(Certificates) if f.name != "witnesses"]
        starts = accumulate((len(part) for part in parts[:-1]), initial=0)
        moved = [part.witnesses.moved(start) for part, start in zip(parts, starts, strict=True)]
        return Certificates(
            **{n: torch.cat([getattr(p, n) for p in parts]) for n in names},
            witnesses=Witnesses.concatenate(moved),
        )


def witness_points(
    witnesses: Witnesses, row: Tensor, target: Tensor, rows: int, classes: int
) -> Tensor:
    """Witness points (k, features) of margins (row, target) in float64; 0 where there is none."""
    known = torch.full((rows, classes), len(witnesses.row), device=row.device)
    known[witnesses.row, witnesses.target] = torch.arange(len(witnesses.row), device=row.device)
    nothing = witnesses.point.new_zeros(1, witnesses.point.shape[1])
    return torch.cat([witnesses.point, nothing])[known[row, target]].double()


def collect(
    margins: Margins, witnesses: Witnesses, region: Tensor, enclosed: Tensor
) -> Certificates:
    """The certificates that follow from proved margins; failed rows get radius 0 and a status."""
    label, runner_up = margins.label, margins.runner_up
    rows = torch.arange(len(label), device=label.device)
    radius, binding = margins.radius.min(1)
    status = torch.full_like(label, int(Status.CERTIFIED))
    status[radius <= 0] = int(Status.NO_RADIUS)
    same = torch.isinf(radius)
    status[same] = int(Status.CONSTANT)
    binding = torch.where(same, runner_up, binding)
    status[margins.value[rows, runner_up] <= 0] = int(Status.TIED)
    sound = margins.finite_logits & torch.isfinite(margins.m).all(1)
    status[~sound] = int(Status.NON_FINITE_NETWORK)
    status[~margins.finite_input] = int(Status.NON_FINITE_INPUT)
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
        enclosure_radius=torch.where(good, enclosed, 0.0),
        witnesses=witnesses.take(kept),
    )


def failed(x: Tensor, status: Status) -> Certificates:
    """Certificates of radius 0 for images x (n, features), all with the same `status`."""
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
        enclosure_radius=zeros,
        witnesses=Witnesses.none(x.shape[1], x.device),
    )
