"""Training in this process: of a spec, or of a torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raycrt import data, recipes
from raycrt.api.rows import Rows, split_of
from raycrt.data import Split
from raycrt.errors import InvalidInput, require
from raycrt.foreign import factory
from raycrt.foreign.modules.reader import as_network
from raycrt.networks import network as networks
from raycrt.networks.layers.diagonal import Standardization
from raycrt.networks.network import Network
from raycrt.specs import Spec
from raycrt.system import devices
from raycrt.training import loop
from raycrt.training.loop import Report


def train(
    model: nn.Module | Spec | str,
    rows: Rows | None = None,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda end: None,
    **options: Any,
) -> Network:
    """Train in this process and return the network, on `device`.

    `model` is a `torch.nn.Module` that `raycrt.as_network` reads, of which a copy is trained from
    the weights that it has; or a spec, or the name or path of a recipe. `rows` are a pair (inputs,
    labels), inputs (n, features) or (n, channels, height, width) and labels (n,) whole numbers from
    0, a torch `Dataset` of such rows, or a `raycrt.data.Split`. A spec without `rows` is trained on
    the training and validation rows of its data set.

    `options` are keys of a recipe's section `train`: objective, radius, gamma, epochs, ... `report`
    is called with a `raycrt.training.loop.EpochEnd` after each epoch. Raises `InvalidInput` before
    any work starts where a value, the rows or the model do not fit, and
    `raycrt.training.loop.TrainingDiverged` where the loss does not stay finite.
    """
    device = devices.checked(device)
    values: dict[str, Any] = {f"train.{key}": value for key, value in options.items()}
    values |= {} if seed is None else {"run.seed": seed}
    split = None if rows is None else split_of(rows)
    if isinstance(model, nn.Module):
        if split is None:
            raise InvalidInput("a module must be given rows: raycrt.train(model, rows)")
        spec, read = listed(model, Spec().override(values), split)
        start = networks.build(spec.model, data.shape(spec.data), read.classes).to(read.dtype)
        start.load_state_dict(read.state_dict())
    else:
        spec = (model if isinstance(model, Spec) else recipes.load(model)).override(values)
        start = None
        if split is None:
            data.require_training_rows(spec.data)
            spec = data.described(spec)
            split = data.load(spec.data).fit
        else:
            spec = at_hand(spec, split, int(split.labels.max()) + 1)
        spec = factory.resolved(spec)
        require_labels(split, len(data.class_names(spec.data)))
    return loop.train(spec, split, start=start, report=report, device=device)


def at_hand(spec: Spec, split: Split, classes: int, **more: Any) -> Spec:
    """`spec` with the shape of the rows of `split` and the numbers of `classes` as their names."""
    facts: dict[str, Any] = {
        "source": "arrays",
        "shape": tuple(split.images.shape[1:]),
        "class_names": tuple(map(str, range(classes))),
    }
    return spec.override({f"data.{key}": value for key, value in (facts | more).items()})


def listed(model: nn.Module, spec: Spec, split: Split, **more: Any) -> tuple[Spec, Network]:
    """The network that `model` is, and `spec` with its layers and the rows of `split`; `more` are
    further keys of `data`. A normalisation in front of `model` becomes `data.normalize`."""
    shape = tuple(split.images.shape[1:])
    read = as_network(model, shape, split.images)
    require_labels(split, read.classes)
    spec = at_hand(spec, split, read.classes, **more)
    layers = factory.listed(read, shape, read.classes)
    first = read.maps[0]
    if isinstance(first, Standardization):
        numbers = {"mean": first.mean.tolist(), "std": first.std.tolist()}
        spec = spec.override({"data.normalize": numbers})
    return spec.model_copy(update={"model": layers}), read


def require_labels(split: Split, classes: int) -> None:
    """`InvalidInput` unless the labels are numbers of `classes` classes."""
    largest = int(split.labels.max())
    require(largest < classes, f"labels are 0 .. {classes - 1}, counted from 0", largest=largest)
