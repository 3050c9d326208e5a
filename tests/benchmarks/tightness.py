"""What each bound of the curvature brings: a Markdown table over networks of 2 to 6 layers.

    python -m tests.benchmarks.tightness [--depths 2 3 4 5 6] [--rows N] [--out FILE]

Trains a small network of each depth and certifies test images with one bound after the other. The
weaker bounds are written here, in float64 and without the proofs of `raycrt.bounds.curvature`: they
are there to be compared with. `m` is the mean over the rows' runner-up margins, the radius is
certified against all classes. Uses MNIST where RAYCRT_DATA names it, else scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raycrt import Certifier, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.networks.network import Network
from raycrt.specs import Spec, validate
from raycrt.training import loop

Margin = Callable[[Network, int, int], float]
AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.25, 1.58, 2.0)


def spec_of(depth: int, limit: int) -> Spec:
    """The network of the table's row for `depth`."""
    mnist = "RAYCRT_DATA" in os.environ
    return validate(
        {
            "model": {"depth": depth, "width": 128 if mnist else 64},
            "train": {
                "epochs": 5 if mnist else 24,
                "batch_size": 64,
                # Deep networks of this size learn nothing at larger radii.
                "radius": 0.1,
                "ramp": 0.5,
                "learning_rate": 2e-3,
                "targets": 2,
            },
            "data": {"name": "mnist" if mnist else "digits", "limit": limit},
            "certify": {"at": AT},
        }
    )


class Pieces:
    """Norms and ranges of a network that the bounds below are made of, in float64."""

    def __init__(self, network: Network) -> None:
        network = network.in_float64()
        self.weights = [layer.matrix() for layer in network.layers]
        self.slopes, self.bends = network.activation.slope_range, network.activation.curvature_range
        self.steepest = network.activation.slope_bound
        self.bend = network.activation.curvature_bound
        self.norms = [_norm(w) for w in self.weights]
        # |J_k| as the product of norms, as in the paper.
        self.lipschitz = [self.norms[0]]
        for norm in self.norms[1:-1]:
            self.lipschitz.append(norm * self.steepest * self.lipschitz[-1])
        self.middle, self.deviation = sum(self.slopes) / 2, (self.slopes[1] - self.slopes[0]) / 2
        self.averaged = [self.norms[0]]
        for k in range(1, len(self.norms) - 1):
            self.averaged.append(self.through(torch.ones(len(self.weights[k])).double(), k))

    def through(self, p: Tensor, k: int) -> float:
        """|diag(p)^(1/2) J_k| with averaged operators (see raycrt.bounds.global_curvature)."""
        matrix = p.sqrt()[:, None] * self.weights[k]
        total = 0.0
        scale = 1.0
        for j in range(k - 1, -1, -1):
            total += scale * self.deviation * _norm(matrix) * self.averaged[j]
            matrix, scale = matrix @ self.weights[j], scale * self.middle
        return total + scale * _norm(matrix)

    def gradients(self, y: int, t: int, signed: bool) -> list[tuple[Tensor, Tensor]]:
        """Elementwise intervals of F_k for every hidden layer; without signs, symmetric."""
        last = self.weights[-1][y] - self.weights[-1][t]
        low, high = (last, last) if signed else (-last.abs(), last.abs())
        found = [(low, high)]
        for weight in self.weights[-2:0:-1]:
            ends = torch.stack([s * f for s in self.slopes for f in (low, high)])
            low, high = ends.amin(0), ends.amax(0)
            middle, reach = (low + high) / 2 @ weight, (high - low) / 2 @ weight.abs()
            low, high = middle - reach, middle + reach
            found.insert(0, (low, high))
        return found

    def weighted(self, k: int, low: Tensor, high: Tensor) -> Tensor:
        """p_k >= -F_k s'' and >= 0."""
        ends = torch.stack([-f * s for f in (low, high) for s in self.bends])
        return ends.amax(0).clamp(min=0)


def published(network: Network, pieces: Pieces, y: int, t: int) -> float:
    """The paper's: Theorem 3 with two layers, else Theorem 4 elementwise with absolute values."""
    if len(pieces.weights) == 2:
        return interval(network, pieces, y, t)
    return _products_of_norms(pieces, pieces.gradients(y, t, signed=False))


def interval(network: Network, pieces: Pieces, y: int, t: int) -> float:
    """Interval propagation with signs; Jacobians still as products of norms."""
    return _products_of_norms(pieces, pieces.gradients(y, t, signed=True))


