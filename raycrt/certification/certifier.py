"""Certificates for all classes: around each image a radius in which the prediction cannot change.

The theorem speaks of the network with the stored weights evaluated in exact arithmetic. Margins and
radii are evaluated in float64, gradients in float32 where their proved error is small beside them;
what rounding can do to each is bounded and subtracted. The solver only proposes points (kept in
float16): `raycrt.margins.radius` turns any point into a valid radius.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import torch
from torch import Tensor

from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.error_tables import Bounds
from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.rounding import ErrorModel, Slack, root_upper, squares
from raycrt.certification.certificate import Certificates, Margins, Status, collect, failed
from raycrt.certification.local import Balls
from raycrt.certification.options import check_options, options_of, radii_of_rows
from raycrt.certification.targets import Solver
from raycrt.data.images import batch_of_images, fits
from raycrt.errors import require
from raycrt.margins.constant import constant_margins
from raycrt.margins.prepared import Arithmetic
from raycrt.margins.proof import Prover
from raycrt.networks.floating_point import float32_is_plain, quicken_softplus
from raycrt.networks.network import Network
from raycrt.spec import CertifySpec


class Certifier:
    """A network with its proved curvature: computed once, then any number of images.

    `steps` bounds the solver's steps for each margin, in few coordinates and again in all pixels
    (0: closed form only); `batch_size` the rows at a time, fewer where they would take more than a
    gigabyte. Without `runner_up` that class is not solved for its own sake, and the radii against
    it alone are only as good as those of all classes need. Results do not depend on how
    images are batched, but for the last bits that matrix products round differently: every one of
    them is a valid radius.

    With more than a few classes, `examples` (n, ...), the images or others like them, say which
    pairs of classes get a curvature of their own (`raycrt.bounds.curvature.margin_curvature`).

    With `region` "local", rows whose radius does not exceed each of the increasing radii `at` get
    their curvature proved again on balls that just reach beyond these radii, or to where the solver
    met the decision boundary: each radius is decided as if it were the only one, and a row keeps
    the ball that proves most. Rows that are certified at a radius of their own have that in place
    of these.

    With `deployment` "float32" the theorem speaks of the logits as float32 arithmetic computes
    them: for every float32 input nearer than the radius, sums in any order, with or without fused
    multiply-add, rounding to nearest, library functions right to a few units in the last place; no
    product of reduced precision (TF32, bfloat16) and no fast transform. The float32 rounding on the
    whole ball is then taken off the margins too.
    """

    def __init__(
        self,
        network: Network,
        *,
        steps: int = 60,
        batch_size: int = 256,
        curvature: Tensor | None = None,
        examples: Tensor | None = None,
        region: str = "global",
        at: Sequence[float] = (),
        deployment: str = "exact",
        runner_up: bool = True,
    ) -> None:
        check_options(
            network,
            steps=steps,
            batch_size=batch_size,
            region=region,
            at=at,
            deployment=deployment,
        )
        self.batch_size = batch_size
        self.features, self.device = network.features, network.device
        self.bounded = network.bounded()
        self.balls: Balls | None = None
        if not self.bounded:
            return
        self.masked = network.masked()
        network = network.unmasked()
        self.constant = (constant_margins(network) | self.masked).fill_diagonal_(False)
        self.curvature = margin_curvature(network, examples) if curvature is None else curvature
        deployed = torch.float32 if deployment == "float32" else None
        prover = Prover(errors=ErrorModel.of(network), deployed=deployed)
        # Where float32 results may be rounded further, the solver works in float64.
        plain = float32_is_plain() and all(layer.sums_in_float32 for layer in network.layers)
        dtype = torch.float32 if plain and steps > 0 else torch.float64
        self.by = Arithmetic.of(network, dtype, self.curvature, prover)
        self.batch_size = min(batch_size, self._rows_in_memory())
        self.solver = Solver(
            by=self.by,
            steps=steps,
            batch_size=self.batch_size,
            runner_up=runner_up,
            decided=region != "local",
        )
        if region == "local":
            self.balls = Balls(
                local=LocalCurvature.of(network, prover.errors),
                at=torch.tensor(at, dtype=torch.float64),
                exact=self.by.exact,
                readout=self.by.exact_readout,
                prover=prover,
                bounds=Bounds.of(prover.errors, Slack.plain(network.features)),
                search=self.solver.points,
                batch_size=self.batch_size,
            )

    @classmethod
    def of(
        cls,
        network: Network,
        spec: CertifySpec,
        *,
        at: Sequence[float] | None = None,
        steps: int | None = None,
        curvature: Tensor | None = None,
    ) -> Certifier:
        """What `spec` says, for `network`: the one meaning that a spec has in training, search and
        certification.

        `at` are the radii to be decided in place of those stated, `steps` the solver's in place of
        those stated, `curvature` the network's proved margin curvature, if it is known.
        """
        return cls(network, curvature=curvature, **options_of(spec, at=at, steps=steps))

    @property
    def needs_radii(self) -> bool:
        """Whether every row must come with a radius to be decided at: none was stated for balls."""
        return self.balls is not None and len(self.balls.at) == 0

    def __call__(self, images: Tensor, at: float | Tensor = inf) -> Certificates:
        """Certify `images` (n, ...) with pixels as the network was trained on.

        `at`, one radius or one for each image (n,), is what is to be decided: whether a row's
        radius exceeds it (`Certificates.certified_at`). The work on a row stops where that is
        known, and its radius, still proved, may then lie below what could be proved. Infinity asks
        for all that can be. The decision is that of an infinite `at`, but for rows whose radius
        there is within the solver's tolerance of `at`.
        """
        images = batch_of_images(images)
        with torch.autocast(images.device.type, enabled=False):
            return Certificates.concatenate(list(self.batches(images, at)))

    def batches(self, images: Tensor, at: float | Tensor = inf) -> Iterator[Certificates]:
        """Certificates in order, `batch_size` images at a time."""
        images = fits(batch_of_images(images), features=self.features, device=self.device)
        at = radii_of_rows(at, len(images), all_finite=self.needs_radii).to(images.device)
        flat = images.flatten(1)
        require(
            not self.bounded or self.by.fast.dtype == torch.float64 or float32_is_plain(),
            "float32 products are as exact as when the certifier was made",
            plain=False,
        )
        quicken_softplus()
        parts = zip(flat.split(self.batch_size), at.split(self.batch_size), strict=True)
        for rows, radii in parts:
            yield self._certify(rows, radii)

    def _rows_in_memory(self) -> int:
        """Rows whose iterates in the solver and whose proofs fit the memory budget."""
        exact = self.by.exact
        widest = max(layer.out_features for layer in exact.layers)
        numbers = 12 * exact.features + 8 * exact.depth * widest
        if self.by.pairs is not None:
            # Of the first directions, for all classes at once.
            numbers += self.by.pairs.products.shape[2]
        return max(1, _MEMORY // (8 * numbers))

    @torch.no_grad()
    def _certify(self, x: Tensor, at: Tensor) -> Certificates:
        with torch.autocast(x.device.type, enabled=False):
            return self._certify_exactly(x, at)

    def _certify_exactly(self, x: Tensor, at: Tensor) -> Certificates:
        if not self.bounded:
            return failed(x, Status.NON_FINITE_NETWORK)
        x64 = x.double()
        # False where the sum is infinite or NaN.
        square = squares(x64)
        finite = square < _LARGEST**2
        if not finite.all():
            x64 = torch.where(finite[:, None], x64, 0.0)
            square = squares(x64)
        first = self.by.space.first(x64)
        trace = self.by.exact.trace_above(first, self.by.fast.dtype)
        finite_logits = torch.isfinite(trace.logits).all(1)
        logits = trace.logits.masked_fill(self.masked.to(x.device), -torch.inf)
        rows = torch.arange(len(x64), device=x.device)
        label, runner_up = logits.topk(2, dim=1).indices.unbind(1)
        values = logits[rows, label][:, None] - logits
        m = self.curvature.to(x.device)[label]
        length = root_upper(square, x64.shape[1])
        sizes = self.by.lengths(trace.slopes, label, length)
        at_images = label, length[:, None], values
        prover, slack = self.by.prover, self.by.space.slack
        radii = prover.closed_forms(*at_images, sizes, m, slack)
        constant = self.constant.to(x.device)[label]
        if constant.any():
            radii = torch.where(constant, prover.constants(*at_images, slack), radii)
        radii[rows, label] = torch.inf
        margins = Margins(
            x=x64,
            label=label,
            length=length,
            first=first,
            first_fast=first.to(self.by.fast.dtype),
            slopes=trace.slopes,
            value=values,
            m=m,
            radius=radii,
            constant=constant,
        )
        witnesses = self.solver.improve(margins, runner_up, at)
        region = torch.full_like(length, torch.inf)
        if self.balls is not None:
            witnesses = self.balls.raise_radii(margins, witnesses, region, at)
        return collect(margins, runner_up, witnesses, region, finite, finite_logits)


# Bytes that a batch may take, whatever its size: larger ones are cut.
_MEMORY = 2**30
# Images that are longer are refused as infinite: their squares may overflow.
_LARGEST = 1e100
