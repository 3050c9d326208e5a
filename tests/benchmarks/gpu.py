"""`make bench-gpu`: a GPU against all cores of the CPU beside it, as ratios within one run.

    python -m tests.benchmarks.gpu [--out FILE] [--rows N] [--rounds N]

The networks of `certification` are certified and the settings of `training` trained on both, in
turns. Times are wall times: of a call with all rows, and of an epoch of crt-all, the least of all
but the first. Needs MNIST in RAYCRT_DATA. Without a GPU it says so and exits with code 2.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raycrt import Certifier, data
from raycrt.networks.network import Network
from raycrt.specs import Spec
from raycrt.training import loop
from tests.benchmarks import certification, training, write

GPU = "cuda"


def gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def compared(cpu: list[float], gpu: list[float]) -> dict[str, float]:
    """The least seconds of both, and how many times as long the CPU takes."""
    return {"cpu_seconds": min(cpu), "gpu_seconds": min(gpu), "ratio": min(cpu) / min(gpu)}


def certified(model: Network, images: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of certifying all `images`, the curvature proved before, and how far radii differ."""
    works, radii = {}, {}
    for device in ("cpu", GPU):
        certifier = Certifier(deepcopy(model).to(device), batch_size=certification.BATCH)
        there = images.to(device)
        radii[device] = certifier(there).radius.cpu()
        # A copy to main memory waits for the GPU.
        works[device] = lambda c=certifier, x=there: c(x).radius.cpu()
    times = {device: [certification.seconds(work, 1)] for device, work in works.items()}
    for _ in range(rounds - 1):
        for device, work in works.items():
            times[device].append(certification.seconds(work, 1))
    apart = (radii[GPU] - radii["cpu"]).abs() / radii["cpu"].clamp(min=1e-12)
    return {**compared(times["cpu"], times[GPU]), "radii_apart": float(apart.max())}


def epoch_seconds(spec: Spec, device: str) -> float:
    """Wall time of an epoch, the least of all but the first: its metrics wait for the device."""
    ends: list[float] = []
    rows = training.images(spec)
    loop.train(spec, rows, device=device, report=lambda end: ends.append(time.perf_counter()))
    return min(after - before for before, after in pairwise(ends))


def trained(setting: str, rounds: int) -> dict[str, float]:
    spec = training.spec_of(setting, "crt-all")
    turns = [[epoch_seconds(spec, device) for device in ("cpu", GPU)] for _ in range(rounds)]
    cpu, gpu = zip(*turns, strict=True)
    return compared(list(cpu), list(gpu))


def table(results: dict[str, Any]) -> str:
    """Both parts of `results` as the rows of a Markdown table."""
    lines = [
        f"| what | {results['cpu']}, {results['threads']} threads | {results['gpu']} | ratio |",
        "|---|---|---|---|",
    ]
    titles = {"certified": f"{results['rows']} images certified", "trained": "an epoch of crt-all"}
    for part, title in titles.items():
        for name, found in results[part].items():
            both = " | ".join(f"{found[f'{each}_seconds']:.3g} s" for each in ("cpu", "gpu"))
            lines.append(f"| {title}, {name} | {both} | {found['ratio']:.3g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu.json"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if (name := gpu_name()) is None:
        print("torch finds no GPU on this machine, so there is nothing to measure", file=sys.stderr)
        sys.exit(2)
    images = data.load(certification.SPEC.data).test.images[: options.rows]
    models = {
        each: loop.train(spec, data.load(spec.data).train, device=GPU).requires_grad_(False)
        for each, spec in certification.NETWORKS.items()
    }
    results = {
        "cpu": cpu_name(),
        "gpu": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "rows": len(images),
        "certified": {
            each: certified(model, images, options.rounds) for each, model in models.items()
        },
        "trained": {each: trained(each, options.rounds) for each in training.SETTINGS},
    }
    write(results, options.out)
    print(table(results))


if __name__ == "__main__":
    main()
