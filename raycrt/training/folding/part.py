"""The network that is trained in place of the whole network of a spec, and folded back into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raycrt import data
from raycrt.data import Split
from raycrt.errors import InvalidInput, require
from raycrt.networks import network as networks
from raycrt.networks.layers.diagonal import Scaling, Standardization
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec, Spec
from raycrt.specs.data import Statistics
from raycrt.training.folding.isometries import deepened
from raycrt.training.folding.shifts import SHIFTS, averaged
from raycrt.training.folding.subspace import Subspace
from raycrt.training.folding.symmetry import Involution, tie, untied
from raycrt.training.inputs.batches import Batches
from raycrt.training.precision import DTYPES


@dataclass(frozen=True, kw_only=True)
class TrainedPart:
    """The `network` that is trained for `spec`; it takes coordinates in `subspace`, if given."""

    spec: Spec
    network: Network
    subspace: Subspace | None

    @staticmethod
    def of(
        spec: Spec, split: Split | Batches, start: Network | None, device: torch.device | str
    ) -> TrainedPart:
        """The part on `device` at the weights of `start`, or at ones drawn from the seed."""
        plan = spec.train
        mirror = Involution.mirror(data.shape(spec.data)) if plan.mirror_invariant else None
        subspace = None
        if plan.components is not None:
            if not isinstance(split, Split):
                raise InvalidInput("train.components must be left out where rows are streamed")
            subspace = Subspace(split.images, plan.components, mirror)
        network = _trained_part(spec) if start is None else _from(start, spec)
        if mirror is not None:
            tie(network, mirror if subspace is None else subspace.mirrored(mirror))
        placed = None if subspace is None else subspace.to(device)
        return TrainedPart(spec=spec, network=network.to(device), subspace=placed)

    def whole(self, trained: Network) -> Network:
        """The network of the spec, on images, whose trained part is `trained`."""
        plan = self.spec.train
        if plan.mirror_invariant:
            trained = untied(trained)
        deep = deepened(trained, plan.linear_layers, plan.linear_scale)
        if self.subspace is not None:
            listed = bool(self.spec.model.layers)
            deep = self.subspace.before(deep) if listed else self.subspace.fold(deep)
        if plan.shift_averaged:
            deep = averaged(deep, data.shape(self.spec.data), plan.shift_averaged)
        return deep


def fresh(spec: Spec) -> Network:
    """The untrained network of `spec`, initialised from its seed."""
    return _drawn(spec, spec.model, data.shape(spec.data))


def _trained_part(spec: Spec) -> Network:
    """The network that is trained: without the isometries that are put in front at the end, of a
    width that leaves room for shifts, and in principal coordinates if `train.components` is set,
    without the list's layer that makes them."""
    components = spec.train.components
    if spec.model.layers:
        listed = spec.model.layers if components is None else spec.model.layers[1:]
        part = spec.model.model_copy(update={"layers": listed})
    else:
        depth = spec.model.depth - spec.train.linear_layers
        width = spec.model.width // (SHIFTS if spec.train.shift_averaged else 1)
        part = spec.model.model_copy(update={"depth": depth, "width": width})
    return _drawn(spec, part, data.shape(spec.data) if components is None else (components,))


def _drawn(spec: Spec, model: ModelSpec, shape: tuple[int, ...]) -> Network:
    torch.manual_seed(spec.run.seed)
    classes = len(data.class_names(spec.data))
    made = networks.build(model, shape, classes).to(DTYPES[spec.train.precision])
    if isinstance(spec.data.normalize, Statistics):
        first = made.maps[0]
        assert isinstance(first, Standardization)
        first.state(spec.data.normalize.mean, spec.data.normalize.std)
    return made


def _from(start: Network, spec: Spec) -> Network:
    """A copy of `start` to be trained, with the weights of `spec.train.precision`."""
    plan = spec.train
    own = ("components", "linear_layers", "mirror_invariant", "shift_averaged")
    stated = {key: getattr(plan, key) for key in own if getattr(plan, key)}
    require(
        not stated,
        "train.components, train.linear_layers, train.mirror_invariant and train.shift_averaged "
        "are left out where weights are given",
        **stated,
    )
    copied = start.copied(DTYPES[spec.train.precision]).train().requires_grad_(True)
    for layer in copied.modules():
        if isinstance(layer, Scaling):  # The constants of a module.
            layer.requires_grad_(False)
    return copied
