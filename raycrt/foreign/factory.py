"""`model.factory`: a function of the user's whose module gives the architecture of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from raycrt import data
from raycrt.errors import InvalidInput, require
from raycrt.foreign.description import spec_of
from raycrt.foreign.modules.reader import as_network
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec, Spec
from raycrt.system.imports import imported


def resolved(spec: Spec) -> Spec:
    """`spec` with the layers of the module that `model.factory()` returns in place of the factory.

    The data set must be described. Weights are drawn from the seed as for any list of layers, so
    that workers, resumed trainings and the checker need nothing but the spec. Raises
    `InvalidInput` where the module cannot be read or has layers that no spec lists.
    """
    name = spec.model.factory
    if name is None:
        return spec
    made = imported(name, "model.factory", os.getcwd())()
    require(
        isinstance(made, nn.Module),
        "model.factory returns a torch.nn.Module",
        factory=name,
        returned=type(made).__name__,
    )
    try:
        shape, classes = data.shape(spec.data), len(data.class_names(spec.data))
        model = listed(as_network(made, shape), shape, classes)
    except InvalidInput as error:
        raise InvalidInput(f"model.factory={name}: {error}") from None
    model = model.model_copy(update={"normalize": spec.model.normalize})
    return spec.model_copy(update={"model": model})


def listed(network: Network, shape: Sequence[int], classes: int) -> ModelSpec:
    """The spec that lists the layers of `network` for inputs of `shape`; `InvalidInput` where none
    does, or where it has not as many logits as the data has `classes`."""
    require(
        network.classes == classes,
        "as many logits as the data has classes",
        logits=network.classes,
        classes=classes,
    )
    found = spec_of(network, shape)
    if found is None:
        raise InvalidInput(
            "it must have layers that model.layers can list (docs/networks.md), so that what is "
            "trained can be stored and verified"
        )
    return found
