"""Networks from state dicts, determined by the tensors, their names and a spec alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from raycrt.activations import activation
from raycrt.errors import InvalidInput, require
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.foreign.modules.reader import as_network
from raycrt.foreign.weights import parametrizations, state_dict
from raycrt.foreign.weights.layer_order import Stages, stages
from raycrt.foreign.weights.stored_layers import (
    Shape,
    StoredBatchNorm,
    StoredConvolution,
    StoredDense,
    StoredLayer,
    StoredNormaliser,
    read_layers,
)
from raycrt.networks import weights_file
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec


def from_state_dict(
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    input_shape: Sequence[int] | None = None,
    *,
    layers: Sequence[str] | None = None,
    batch_norm_eps: float | None = None,
    ordered: bool = True,
) -> Network:
    """The network with `tensors` as its weights and the activation of `spec` between its layers.

    The tensors decide depth and widths; `spec` decides activation and beta, and stride and padding
    of convolutions. The tensors' names fix the order of the layers, which must be that of `tensors`
    if these are `ordered`; or `layers` states it, `["fc1+norm", "fc2"]`, with a + between layers
    that have no activation between them. `batch_norm_eps` is the eps of batch normalisation.
    `input_shape` is needed where `spec` has convolutions. Raises `InvalidInput` where names and
    shapes do not say what the network is, or a tensor would not be used.
    """
    given = state_dict.of_network(tensors)
    weights_file.check_numbers({n: t for n, t in given.items() if not n.endswith("_mask")})
    exact = weights_file.widened(parametrizations.fold(given))
    found = read_layers(exact, batch_norm_eps)
    normalisers = [layer for layer in found if isinstance(layer, StoredNormaliser)]
    rest = [layer for layer in found if not isinstance(layer, StoredNormaliser)]
    kinds = {type(layer) for layer in rest}
    if StoredDense not in kinds:
        raise InvalidInput(
            f"weights must hold a matrix for each layer, but got {_listing(tensors)}"
        )
    if StoredConvolution in kinds and not spec.channels:
        raise InvalidInput(f"the spec must have channels for convolutions, got {_listing(tensors)}")
    if StoredConvolution in kinds and input_shape is None:
        raise InvalidInput("input_shape must be given where there are convolutions")
    if batch_norm_eps is not None and StoredBatchNorm not in kinds:
        raise InvalidInput("batch_norm_eps must be left out unless there is batch normalisation")
    require(len(normalisers) <= 1, "one normaliser of inputs", got=[n.name for n in normalisers])
    comes_first = layers is not None or (ordered and found[0] in normalisers)
    if normalisers and not comes_first:
        raise InvalidInput(
            f"{normalisers[0].name} must normalise the inputs, before all layers: store it first, "
            "with torch.save, or state the order of the others by `layers`"
        )
    shape: Shape = tuple(input_shape or ())
    order = stages(rest, shape, spec, stated=layers, ordered=ordered)
    model = _sequential(normalisers, order, shape, spec)
    # The square of a float32 number is a float64 number.
    return as_network((model.double() if normalisers else model).eval(), input_shape)


def _sequential(
    normalisers: Sequence[StoredLayer], order: Stages, shape: Shape, spec: ModelSpec
) -> nn.Sequential:
    modules: list[nn.Module] = [layer.module(shape, spec) for layer in normalisers]
    for number, stage in enumerate(order):
        if number > 0:
            modules.append(Elementwise(activation(spec.activation, spec.beta)))
        for layer in stage:
            after = layer.after(shape, spec)
            assert after is not None
            if len(after) == 1 and len(shape) != 1:
                modules.append(nn.Flatten())
                shape = (math.prod(shape),) if shape else ()
            modules.append(layer.module(shape, spec))
            shape = after
    return nn.Sequential(*modules)


def _listing(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items()) or "nothing"
