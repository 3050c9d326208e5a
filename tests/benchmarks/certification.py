"""`make bench`: the certifier's speed, as ratios against named baselines in the same run.

    python -m tests.benchmarks.certification [--out FILE] [--rows N] [--networks NAME ...]

(a) images/s for all classes against the published algorithm for the runner-up class alone, and
    against this certifier for that class alone;
(b) the time of the solver's products at the machine's rate against the time it takes to solve;
(c) cost against width, depth and classes, with fitted exponents;
(d) the memory that a call takes beyond what the process has;
and how near the radii are to the truth, and how many margins are searched. Needs MNIST in
RAYCRT_DATA; trains its own networks: one on 256 principal components, as the recipes for MNIST do,
one on all pixels, and one of each for longer and on all rows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raycrt import Certifier, data
from raycrt.certification.certificate import Witnesses
from raycrt.certification.targets import Targets
from raycrt.evaluation.attacks import attack, draw_back, steps_to
from raycrt.margins.evaluation import MarginEvaluator
from raycrt.margins.images import Margins
from raycrt.margins.prepared import PreparedNetwork
from raycrt.margins.proofs.curvature import NumberCurvature
from raycrt.margins.proofs.radius import Points
from raycrt.networks import network
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec, validate
from raycrt.training import loop
from tests.benchmarks import paper, write

SPEC = validate(
    {
        "model": {"depth": 2, "width": 1024},
        "train": {"epochs": 5, "radius": 1.58, "learning_rate": 2e-3, "objective": "crt"},
        "data": {"name": "mnist", "limit": 10_000},
    }
)
NETWORKS = {
    "components": SPEC.override({"train.components": 256}),
    "pixels": SPEC,
    # Trained by the paper's objective until it classifies: many more margins come near.
    "longer": SPEC.override(
        {"train.components": 256, "train.gamma": 0.01, "train.epochs": 10, "data.limit": None}
    ),
    # The same on all pixels, with small curvature: no few directions, and most margins are near.
    "long_on_pixels": SPEC.override({"train.gamma": 0.08, "train.epochs": 8, "data.limit": None}),
}
PAPER_ROWS = 200
NEAR_ROWS = 300
BATCH = 2048
REPEATS = 3
# Of each axis the values, and the model and classes of one of them; networks whose median counts.
CURVES: dict[str, tuple[list[int], Callable[[int], tuple[ModelSpec, int]]]] = {
    "width": ([256, 512, 1024, 2048, 4096], lambda v: (ModelSpec(width=v), 10)),
    "depth": ([2, 3, 4, 5, 6], lambda v: (ModelSpec(width=512, depth=v), 10)),
    "classes": ([10, 30, 100], lambda v: (ModelSpec(width=512), v)),
}
CURVE_ROWS, CURVE_NETWORKS = 512, 5
_SECONDS_BETWEEN_LOOKS = 2e-3


def seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of `work` over `repeats` runs after a first one."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class RunnerUpAlone(Targets):
    """Solves the runner-up class and no other: what the literature certifies, by our means."""

    @staticmethod
    def certifier(model: Network, curvature: Tensor) -> Certifier:
        found = Certifier(model, batch_size=BATCH, curvature=curvature)
        return with_targets(found, RunnerUpAlone)

    def improve(self, margins: Margins, at: Tensor) -> Witnesses:
        return self.solve(margins, torch.arange(len(at)), margins.runner_up, at)


def with_targets(
    certifier: Certifier, kind: type[Targets], prepared: PreparedNetwork | None = None
) -> Certifier:
    """`certifier`, with its margins solved by a `kind` of `Targets`, perhaps with another
    `prepared` network."""
    batch = certifier.batch
    assert batch is not None
    targets = kind(**{**vars(batch.targets), "prepared": prepared or batch.prepared})
    certifier.batch = replace(batch, targets=targets)
    return certifier


def against_the_paper(model: Network, images: Tensor) -> dict[str, float]:
    """(a): ratios of images/s and both mean radii on the runner-up class.

    The runner-up's own radius, which no certificate needs, costs extra: both are timed. So are the
    decision at the radius that the network was trained for, which is all that certified accuracy
    needs, and the same certifier when it solves the runner-up only, closed forms of all classes
    included.
    """
    certifier = Certifier(model, batch_size=BATCH)
    alone = Certifier(model, batch_size=BATCH, curvature=certifier.curvature, runner_up=False)
    one = RunnerUpAlone.certifier(model, certifier.curvature)
    few = images[:PAPER_ROWS]
    radius = SPEC.train.radius
    # In turns, so that what else the machine does slows all of them.
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "with_runner_up": (lambda: certifier(images), len(images)),
        "alone": (lambda: alone(images), len(images)),
        "decided": (lambda: alone(images, at=radius), len(images)),
        "one": (lambda: one(images), len(images)),
        "theirs": (lambda: paper.certify(model, few), len(few)),
    }
    each: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, (work, rows) in works.items():
            each[name].append(seconds(work, repeats=1) / rows)
    time_of = {name: statistics.median(times) for name, times in each.items()}
    found, stated = certifier(few), paper.certify(model, few)
    reached = distance_to(model, few, found.runner_up)
    reached_at_all = reached[reached.isfinite()]
    return {
        "images_per_second": 1 / time_of["with_runner_up"],
        "images_per_second_without_runner_up": 1 / time_of["alone"],
        "images_per_second_decided": 1 / time_of["decided"],
        "images_per_second_runner_up_only": 1 / time_of["one"],
        "paper_images_per_second": 1 / time_of["theirs"],
        "ratio": time_of["theirs"] / time_of["with_runner_up"],
        "ratio_without_runner_up": time_of["theirs"] / time_of["alone"],
        "ratio_decided": time_of["theirs"] / time_of["decided"],
        "runner_up_only_over_all_classes": time_of["alone"] / time_of["one"],
        "mean_radius_runner_up": float(found.radius_runner_up.mean()),
        "paper_mean_radius_runner_up": float(stated.mean()),
        "paper_mean_radius_proved_curvature": float(
            paper.certify(model, few, certifier.curvature).mean()
        ),
        "mean_adversarial_distance_runner_up": float(reached_at_all.mean()),
        "rows_refuted": int((found.radius_runner_up > reached).sum()),
        "paper_rows_refuted": int((stated > reached).sum()),
    }


def searched(model: Network, images: Tensor) -> dict[str, float]:
    """Margins an image for which points are looked for, with curvature as matrices and without."""
    counts = [0]

    class Counted(Targets):
        def _search(self, evaluator: MarginEvaluator, start: Points, enough: Tensor) -> Points:
            counts[0] += int((start.radius < enough).sum())
            return super()._search(evaluator, start, enough)

    certifier = Certifier(model, batch_size=BATCH)
    assert certifier.batch is not None
    prepared, found = certifier.batch.prepared, {}
    number = replace(prepared, curvature=NumberCurvature(proof=prepared.proof))
    for name, each in (("margins_by_matrix", prepared), ("margins_by_number", number)):
        counts[0] = 0
        with_targets(certifier, Counted, each)(images)
        found[name] = counts[0] / len(images)
    return found


@torch.no_grad()
def distance_to(model: Network, images: Tensor, target: Tensor) -> Tensor:
    """Distances of images that are predicted as `target` rather than as the image: from above,
    infinite where none was found.

    Steps to the linearised boundary, then a bisection towards the image, in float64.
    """
    model, x = model.in_float64(), images.flatten(1).double()
    rows, label = torch.arange(len(x)), model(x).argmax(1)

    def crossed(logits: Tensor) -> Tensor:
        return logits[rows, label] <= logits[rows, target]

    best = torch.full_like(x, torch.inf)
    for u, logits in steps_to(model, x, label, target, 300):
        nearer = crossed(logits) & (u.norm(dim=1) < best.norm(dim=1))
        best[nearer] = u[nearer]
    return draw_back(x, best, lambda points: crossed(model(points))).norm(dim=1)


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm.default)


class Products(TorchDispatchMode):
    """Counts the operations of matrix products by the type of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            left, right = args[-2:]
            self.operations[left.dtype] += 2 * left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


