"""`make bench`: what an epoch of crt-all costs in epochs of standard training, within one run.

    python -m tests.benchmarks.training [--out FILE] [--rounds N]

Networks of the recipes' sizes on random images of MNIST's shape, 3 targets and 4 attack steps, one
thread. Each round trains every setting for three epochs with each objective in turn, so that other
work slows all alike; the figure is the least process time of an epoch, the first of each training
left out. The same for torch.compile and for weights in channels-last order, against without.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raycrt import recipes
from raycrt.data import Split
from raycrt.specs import Spec
from raycrt.training import loop
from raycrt.training.loop import EpochEnd, Workers
from raycrt.training.options import effects
from tests.benchmarks import write

DENSE_ROWS, CONVOLUTION_ROWS = 2560, 512
_STILL = {f"train.augmentation.{name}": 0.0 for name in ("rotation", "shift", "scaling")}
_PIXELS = {
    **_STILL,
    "train.optimizer": "adam",
    "train.precision": "float32",
    "train.components": None,
}
# A recipe, and what is changed of it.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mnist-2": ("mnist-2", {"train.augmentation.until": 1.0}),
    "mnist-2 without augmentation": ("mnist-2", _STILL),
    "mnist-2 by Adam, float32, every pixel": ("mnist-2", _PIXELS),
    "3x1024 by Adam, float32, every pixel": (
        "mnist-2",
        {**_PIXELS, "model.depth": 3, "model.width": 1024},
    ),
    "mnist-conv": ("mnist-conv", {}),
}
OBJECTIVES = ("standard", "crt-all")
Wrap = Callable[[nn.Module], nn.Module]


def spec_of(setting: str, objective: str) -> Spec:
    recipe, changes = SETTINGS[setting]
    cost = {"train.targets": 3, "train.attack_steps": 4, "train.epochs": 3, "search.rungs": ()}
    values = {**changes, **cost, "train.objective": objective}
    return effects.override(recipes.load(recipe), values)


def images(spec: Spec) -> Split:
    """Random rows: whole batches only, so that compiled code is not made for two shapes."""
    rows = CONVOLUTION_ROWS if spec.model.channels else DENSE_ROWS
    generator = torch.Generator().manual_seed(0)
    return Split(
        images=torch.rand(rows, 1, 28, 28, generator=generator),
        labels=torch.randint(10, (rows,), generator=generator),
    )


def epoch_seconds(spec: Spec, wrap: Wrap = lambda module: module) -> float:
    """Process time of an epoch, the least of all but the first."""
    ends: list[float] = []

    def report(end: EpochEnd) -> None:
        ends.append(time.process_time())

    loop.train(spec, images(spec), report=report, workers=Workers(wrap=wrap))
    return min(after - before for before, after in pairwise(ends))


def least(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The least that each of `works` finds in `rounds` rounds of all."""
    found = [{name: work() for name, work in works.items()} for _ in range(rounds)]
    return {name: min(each[name] for each in found) for name in works}


def objectives(setting: str, rounds: int) -> dict[str, float]:
    """Seconds of an epoch of both objectives, and their ratio."""
    works = {name: lambda n=name: epoch_seconds(spec_of(setting, n)) for name in OBJECTIVES}
    found = least(works, rounds)
    return {**found, "ratio": found["crt-all"] / found["standard"]}


def against_plain(setting: str, wrap: Wrap, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch of crt-all as it is and with the objective wrapped, and their ratio."""
    spec = spec_of(setting, "crt-all")
    works = {"plain": lambda: epoch_seconds(spec), "changed": lambda: epoch_seconds(spec, wrap)}
    found = least(works, rounds)
    return {"setting": setting, **found, "ratio": found["changed"] / found["plain"]}


def channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/training.json"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_at_the_start": os.getloadavg()[0],
        "rows": {"dense": DENSE_ROWS, "convolution": CONVOLUTION_ROWS},
        "epoch_seconds": {name: objectives(name, options.rounds) for name in SETTINGS},
        "torch_compile": against_plain(
            "mnist-2 by Adam, float32, every pixel", torch.compile, options.rounds
        ),
        "channels_last": against_plain("mnist-conv", channels_last, options.rounds),
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
