"""Robustness of a network on a few rows during training: certified radii and an attack."""

from __future__ import annotations

from raycrt.certification.certifier import Certifier
from raycrt.data import Split
from raycrt.evaluation.accuracy import accuracy, share
from raycrt.evaluation.attacks import attack
from raycrt.networks.network import Network
from raycrt.specs import CertifySpec

# A certificate counts as exact if an attack succeeds at most this much further away, relatively.
_GAP = 1e-3
_ATTACK_STEPS, _ATTACKED_CLASSES = 20, 3


def assess(network: Network, split: Split, spec: CertifySpec) -> dict[str, float]:
    """Shares of the rows of `split`, means over them, and the tightness of their certificates.

    `clean`, predicted correctly; `certified_R` for each R of `spec.at`, predicted correctly with a
    certified radius above R; `met`, with an adversarial image at most 0.1 % further away than the
    radius, so that the certificate is exact to 0.1 %; `mean_radius`, the mean of the finite radii,
    where a wrong row counts as 0; `curvature`, the mean proved bound of the binding margins.
    """
    device = next(network.parameters()).device
    images, labels = split.images.to(device), split.labels.to(device)
    found = Certifier.of(network, spec)(images)
    attacked = attack(network, images, steps=_ATTACK_STEPS, classes=_ATTACKED_CLASSES)
    reached = accuracy(found.prediction, labels, found.radius, spec.at)
    return {
        "clean": reached.clean,
        "met": share(found.radius * (1 + _GAP) >= attacked.distance),
        **{f"certified_{r:g}": certified for r, certified in reached.certified.items()},
        "mean_radius": reached.mean_radius,
        "curvature": float(found.curvature.mean()),
    }