def against_matrix_multiply(model: Network, images: Tensor) -> dict[str, float]:
    """(b): the time that the solver's matrix products take at the rate of a plain product of their
    type, over the time it takes to solve: all that comes between the closed forms of all classes
    and the certificates, the proof of every iterate and the points that are kept included."""
    n, width = BATCH, model.layers[0].out_features
    plain = {}
    for dtype in (torch.float32, torch.float64):
        a = torch.randn(n, model.features, dtype=dtype)
        b = torch.randn(model.features, width).to(dtype)
        plain[dtype] = lambda a=a, b=b: a @ b
    certifier = Certifier(model, batch_size=n)
    products, spent = Products(), [0.0]

    class Counted(Targets):
        def improve(self, *args: Any) -> Witnesses:
            with products:
                return super().improve(*args)

    class Timed(Targets):
        def improve(self, *args: Any) -> Witnesses:
            began = time.perf_counter()
            found = super().improve(*args)
            spent[0] += time.perf_counter() - began
            return found

    # What is made once for a network is none of the solver's products.
    certifier(images)
    with_targets(certifier, Counted)(images)
    with_targets(certifier, Timed)
    operations = 2 * n * model.features * width
    rates = dict.fromkeys(plain, 0.0)
    least = inf
    # In turns, and the fastest of each: what else the machine does only adds.
    for _ in range(2 * REPEATS):
        for dtype, work in plain.items():
            rates[dtype] = max(rates[dtype], operations / seconds(work, repeats=9))
        spent[0] = 0.0
        certifier(images)
        least = min(least, spent[0])
    ideal = sum(count / rates[dtype] for dtype, count in products.operations.items())
    return {
        "matmul_flops": rates[torch.float32],
        "matmul_flops_float64": rates[torch.float64],
        "solver_flops": sum(products.operations.values()) / least,
        "share": ideal / least,
    }


