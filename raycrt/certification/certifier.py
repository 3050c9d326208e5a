"""Certificates for all classes: a radius around each image in which the prediction cannot change.

The theorem holds for the network with its stored weights, evaluated in exact arithmetic. Margins
and radii are evaluated in float64, gradients in float32 where their proved relative error is small;
the rounding error of each is bounded and subtracted. The solver only proposes points (stored in
float16): `raycrt.margins.proofs.radius` turns any point into a valid radius.
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
from raycrt.data.values.images import batch_of_images, fits
from raycrt.errors import require
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.floating_point import (
    float32_is_plain,
    quicken_softplus,
    require_plain_products,
)
from raycrt.networks.network import Network
from raycrt.specs import CertifySpec


class Certifier:
    """Certifies any number of images for one network, whose curvature is proved once.

    `steps` is the maximum number of solver steps per margin, in few coordinates and again in all
    pixels (0: closed form only); `batch_size` is the number of rows at a time, reduced where they
    would take more than a gigabyte. With `runner_up=False` the radius against the runner-up is not
    refined separately; `radius_runner_up` is then a valid but possibly loose lower bound. Apart
    from the last bits, where matrix products round differently, results do not depend on how images
    are batched; every radius is valid in either case.

    With more than a few classes, `examples` (n, ...), the images or similar ones, determine which
    pairs of classes get a separate curvature bound (`raycrt.bounds.curvature.margin_curvature`).

    With `region` "local", more is proved on balls around an image: its layers are enclosed
    (`raycrt.bounds.enclosure`, from three layers on), and its curvature is proved again. Each of
    the increasing `radii` that a row does not exceed is decided on a ball that extends just beyond
    it, as if it were the only one, and the ball that proves the largest radius is searched; a row
    keeps the best. Balls of curvature are searched where curvature everywhere proves at least
    `tolerances.curved` of what an enclosure does. For rows certified at their own radius `at`, one
    ball just beyond it decides.

    With `deployment` "float32" the theorem holds for the logits as float32 arithmetic computes
    them, at every float32 input closer than the radius: sums in any order, with or without fused
    multiply-add, rounding to nearest, library functions accurate to a few units in the last place;
    no products of reduced precision (TF32, bfloat16) and no fast transforms. The float32 rounding
    error on the whole ball is then subtracted from the margins as well.
    """

    def __init__(
        self,
        network: Network,
        *,
        steps: int = Options.steps,
        batch_size: int = Options.batch_size,
        curvature: Tensor | None = None,
        examples: Tensor | None = None,
        region: str = Options.region,
        radii: Sequence[float] = Options.radii,
        deployment: str = Options.deployment,
        runner_up: bool = Options.runner_up,
        tolerances: Tolerances = Options.tolerances,
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
        require_plain_products(network.device)
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
        """The certifier that `spec` describes for `network`, shared by training, search and
        certification.

        `radii` and `steps` override those of `spec`; `curvature` is the network's proved margin
        curvature, if already known.
        """
        return cls(network, curvature=curvature, **vars(Options.of(spec, radii=radii, steps=steps)))

    def __call__(self, images: Tensor, at: float | Tensor | Sequence[float] = inf) -> Certificates:
        """Certify `images` (n, ...), with pixels scaled as in training.

        `at` is the radius to decide, one for all images or one for each (n,). Work on an image
        stops once `radius > at` is decided (`Certificates.certified_at`); its radius is then valid
        but not necessarily the largest provable. Infinity requests the largest. The decision agrees
        with that of an infinite `at`, except for rows whose radius there is within the solver's
        tolerance of `at`.
        """
        images = batch_of_images(images)
        with torch.autocast(images.device.type, enabled=False):
            return Certificates.concatenate(list(self.batches(images, at)))

    def batches(
        self, images: Tensor, at: float | Tensor | Sequence[float] = inf
    ) -> Iterator[Certificates]:
        """Certificates in order, `batch_size` images at a time."""
        images = fits(batch_of_images(images), features=self.features, device=self.device)
        at = radii_of_rows(at, len(images)).to(images.device)
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
