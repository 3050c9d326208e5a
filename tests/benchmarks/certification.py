"""`make bench`: the certifier's speed, as ratios against named baselines in the same run.

    python -m tests.benchmarks.certification [--out FILE] [--rows N]

(a) images/s for all classes against the published algorithm for the runner-up class alone;
(b) the time of the solver's products at the machine's rate against the time it takes to solve;
(c) cost against width, depth and classes, with fitted exponents;
(d) peak memory;
and how near the radii are to the truth. Needs MNIST in RAYCRT_DATA; trains its own networks: one on
256 principal components, as the recipes for MNIST do, and one on all pixels.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raycrt import Certifier, data, dual, network, training
from raycrt.attacks import attack
from raycrt.network import Network
from raycrt.spec import ModelSpec, validate
from tests.benchmarks import paper, write

SPEC = validate(
    {
        "model": {"depth": 2, "width": 1024},
        "train": {"epochs": 5, "radius": 1.58, "learning_rate": 2e-3, "objective": "crt"},
        "data": {"name": "mnist", "limit": 10_000},
    }
)
NETWORKS = {"components": SPEC.override({"train.components": 256}), "pixels": SPEC}
PAPER_ROWS = 200
BATCH = 768
REPEATS = 3


def seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of `work` over `repeats` runs after a first one."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def against_the_paper(model: Network, images: Tensor) -> dict[str, float]:
    """(a): ratio of images/s and both mean radii on the runner-up class.

    The runner-up's own radius, which no certificate needs, costs extra and is timed apart.
    """
    certifier = Certifier(model, batch_size=BATCH)
    with_runner_up = seconds(lambda: certifier(images)) / len(images)
    alone = Certifier(model, batch_size=BATCH, curvature=certifier.curvature, runner_up=False)
    ours = seconds(lambda: alone(images)) / len(images)
    few = images[:PAPER_ROWS]
    began = time.perf_counter()
    stated = paper.certify(model, few)
    theirs = (time.perf_counter() - began) / len(few)
    found = certifier(few)
    return {
        "images_per_second": 1 / ours,
        "images_per_second_with_runner_up": 1 / with_runner_up,
        "paper_images_per_second": 1 / theirs,
        "ratio": theirs / ours,
        "mean_radius_runner_up": float(found.radius_runner_up.mean()),
        "paper_mean_radius_runner_up": float(stated.mean()),
    }


class Products(TorchDispatchMode):
    """Counts the operations of matrix products by the type of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.operations[left.dtype] += 2 * left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


def against_matrix_multiply(model: Network, images: Tensor) -> dict[str, float]:
    """(b): the time that the solver's matrix products take at the rate of a plain product of their
    type, over the time it takes to solve, the proof of every iterate included."""
    n, width = BATCH, model.layers[0].out_features
    rates = {}
    for dtype in (torch.float32, torch.float64):
        a, b = (
            torch.randn(n, model.features, dtype=dtype),
            torch.randn(model.features, width).to(dtype),
        )
        rates[dtype] = 2 * n * model.features * width / seconds(lambda a=a, b=b: a @ b, repeats=20)
    certifier = Certifier(model, batch_size=n)
    products, spent, inner = Products(), [0.0], dual.solve

    def counted(*args: Any, **options: Any) -> dual.Solution:
        with products:
            return inner(*args, **options)

    def timed(*args: Any, **options: Any) -> dual.Solution:
        began = time.perf_counter()
        found = inner(*args, **options)
        spent[0] += time.perf_counter() - began
        return found

    try:
        for watch in (counted, timed):
            dual.solve = watch
            certifier(images)
    finally:
        dual.solve = inner
    ideal = sum(count / rates[dtype] for dtype, count in products.operations.items())
    return {
        "matmul_flops": rates[torch.float32],
        "matmul_flops_float64": rates[torch.float64],
        "solver_flops": sum(products.operations.values()) / spent[0],
        "share": ideal / spent[0],
    }


def cost_curves(features: int = 784, rows: int = 512) -> dict[str, Any]:
    """(c): seconds for `rows` random images against width, depth and classes (random weights)."""
    axes: dict[str, tuple[list[int], Callable[[int], tuple[ModelSpec, int]]]] = {
        "width": ([256, 512, 1024, 2048, 4096], lambda v: (ModelSpec(width=v), 10)),
        "depth": ([2, 3, 4, 5, 6], lambda v: (ModelSpec(width=512, depth=v), 10)),
        "classes": ([10, 30, 100], lambda v: (ModelSpec(width=512), v)),
    }
    images = torch.rand(rows, features)
    curves: dict[str, Any] = {}
    for axis, (values, make) in axes.items():
        cost = []
        for value in values:
            spec, classes = make(value)
            torch.manual_seed(0)
            model = network.build(spec, (features,), classes)
            # Curvature is once per model and not what is measured here.
            certifier = Certifier(model, curvature=torch.full((classes, classes), 0.5).double())
            cost.append(seconds(lambda c=certifier: c(images), repeats=2))
        slope = float(np.polyfit(np.log(values), np.log(cost), 1)[0])
        curves[axis] = {"values": values, "seconds": cost, "exponent": slope}
    return curves


def nearness(model: Network, images: Tensor) -> dict[str, float]:
    """Share of rows with an adversarial example at the certified distance; median of the ratio."""
    certified = Certifier(model)(images).radius
    attacked = attack(model, images, steps=15).distance
    ratio = certified / attacked
    return {
        "zero_gap_share": float((ratio > 1 - 1e-3).double().mean()),
        "median_certified_over_attacked": float(ratio.median()),
        "largest": float(ratio.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/certification.json"))
    parser.add_argument("--rows", type=int, default=4096)
    options = parser.parse_args()
    # One core, as a worker of Ray Data has; both sides of a ratio are measured so.
    torch.set_num_threads(1)
    found = data.load(SPEC.data)
    images = found.test.images[: options.rows]
    results: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": len(images),
    }
    for name, spec in NETWORKS.items():
        model = training.train(spec, found.train).requires_grad_(False)
        results[name] = {
            "paper": against_the_paper(model, images),
            "matrix_multiply": against_matrix_multiply(model, images),
            "nearness": nearness(model, images[:300]),
        }
    results |= {
        "cost": cost_curves(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