def cost_curves(features: int = 784) -> dict[str, Any]:
    """(c): seconds for random images against width, depth and classes: medians over networks of
    random weights, which differ in how many margins need the solver."""
    images = torch.rand(CURVE_ROWS, features)
    curves: dict[str, Any] = {}
    for axis, (values, make) in CURVES.items():
        cost = []
        for value in values:
            spec, classes = make(value)
            times = []
            for seed in range(CURVE_NETWORKS):
                torch.manual_seed(seed)
                model = network.build(spec, (features,), classes)
                # Curvature is once per model and not what is measured here.
                certifier = Certifier(model, curvature=torch.full((classes, classes), 0.5).double())
                times.append(seconds(lambda c=certifier: c(images), repeats=1))
            cost.append(statistics.median(times))
        slope = float(np.polyfit(np.log(values), np.log(cost), 1)[0])
        curves[axis] = {"values": values, "seconds": cost, "exponent": slope}
    return {"rows": CURVE_ROWS, "networks": CURVE_NETWORKS, **curves}


def memory(model: Network, images: Tensor) -> float:
    """(d): the most MiB of the process during a call beyond what it had before."""
    certifier = Certifier(model, batch_size=BATCH)
    gc.collect()
    # What was freed goes back to the system, so that it is not there to be used again.
    ctypes.CDLL(None).malloc_trim(0)
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    most = [before]

    def look() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            most[0] = max(most[0], process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    certifier(images)
    done.set()
    looking.join()
    return (most[0] - before) / 2**20


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
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    # One core, as a worker of Ray Data has; both sides of a ratio are measured so.
    torch.set_num_threads(1)
    images = data.load(SPEC.data).test.images[: options.rows]
    results: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": len(images),
    }
    for name in options.networks:
        spec = NETWORKS[name]
        found = data.load(spec.data)
        model = loop.train(spec, found.train).requires_grad_(False)
        labels = found.test.labels[: len(images)]
        results[name] = {
            "clean": float((model(images.flatten(1)).argmax(1) == labels).double().mean()),
            "paper": against_the_paper(model, images),
            "matrix_multiply": against_matrix_multiply(model, images),
            "nearness": nearness(model, images[:NEAR_ROWS]),
            "searched": searched(model, images),
            "call_memory_mib": memory(model, images),
        }
    write({**results, "cost": cost_curves()}, options.out)


if __name__ == "__main__":
    main()
