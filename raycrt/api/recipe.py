"""A recipe to start with for a data set: radii, network, budget and search space by its rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.data import Dataset, Split
from raycrt.data.splits import mixed
from raycrt.errors import require
from raycrt.specs import Spec
from raycrt.training import loop

# Rows among which distances are measured.
_ROWS = 1000
# The radius trained for, as a share of the distance to the nearest row of another class: on MNIST
# a quarter of it is 1.6, where a certificate is hard to get and still useful.
_SHARE = 0.25
# Inputs with more features get a convolution in front; it takes their side down to about 8.
_DENSE, _SIDE = 1024, 8
# Minutes that a job takes besides training, and how many times its last training all the others
# take, as `raycrt demo` shows.
_OVERHEAD, _JOB = 1.0, 8
_EPOCHS = (8, 60)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A starting recipe and what it was made from: the median `distance` to the nearest training
    row of another class, and the `seconds` that an epoch takes here."""

    spec: Spec
    distance: float
    seconds: float

    @property
    def minutes(self) -> float:
        """About how long search and training take here."""
        return _OVERHEAD + _JOB * self.spec.train.epochs * self.seconds / 60


def start(spec: Spec, dataset: Dataset, minutes: float) -> Start:
    """The starting recipe for the data set of `spec`, whose whole job takes about `minutes` here.

    `InvalidInput` where half of the rows equal one of another class.
    """
    distance = nearest_of_another_class(dataset.train)
    require(
        distance > 0,
        "most rows differ from all rows of other classes",
        median_distance=distance,
    )
    radius = _rounded(_SHARE * distance)
    rows = len(dataset.fit)
    spec = spec.override(
        {
            **_layers(tuple(dataset.train.images.shape[1:])),
            "train.objective": "crt-all",
            "train.radius": radius,
            "train.gamma": 0.001,
            "train.targets": min(3, int(dataset.train.labels.max())),
            "train.attack_steps": 2,
            "train.batch_size": 128 if rows < 5000 else 512,
            "train.learning_rate": 0.003,
            "certify.at": [_rounded(radius / 2), radius, _rounded(1.5 * radius)],
        }
    )
    seconds = _seconds_of_an_epoch(spec, dataset.fit)
    fewest, most = _EPOCHS
    epochs = max(fewest, min(most, int(60 * (minutes - _OVERHEAD) / (_JOB * seconds))))
    return Start(spec=_searched(spec, epochs, radius, dataset), distance=distance, seconds=seconds)


def nearest_of_another_class(split: Split) -> float:
    """The median over rows of the distance to the nearest row of another class, both among the
    first 1,000 rows that have the classes in their proportions."""
    some = split.take(torch.from_numpy(mixed(split.labels.numpy())[:_ROWS]))
    x = some.images.flatten(1).double()
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    same = some.labels[:, None] == some.labels
    nearest: Tensor = apart.masked_fill(same, math.inf).amin(1)
    return float(nearest.median())


def _layers(shape: tuple[int, ...]) -> dict[str, object]:
    """Two dense layers; behind a convolution where images are large."""
    features = math.prod(shape)
    if len(shape) == 3 and features > _DENSE:
        stride = max(2, min(shape[1:]) // _SIDE)
        return {"model.channels": [32], "model.kernel": stride | 1, "model.stride": stride} | {
            "model.width": 256
        }
    return {"model.width": max(64, min(512, 2 ** round(math.log2(4 * features))))}


def _seconds_of_an_epoch(spec: Spec, fit: Split) -> float:
    """Measured on a few batches, the second time."""
    some = fit.take(slice(4 * spec.train.batch_size))
    once = spec.override({"train.epochs": 1})
    for _ in range(2):
        began = time.monotonic()
        loop.train(once, some)
        seconds = time.monotonic() - began
    return seconds * len(fit) / len(some)


def _searched(spec: Spec, epochs: int, radius: float, dataset: Dataset) -> Spec:
    """`spec` with its epochs and a search over what matters most."""
    return spec.override(
        {
            "train.epochs": epochs,
            "search.radius": radius,
            "search.trials": 12,
            "search.rungs": [epochs // 4, epochs // 2],
            "search.rows": min(500, len(dataset.validation)),
            "search.finalists": 2,
            "search.seeds": 2,
            "search.space": {
                "model.activation": {"choices": ["softplus", "sigmoid", "tanh"]},
                "train.gamma": {"low": 1e-5, "high": 0.1, "log": True},
                "train.learning_rate": {"low": 0.0005, "high": 0.03, "log": True},
                "train.radius": {"low": _rounded(0.7 * radius), "high": _rounded(1.5 * radius)},
            },
        }
    )


def _rounded(value: float) -> float:
    """`value` to two significant digits."""
    return float(f"{value:.2g}")
