"""`make bench-depth`: enclosures against CROWN on networks of 3 to 8 layers, in one run.

    python -m tests.benchmarks.depth [--out FILE] [--images N] [--epochs N]

Networks are trained on MNIST (RAYCRT_DATA) by cross-entropy alone, without regard to certification,
or are those of others, RAYCRT_DATA/networks/mnist-*.onnx, whose inputs are in 0 .. 1.
Each image is certified by CROWN (auto_LiRPA, bisected to 0.1 %) and by raycrt with region "local",
one image at a time on one thread, and attacked.
Without auto_LiRPA it says so and exits with code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt import Certifier, as_network, data, load
from raycrt.evaluation.attacks import attack
from raycrt.specs import validate
from tests.benchmarks import crown, write

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "arctan": crown.Arctan,
}
# Layers, width and activation: 5x100 and 6x200 are sizes of networks that are often verified.
NETWORKS = [
    (3, 100, "tanh"),
    (4, 100, "sigmoid"),
    (5, 100, "arctan"),
    (6, 100, "sigmoid"),
    (6, 100, "tanh"),
    (6, 100, "arctan"),
    (7, 200, "sigmoid"),
    (8, 100, "tanh"),
]


def trained(depth: int, width: int, activation: str, epochs: int, rows: Any) -> nn.Sequential:
    """A network that was trained by cross-entropy on `rows`, seed 0."""
    torch.manual_seed(0)
    images, labels = rows.images.flatten(1), rows.labels
    sizes = [images.shape[1]] + [width] * (depth - 1) + [10]
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        modules += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        if activation == "sigmoid":
            # Its slopes are a quarter of the others': with the usual weights nothing is learnt.
            nn.init.xavier_uniform_(modules[-2].weight, gain=2.0)  # type: ignore[arg-type]
    model = nn.Sequential(*modules[:-1])
    steps = epochs * (len(images) // 128)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(128)[: len(images) // 128]:
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def of_others(folder: Path) -> dict[str, nn.Sequential]:
    """The ONNX networks of MNIST in a folder whose only activation is one that CROWN knows here."""
    found = {}
    for file in sorted(folder.glob("mnist-*.onnx")):
        network = load(file).in_float64()
        modules: list[nn.Module] = []
        for layer in network.layers:
            linear = nn.Linear(layer.in_features, layer.out_features)
            linear.load_state_dict({"weight": layer.matrix(), "bias": layer.offset()})
            modules += [linear, ACTIVATIONS[network.activation.name]()]
        found[file.stem] = nn.Sequential(*modules[:-1]).eval()
    return found


def timed(work: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def compared(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Radii of both for `images` (n, features), in turns, and the distances of an attack."""
    network = as_network(model)
    certifier = Certifier(network, region="local", runner_up=False)
    other = crown.Crown(model, images)
    ours, theirs = [], []
    for image in images:
        ours.append(timed(lambda x=image: float(certifier(x[None]).radius)))
        theirs.append(timed(lambda x=image: other.radius(x)))
    radius, seconds = torch.tensor(ours, dtype=torch.float64).T
    crowns, crown_seconds = torch.tensor(theirs, dtype=torch.float64).T
    distance = attack(network, images).distance
    return {
        "radius": float(radius.mean()),
        "crown_radius": float(crowns.mean()),
        "attack_distance": float(distance.mean()),
        "radius_ratio": float(radius.mean() / crowns.mean()),
        "least_ratio_of_a_row": float((radius / crowns).min()),
        "share_of_attack_distance": float(radius.mean() / distance.mean()),
        "broken": int((distance < torch.maximum(radius, crowns)).sum()),
        "milliseconds": float(seconds.mean() * 1e3),
        "crown_milliseconds": float(crown_seconds.mean() * 1e3),
        "time_ratio": float(crown_seconds.sum() / seconds.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/depth.json"))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    if not crown.installed():
        print("auto_LiRPA is missing: pip install --no-deps auto_LiRPA appdirs", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(1)
    rows = data.load(validate({"data": {"name": "mnist"}}).data)
    images = rows.test.images[: options.images].flatten(1)
    models: dict[str, Callable[[], nn.Module]] = {
        f"{depth} layers, {width} wide, {activation}": partial(
            trained, depth, width, activation, options.epochs, rows.train
        )
        for depth, width, activation in NETWORKS
    }
    for name, other in of_others(Path(os.environ["RAYCRT_DATA"]) / "networks").items():
        models[name] = partial(nn.Sequential, *other)
    results = {}
    for name, make in models.items():
        model = make()
        with torch.no_grad():
            right = model(rows.test.images.flatten(1)).argmax(1) == rows.test.labels
        clean = float(right.double().mean())
        if clean < 0.9:
            print(f"{name}: {clean:.1%} right, so its inputs have another scale", file=sys.stderr)
            continue
        results[name] = {"clean": clean} | compared(model, images)
        print(name, results[name], file=sys.stderr, flush=True)
    write({"images": options.images, "epochs": options.epochs, "networks": results}, options.out)


if __name__ == "__main__":
    main()
