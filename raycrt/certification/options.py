"""Consistent options of a certifier, and the radius to decide for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from raycrt.errors import require
from raycrt.margins.tolerances import TOLERANCES, Tolerances
from raycrt.networks.hooks import require_plain
from raycrt.networks.network import Network
from raycrt.specs import CertifySpec


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a certifier, as documented in `raycrt.Certifier`."""

    steps: int = 60
    batch_size: int = 256
    region: str = "global"
    radii: Sequence[float] = ()
    deployment: str = "exact"
    runner_up: bool = True
    tolerances: Tolerances = TOLERANCES

    @staticmethod
    def of(
        spec: CertifySpec, *, radii: Sequence[float] | None = None, steps: int | None = None
    ) -> Options:
        """The options that `spec` states, with `radii` and `steps` as overrides."""
        stated = spec.at if radii is None else radii
        return Options(
            steps=spec.steps if steps is None else steps,
            batch_size=spec.batch_size,
            region=spec.region,
            radii=stated if spec.region == "local" else (),
            deployment=spec.deployment,
        )

    def check(self, network: Network) -> None:
        """Raise `InvalidInput` if `network` cannot be certified with these options."""
        require_plain(network)
        require(self.steps >= 0, "steps >= 0", steps=self.steps)
        require(self.batch_size > 0, "batch_size > 0", batch_size=self.batch_size)
        require(self.region in ("global", "local"), "region is global or local", region=self.region)
        require(
            self.region == "local" or len(self.radii) == 0,
            "radii that balls are to prove go with region local",
            radii=self.radii,
            region=self.region,
        )
        increasing = all(a < b for a, b in pairwise((0, *self.radii)))
        require(increasing, "radii increase strictly from above 0", radii=self.radii)
        plain = all(layer.sums_in_float32 for layer in network.layers)
        require(
            self.deployment == "exact" or (self.deployment == "float32" and plain),
            "deployment is exact, or float32 for layers that are plain sums of products",
            deployment=self.deployment,
        )


def radii_of_rows(at: float | Tensor | Sequence[float], rows: int) -> Tensor:
    """The radius (rows,), float64, to decide for each row; `at` is one for all or one per row.

    Raises `InvalidInput` unless the radii are positive."""
    given = torch.as_tensor(at, dtype=torch.float64).detach()
    require(
        given.shape in ((), (rows,)),
        "at is one radius to decide, or has one for each image",
        shape=tuple(given.shape),
        images=rows,
    )
    refused = given[~(given > 0)]
    require(len(refused) == 0, "at > 0", at=refused.tolist()[:1])
    return given.expand(rows)
