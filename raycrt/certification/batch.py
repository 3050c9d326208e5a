"""Certification of one batch of images: closed forms, then points, then balls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.certification.certificate import Certificates, collect
from raycrt.certification.enclosures import Enclosures
from raycrt.certification.local import Balls
from raycrt.certification.options import Options
from raycrt.certification.targets import Targets
from raycrt.margins.constant import constant_margins
from raycrt.margins.images import margins_at_images
from raycrt.margins.prepared import PreparedNetwork
from raycrt.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class BatchCertifier:
    """A network whose weights are `bounded`, with everything that is proved once per network.

    `curvature` (classes, classes) is that of its margins, `masked` (classes,) marks the classes
    that are never predicted, and `constant` (classes, classes) the margins that do not depend on
    the input.
    """

    prepared: PreparedNetwork
    curvature: Tensor
    masked: Tensor
    constant: Tensor
    targets: Targets
    balls: Balls | None

    @staticmethod
    def of(network: Network, curvature: Tensor, options: Options) -> BatchCertifier:
        """`curvature` (classes, classes) is the proved curvature of the margins of `network`."""
        masked = network.masked()
        network = network.unmasked()
        prepared = PreparedNetwork.of(
            network,
            curvature,
            tolerances=options.tolerances,
            solves=options.steps > 0,
            deployed=torch.float32 if options.deployment == "float32" else None,
        )
        targets = Targets(
            prepared=prepared,
            steps=options.steps,
            batch_size=min(options.batch_size, _rows_in_memory(prepared)),
            runner_up=options.runner_up,
            decided=options.region != "local",
        )
        balls = None
        if options.region == "local":
            curvature_on_balls = LocalCurvature.of(network, prepared.proof.errors)
            enclosures = None
            if curvature_on_balls.enclosure is not None:
                enclosures = Enclosures(
                    enclosure=curvature_on_balls.enclosure,
                    proof=prepared.proof,
                    tolerances=prepared.tolerances,
                )
            balls = Balls(
                curvature=curvature_on_balls,
                enclosures=enclosures,
                stated=torch.tensor(options.radii, dtype=torch.float64),
                targets=targets,
            )
        return BatchCertifier(
            prepared=prepared,
            curvature=curvature,
            masked=masked,
            constant=(constant_margins(network) | masked).fill_diagonal_(False),
            targets=targets,
            balls=balls,
        )

    @property
    def batch_size(self) -> int:
        return self.targets.batch_size

    @property
    def in_float64(self) -> bool:
        """Whether everything is computed in float64."""
        return self.prepared.fast.dtype == torch.float64

    @torch.no_grad()
    def __call__(self, x: Tensor, at: Tensor) -> Certificates:
        """Certificates for images x (n, features), each decided at its radius `at` (n,)."""
        with torch.autocast(x.device.type, enabled=False):
            margins = margins_at_images(
                self.prepared, x, self.curvature, self.masked, self.constant
            )
            witnesses = self.targets.improve(margins, at)
            region = torch.full_like(margins.image_norm, torch.inf)
            enclosed = torch.zeros_like(region)
            if self.balls is not None:
                witnesses = self.balls.raise_radii(margins, witnesses, region, enclosed, at)
            return collect(margins, witnesses, region, enclosed)


def _rows_in_memory(prepared: PreparedNetwork) -> int:
    """Number of rows whose solver iterates and proofs fit the memory budget."""
    exact = prepared.exact
    widest = max(layer.out_features for layer in exact.layers)
    numbers = 12 * exact.features + 8 * exact.depth * widest
    if prepared.pairs is not None:
        # Products with the leading directions, for all classes at once.
        numbers += prepared.pairs.products.shape[2]
    return max(1, prepared.tolerances.memory // (8 * numbers))
