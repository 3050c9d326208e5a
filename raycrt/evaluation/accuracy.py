"""What a network is worth on a few rows while it trains: proved radii, held against an attack."""

from __future__ import annotations

import torch

from raycrt.certification.certificate import mean_radius
from raycrt.certification.certifier import Certifier
from raycrt.data import Split
from raycrt.evaluation.attacks import attack
from raycrt.networks.network import Network
from raycrt.spec import CertifySpec

# A certificate meets an attack that is no further away than this, relatively.
_MEETING = 1e-3
_ATTACK_STEPS, _ATTACKED_CLASSES = 20, 3


def assess(network: Network, split: Split, spec: CertifySpec) -> dict[str, float]:
    """Shares of the rows of `split`, and what their certificates rest on.

    `clean`; `certified_R` for each R of `spec.at`, predicted right with a radius above R, proved;
    `met`, the share of rows with an adversarial image no more than 0.1 % further away than their
    radius, so that the certificate is exact; `mean_radius` of the finite radii, a wrong row
    counting as 0; `curvature`, the mean proved bound of the binding margins.
    """
    device = next(network.parameters()).device
    images, labels = split.images.to(device), split.labels.to(device)
    found = Certifier.of(network, spec)(images)
    attacked = attack(network, images, steps=_ATTACK_STEPS, classes=_ATTACKED_CLASSES)
    right = found.prediction == labels
    radius = torch.where(right, found.radius, 0.0)
    met = found.radius * (1 + _MEETING) >= attacked.distance
    shares = {"clean": right, "met": met} | {f"certified_{r:g}": radius > r for r in spec.at}
    return {
        **{name: float(rows.double().mean()) for name, rows in shares.items()},
        "mean_radius": mean_radius(radius),
        "curvature": float(found.curvature.mean()),
    }
