"""Certificates for all classes: around each image a radius in which the prediction cannot change.

The theorem speaks of the network with the stored weights evaluated in exact arithmetic. Everything
that is proved is evaluated in float64; what rounding can do to it is bounded and subtracted. The
solver only proposes points (in float32, rounded to float16): `raycrt.dual.radius` turns any point
into a valid radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from itertools import accumulate

import torch
from torch import Tensor

from raycrt import dual
from raycrt.curvature import margin_curvature
from raycrt.errors import require
from raycrt.network import Network, Trace, margin_direction
from raycrt.rounding import ErrorModel

EPS = torch.finfo(torch.float64).eps
# Stored radii are rounded down by this, relatively, so that a checker's own rounding fits below it.
_ROUND_DOWN = 1 - 1e-9


class Status(IntEnum):
    """Why a radius is what it is. Every status but CERTIFIED has radius 0."""

    CERTIFIED = 0
    NON_FINITE_INPUT = 1
    NON_FINITE_NETWORK = 2
    TIED = 3
    NO_RADIUS = 4

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Status.CERTIFIED: "No l2 perturbation below the radius changes the prediction.",
    Status.NON_FINITE_INPUT: "The image holds NaN or infinite values.",
    Status.NON_FINITE_NETWORK: "The weights, logits or curvature bounds are not finite.",
    Status.TIED: "Two classes share the largest logit, up to rounding.",
    Status.NO_RADIUS: "The bound of some margin proves nothing, up to rounding.",
}


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """Points that prove radii: `raycrt.dual.radius` at image + point, for that image and class.

    `row` and `target` (k,) say for which image and class, sorted by row, then class; `point`
    (k, features) is float16.
    """

    row: Tensor
    target: Tensor
    point: Tensor

    def moved(self, rows: int) -> Witnesses:
        """The same witnesses for images that stand `rows` further down."""
        return replace(self, row=self.row + rows)

    def sorted(self, classes: int) -> Witnesses:
        order = (self.row * classes + self.target).argsort()
        return Witnesses(row=self.row[order], target=self.target[order], point=self.point[order])

    @staticmethod
    def none(features: int, device: torch.device) -> Witnesses:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        point = torch.empty(0, features, dtype=torch.float16, device=device)
        return Witnesses(row=empty, target=empty, point=point)

    @staticmethod
    def concatenate(parts: list[Witnesses]) -> Witnesses:
        names = [f.name for f in fields(Witnesses)]
        return Witnesses(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """One entry for each image, all tensors of length n.

    `radius` float64: for every x' with |x' - x|_2 < radius the network predicts `prediction`.
    `radius_runner_up` float64: the same against the second-largest logit only, for comparison with
    the literature; it proves nothing about the prediction. `binding` is the class whose margin
    gives `radius`, `status` a `Status`. `curvature` is the bound m of the binding margin.
    `witnesses` are the points that prove what the closed form at the image does not.
    """

    radius: Tensor
    radius_runner_up: Tensor
    prediction: Tensor
    runner_up: Tensor
    binding: Tensor
    status: Tensor
    curvature: Tensor
    witnesses: Witnesses

    def __len__(self) -> int:
        return len(self.radius)

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


class Certifier:
    """A network with its proved curvature: computed once, then any number of images.

    `steps` bounds the solver's gradients for each margin (0: closed form only); `batch_size` the
    rows at a time. Results do not depend on how images are batched, but for the last bits that
    matrix products round differently: every one of them is a valid radius.
    """

    def __init__(
        self,
        network: Network,
        *,
        steps: int = 60,
        batch_size: int = 256,
        curvature: Tensor | None = None,
    ) -> None:
        require(steps >= 0, "steps >= 0", steps=steps)
        require(batch_size > 0, "batch_size > 0", batch_size=batch_size)
        self.steps, self.batch_size = steps, batch_size
        # The solver's precision. Where float32 results may be rounded further, it is float64.
        plain = torch.get_float32_matmul_precision() == "highest" and all(
            layer.sums_in_float32 for layer in network.layers
        )
        self.fast_type = torch.float32 if plain and steps > 0 else torch.float64
        self.fast = network.copied(self.fast_type)
        self.exact = network.in_float64()
        self.finite = all(bool(torch.isfinite(t).all()) for t in network.state_dict().values())
        if not self.finite:
            return
        self.curvature = margin_curvature(network) if curvature is None else curvature
        self.errors = ErrorModel.of(network)

    def __call__(self, images: Tensor) -> Certificates:
        """Certify `images` (n, ...) with pixels as the network was trained on."""
        return Certificates.concatenate(list(self.batches(images)))

    def batches(self, images: Tensor) -> Iterator[Certificates]:
        """Certificates in order, `batch_size` images at a time."""
        require(len(images) > 0, "at least one image", images=tuple(images.shape))
        flat = images.flatten(1)
        require(
            flat.shape[1] == self.exact.features,
            "features of an image == features of the network",
            image=flat.shape[1],
            network=self.exact.features,
        )
        for rows in flat.split(self.batch_size):
            yield self._certify(rows)

    @torch.no_grad()
    def _certify(self, x: Tensor) -> Certificates:
        if not self.finite:
            return _failed(x, Status.NON_FINITE_NETWORK)
        finite = torch.isfinite(x).all(1)
        x64 = torch.where(finite[:, None], x, 0.0).double()
        trace = self.exact.trace(x64)
        logits = trace.logits
        rows = torch.arange(len(x64), device=x.device)
        label, runner_up = logits.topk(2, dim=1).indices.unbind(1)
        values = logits[rows, label][:, None] - logits
        m = self.curvature.to(x.device)[label]
        length = x64.norm(dim=1) * (1 + 1e-12)
        gradients = self._gradients(trace, label)
        radii = self._closed_forms(length[:, None], values, gradients, m)
        radii[rows, label] = torch.inf
        margins = _Margins(x=x64, label=label, value=values, gradient=gradients, m=m, radius=radii)
        witnesses = self._improve(margins, runner_up)
        return _collect(margins, runner_up, witnesses, finite, torch.isfinite(logits).all(1))

    def _gradients(self, trace: Trace, label: Tensor) -> Tensor:
        """Gradients (n, classes, features) of all margins in the solver's precision."""
        slopes = [s.to(self.fast_type) for s in trace.slopes]
        eye = torch.eye(self.fast.classes, dtype=self.fast_type, device=label.device)
        first = self.fast.pull_back(slopes, eye[label] - eye[0])
        gradients = first.new_empty(len(label), len(eye), first.shape[1])
        gradients[:, 0] = first
        for target in range(1, len(eye)):
            gradients[:, target] = self.fast.pull_back(slopes, eye[label] - eye[target])
        return gradients

    def _closed_forms(self, length: Tensor, value: Tensor, gradient: Tensor, m: Tensor) -> Tensor:
        """Proved radii (n, classes) from the images themselves; `length` (n, 1) bounds |x0|.

        The closed form falls with |g| and grows with f, so bounds of both give a bound of it.
        """
        eps = torch.finfo(self.fast_type).eps
        off = self.errors.gradient(length, eps, forward_eps=EPS)
        size = torch.linalg.vector_norm(gradient, dim=2, dtype=torch.float64) * (1 + 1e-12) + off
        lowered = value - self.errors.margin(length, EPS) - 2 * EPS * value.abs()
        radius = 2 * lowered / (size + (size.square() + 2 * m * lowered).sqrt())
        return (radius * _ROUND_DOWN).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)

    def _proved(
        self,
        length: Tensor,
        value: Tensor,
        gradient: Tensor,
        m: Tensor,
        u: Tensor,
    ) -> Tensor:
        """`dual.radius` at points u, less everything that rounding can have added; >= 0.

        `length` is |x0|. The exact gradient g satisfies |g - computed| <= e, so the quadratic bound
        holds with the computed one if e |x' - x| is taken from the margin, for x' in the ball that
        is claimed. Second round: the claimed radius itself bounds that distance.
        """
        gg, gu, uu = (gradient * gradient).sum(1), (gradient * u).sum(1), (u * u).sum(1)
        # Products of n terms, each off by at most this share of the product of the lengths.
        share = (gradient.shape[1] + 8) * EPS
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        reach = (length + shift) * (1 + 1e-9)
        off_value = self.errors.margin(reach, EPS)
        off_gradient = self.errors.gradient(reach, EPS)
        optimistic = dual.radius(value, gg, gu, uu, m).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        lowered = value - off_value - off_gradient * (optimistic + 2 * shift)
        lowered = lowered - share * (2 * value.abs() + 2 * size * shift + m * uu)
        numerator = 2 * (lowered - gu) - m * uu
        # Both roots from above: what cancels in |g + m u| is added before the root is taken.
        across = gg + 2 * m * gu + m * m * uu + 2 * share * (size + m * shift).square()
        reach = gg * (1 + share) + 2 * m * value.clamp(min=0)
        radius = numerator / (across.clamp(min=0).sqrt() + reach.sqrt())
        real = gg * (1 - share) + 2 * m * lowered > 0
        radius = torch.minimum(radius, optimistic) * _ROUND_DOWN
        return torch.where(real, radius, 0.0).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)

    def _improve(self, margins: _Margins, runner_up: Tensor) -> Witnesses:
        """Raise `margins.radius` in place where a better point can raise the row's minimum.

        First the class of the smallest closed form; then those classes that could still lie below
        it, and only until they no longer do. The runner-up is solved whenever it is not bounded by
        that minimum, to be compared with certificates of the runner-up alone.
        """
        x, radii = margins.x, margins.radius
        rows = torch.arange(len(x), device=x.device)
        parts = [Witnesses.none(x.shape[1], x.device)]
        if self.steps > 0:
            first = radii.argmin(1)
            parts.append(self._solve(margins, rows, first, torch.full_like(radii[:, 0], torch.inf)))
            enough = radii[rows, first, None] * (1 + _CLEAR)
            rest = radii < enough
            rest[rows, first] = False
            rest[rows, runner_up] = runner_up != first
            enough = enough.expand_as(radii).clone()
            enough[rows, runner_up] = torch.inf
            pairs = rest.nonzero()
            for part in pairs.split(self.batch_size):
                row, target = part.unbind(1)
                parts.append(self._solve(margins, row, target, enough[row, target]))
        return Witnesses.concatenate(parts).sorted(radii.shape[1])

    def _solve(self, margins: _Margins, row: Tensor, target: Tensor, enough: Tensor) -> Witnesses:
        """Solve margins (row, target), raise their radii, and return the points that did it."""
        x, label, m = margins.x[row], margins.label[row], margins.m[row, target]
        found = dual.solve(
            self.fast,
            x.to(self.fast_type),
            label,
            target,
            m.to(self.fast_type),
            value=margins.value[row, target].to(self.fast_type),
            gradient=margins.gradient[row, target],
            enough=enough.to(self.fast_type),
            steps=self.steps,
        )
        point = found.u.half()
        u = point.double()
        trace = self.exact.trace(x + u)
        direction = margin_direction(label, target, trace.logits)
        proved = self._proved(
            x.norm(dim=1),
            (trace.logits * direction).sum(1),
            self.exact.pull_back(trace.slopes, direction),
            m,
            u,
        )
        better = proved > margins.radius[row, target]
        row, target = row[better], target[better]
        margins.radius[row, target] = proved[better]
        return Witnesses(row=row, target=target, point=point[better])


