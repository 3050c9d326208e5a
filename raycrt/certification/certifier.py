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
from raycrt.certification.batch import BatchCertifier
from raycrt.certification.certificate import Certificates, Status, failed
from raycrt.certification.options import Options, radii_of_rows
from raycrt.data.images import batch_of_images, fits
from raycrt.errors import require
from raycrt.margins.tolerances import TOLERANCES, Tolerances
from raycrt.networks.floating_point import float32_is_plain, quicken_softplus
from raycrt.networks.network import Network
from raycrt.specs import CertifySpec


class Certifier:
    """A network with its proved curvature: computed once, then any number of images.

    `steps` bounds the solver's steps for each margin, in few coordinates and again in all pixels
    (0: closed form only); `batch_size` the rows at a time, fewer where they would take more than a
    gigabyte. With `runner_up=False` the radius against the runner-up is not refined separately;
    `radius_runner_up` is then a valid but possibly loose lower bound. Results do not depend on how
    images are batched, but for the last bits that matrix products round differently: every one of
    them is a valid radius.

    With more than a few classes, `examples` (n, ...), the images or others like them, say which
    pairs of classes get a curvature of their own (`raycrt.bounds.curvature.margin_curvature`).

    With `region` "local", rows whose radius does not exceed each of the increasing `radii` get
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
        radii: Sequence[float] = (),
        deployment: str = "exact",
        runner_up: bool = True,
        tolerances: Tolerances = TOLERANCES,
    ) -> None:
        self.options = Options(
            steps=steps,
            batch_size=batch_size,
            region=region,
            radii=radii,
            deployment=deployment,
            runner_up=runner_up,
            tolerances=tolerances,
        )
        self.options.check(network)
        self.features, self.device = network.features, network.device
        self.curvature = margin_curvature(network, examples) if curvature is None else curvature
        self.batch: BatchCertifier | None = None
        if network.bounded():
            self.batch = BatchCertifier.of(network, self.curvature, self.options)
        self.batch_size = self.batch.batch_size if self.batch else batch_size

    @classmethod
    def of(
        cls,
        network: Network,
        spec: CertifySpec,
        *,
        radii: Sequence[float] | None = None,
        steps: int | None = None,
        curvature: Tensor | None = None,
    ) -> Certifier:
        """What `spec` says, for `network`: the one meaning that a spec has in training, search and
        certification.

        `radii` are those to be decided in place of those stated, `steps` the solver's in place of
        those stated, `curvature` the network's proved margin curvature, if it is known.
        """
        return cls(network, curvature=curvature, **vars(Options.of(spec, radii=radii, steps=steps)))

    def __call__(self, images: Tensor, at: float | Tensor | Sequence[float] = inf) -> Certificates:
        """Certify `images` (n, ...) with pixels as the network was trained on.

        `at`, one radius or one for each image (n,), is the radius to decide. Work on an image stops
        once `radius > at` is decided (`Certificates.certified_at`); its radius is then valid but
        not necessarily the largest provable. Infinity asks for the largest. The decision is that of
        an infinite `at`, except for rows whose radius there is within the solver's tolerance of
        `at`.
        """
        images = batch_of_images(images)
        with torch.autocast(images.device.type, enabled=False):
            return Certificates.concatenate(list(self.batches(images, at)))

    def batches(
        self, images: Tensor, at: float | Tensor | Sequence[float] = inf
    ) -> Iterator[Certificates]:
        """Certificates in order, `batch_size` images at a time."""
        images = fits(batch_of_images(images), features=self.features, device=self.device)
        at = radii_of_rows(at, len(images), all_finite=self.options.needs_finite_at).to(
            images.device
        )
        require(
            self.batch is None or self.batch.in_float64 or float32_is_plain(),
            "float32 products are as exact as when the certifier was made",
            plain=False,
        )
        quicken_softplus()
        flat = images.flatten(1)
        parts = zip(flat.split(self.batch_size), at.split(self.batch_size), strict=True)
        for rows, radii in parts:
            if self.batch is None:
                yield failed(rows, Status.NON_FINITE_NETWORK)
            else:
                yield self.batch(rows, radii)