def _products_of_norms(pieces: Pieces, gradients: list[tuple[Tensor, Tensor]]) -> float:
    total = 0.0
    for k, (low, high) in enumerate(gradients):
        p = pieces.weighted(k, low, high)
        before = 1.0 if k == 0 else pieces.steepest * pieces.lipschitz[k - 1]
        total += (_norm(p.sqrt()[:, None] * pieces.weights[k]) * before) ** 2
    return total


def compositional(network: Network, pieces: Pieces, y: int, t: int) -> float:
    """Entesari, Sharifi & Fazlyab (ICML 2024): `sup|s''| |F_k| |diag(|w_i|) W_k| Lip^2`."""
    length = float((pieces.weights[-1][y] - pieces.weights[-1][t]).norm())
    total = 0.0
    for k in range(len(pieces.weights) - 2, -1, -1):
        before = 1.0 if k == 0 else pieces.steepest * pieces.lipschitz[k - 1]
        rows = pieces.weights[k].norm(dim=1, keepdim=True)
        total += pieces.bend * length * _norm(rows * pieces.weights[k]) * before**2
        length *= pieces.steepest * pieces.norms[k]
    return total


def averaged(network: Network, pieces: Pieces, y: int, t: int) -> float:
    """Interval propagation with signs; Jacobians by averaged operators."""
    gradients = pieces.gradients(y, t, signed=True)
    return sum(
        pieces.through(pieces.weighted(k, low, high), k) ** 2
        for k, (low, high) in enumerate(gradients)
    )


BOUNDS = {
    "paper": published,
    "interval, signs kept": interval,
    "compositional": compositional,
    "averaged operators": averaged,
}


def matrix_of(bound: Callable[..., float], network: Network) -> Tensor:
    """The bound of every ordered pair of classes."""
    pieces = Pieces(network)
    m = torch.zeros(network.classes, network.classes, dtype=torch.float64)
    for y, t in itertools.permutations(range(network.classes), 2):
        m[y, t] = bound(network, pieces, y, t)
    return m


def measure(depth: int, limit: int, rows: int) -> list[str]:
    """The table's lines for one depth."""
    spec = spec_of(depth, limit)
    parts = data.load(spec.data)
    network = loop.train(spec, parts.train)
    images, labels = parts.test.images[:rows], parts.test.labels[:rows]
    curvatures = {name: matrix_of(bound, network) for name, bound in BOUNDS.items()}
    curvatures["minimum (region: global)"] = margin_curvature(network)
    found, radii, means = None, {}, {}
    for name, m in curvatures.items():
        found = Certifier(network, curvature=m)(images)
        radii[name] = found.radius
        means[name] = float(m[found.prediction, found.runner_up].mean())
    name = "on the ball (region: local)"
    local = Certifier(network, curvature=m, region="local", radii=spec.certify.at)
    radii[name] = local(images).radius
    means[name] = _mean_local(local, images, spec.certify.at)
    right = found.prediction == labels
    clean = float(right.double().mean())
    return [
        f"| {depth} | {100 * clean:.1f} | {name} | {means[name]:.4g} "
        f"| {float(torch.where(right, radii[name], 0.0).mean()):.4f} |"
        for name in radii
    ]


def _mean_local(certifier: Certifier, images: Tensor, at: tuple[float, ...]) -> float:
    """Mean m of the runner-up margin on the ball of the first radius of `at` not yet certified."""
    found = Certifier(certifier.batch.prepared.exact, curvature=certifier.curvature)(images)
    total = 0.0
    for i, x in enumerate(images.flatten(1).double()):
        radius = next((r for r in at if r >= float(found.radius[i])), at[-1])
        y, t = int(found.prediction[i]), found.runner_up[i : i + 1]
        total += min(
            float(certifier.batch.balls.curvature(x, radius, y, t)[0]),
            float(certifier.curvature[y, int(t)]),
        )
    return total / len(images)


def _norm(matrix: Tensor) -> float:
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--limit", type=int, default=10_000, help="training rows")
    parser.add_argument("--rows", type=int, default=25, help="test images certified")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    lines = [
        "| layers | clean, % | bound | mean m | mean certified radius |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for depth in arguments.depths:
        new = measure(depth, arguments.limit, arguments.rows)
        print("\n".join(new), flush=True)
        lines += new
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