# A class whose radius exceeds the row's minimum by this, relatively, stays above it when proved.
_CLEAR = 1e-4


@dataclass(frozen=True, kw_only=True)
class _Margins:
    """All margins of a batch at its images: `value`, `m`, `radius` (n, classes) and so on."""

    x: Tensor
    label: Tensor
    value: Tensor
    gradient: Tensor
    m: Tensor
    radius: Tensor


def _collect(
    margins: _Margins,
    runner_up: Tensor,
    witnesses: Witnesses,
    finite_input: Tensor,
    finite_logits: Tensor,
) -> Certificates:
    label = margins.label
    rows = torch.arange(len(label), device=label.device)
    radius, binding = margins.radius.min(1)
    status = torch.full_like(label, int(Status.CERTIFIED))
    status[radius <= 0] = int(Status.NO_RADIUS)
    status[margins.value[rows, runner_up] <= 0] = int(Status.TIED)
    sound = finite_logits & torch.isfinite(margins.m).all(1)
    status[~sound] = int(Status.NON_FINITE_NETWORK)
    status[~finite_input] = int(Status.NON_FINITE_INPUT)
    good = status == int(Status.CERTIFIED)
    kept = good[witnesses.row]
    return Certificates(
        radius=torch.where(good, radius, 0.0),
        radius_runner_up=torch.where(good, margins.radius[rows, runner_up], 0.0),
        prediction=label,
        runner_up=runner_up,
        binding=binding,
        status=status,
        curvature=margins.m[rows, binding],
        witnesses=Witnesses(
            row=witnesses.row[kept], target=witnesses.target[kept], point=witnesses.point[kept]
        ),
    )


def _failed(x: Tensor, status: Status) -> Certificates:
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
        witnesses=Witnesses.none(x.shape[1], x.device),
    )
