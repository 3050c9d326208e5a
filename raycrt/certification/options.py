"""What a certifier may be asked: options that fit together, and a radius for each row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from raycrt.errors import require
from raycrt.networks.hooks import require_plain
from raycrt.networks.network import Network
from raycrt.spec import CertifySpec


def options_of(
    spec: CertifySpec, *, at: Sequence[float] | None = None, steps: int | None = None
) -> dict[str, Any]:
    """What `spec` says, as options of a certifier: `at` and `steps` in place of those stated."""
    stated = spec.at if at is None else at
    return {
        "steps": spec.steps if steps is None else steps,
        "batch_size": spec.batch_size,
        "region": spec.region,
        "at": stated if spec.region == "local" else (),
        "deployment": spec.deployment,
    }


def check_options(
    network: Network,
    *,
    steps: int,
    batch_size: int,
    region: str,
    at: Sequence[float],
    deployment: str,
) -> None:
    """`InvalidInput` where the options of a `Certifier` are none, before any work is done."""
    require_plain(network)
    require(steps >= 0, "steps >= 0", steps=steps)
    require(batch_size > 0, "batch_size > 0", batch_size=batch_size)
    require(region in ("global", "local"), "region is global or local", region=region)
    require(
        region == "local" or len(at) == 0,
        "increasing radii `at` go with region local",
        at=at,
        region=region,
    )
    require(all(a < b for a, b in pairwise((0, *at))), "at increases strictly from above 0", at=at)
    require(
        deployment == "exact"
        or (deployment == "float32" and all(n.sums_in_float32 for n in network.layers)),
        "deployment is exact, or float32 for layers that are plain sums of products",
        deployment=deployment,
    )


def radii_of_rows(at: float | Tensor, rows: int, *, all_finite: bool) -> Tensor:
    """The radius (rows,), float64, that each row is decided at: `at` is one for all, or has one for
    each. `InvalidInput` unless they are positive and, if so demanded, finite."""
    given = torch.as_tensor(at, dtype=torch.float64).detach()
    require(
        given.shape in ((), (rows,)),
        "at is one radius, or has one for each image",
        shape=tuple(given.shape),
        images=rows,
    )
    refused = given[~(given > 0)]
    require(len(refused) == 0, "at > 0", at=refused.tolist()[:1])
    require(
        not all_finite or bool(torch.isfinite(given).all()),
        "`at` has a radius if region is local",
        at=at,
    )
    return given.expand(rows)
