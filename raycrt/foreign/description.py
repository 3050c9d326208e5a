"""The spec that describes a network read from a file, so that a second program can read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from pydantic import ValidationError

from raycrt.activations import ACTIVATIONS, FAMILIES, Activation, activation
from raycrt.networks.layers.affine import AffineMap, Chain, Dense, OneLogit
from raycrt.networks.layers.convolution import AveragePool, Convolution
from raycrt.networks.layers.diagonal import (
    Identity,
    Normalization,
    Permutation,
    Scaling,
    Standardization,
)
from raycrt.networks.layers.residual import DirectSum, Parts, Selection, Stack, Sum
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec, Place, Spec
from raycrt.specs.affine import (
    LINEAR,
    AffineLayer,
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    IdentityLayer,
    Pair,
    PermutationLayer,
    PoolLayer,
    ScalingLayer,
    SelectionLayer,
    UnflattenLayer,
)
from raycrt.specs.layers import (
    DirectSumLayer,
    LayerSpec,
    PartSpec,
    SideBySide,
    StackLayer,
    SumLayer,
)


def described(
    path: Place, network: Network, spec: ModelSpec, classes: int, shape: Sequence[int]
) -> ModelSpec | None:
    """The spec of the `network` that `files.load(path, spec)` returned, for data of `classes`
    classes and inputs of `shape`.

    None where no spec describes it.
    """
    if path.is_dir():
        return Spec.load(path).model
    if network.classes != classes:  # A model's spec does not state their number.
        return None
    if path.name.lower().endswith(".onnx"):
        return spec_of(network, shape)
    return _of_layers(network, shape, {"activation": spec.activation, "beta": spec.beta})


def spec_of(network: Network, shape: Sequence[int]) -> ModelSpec | None:
    """The spec of a network of inputs of `shape` with activations that ship; None of any other
    network."""
    found = [_known(each.activation) for each in network.nonlinearities]
    # The model's activation may be any of them; a sharpness of its own is most likely shared.
    stated = next((name for name in found if name is not None and name[1] != 1.0), found[0])
    if stated is None or None in found:
        return None
    names = [
        {
            "activation": None if name == stated[0] else name,
            "beta": beta if name in FAMILIES and beta != stated[1] else None,
        }
        for name, beta in filter(None, found)
    ]
    return _of_layers(network, shape, {"activation": stated[0], "beta": stated[1]}, names)


def _known(given: Activation) -> tuple[str, float] | None:
    """Name and beta of an activation that ships; None of another one."""
    # The curvature of softplus at 0 is a quarter of its sharpness.
    top = given.curvature_range[1] / activation("softplus").curvature_range[1]
    beta = float(f"{top:.12g}") if given.name == "softplus" else 1.0
    if given.name not in ACTIVATIONS:
        return None
    same = activation(given.name, beta).curvature_range == given.curvature_range
    return (given.name, beta) if same else None


def _of_layers(
    network: Network,
    shape: Sequence[int],
    stated: dict[str, Any],
    names: Sequence[dict[str, Any]] = (),
) -> ModelSpec | None:
    """`stated` with the layers of a network for inputs of `shape`, in the short form where that is
    possible. `names` are the keys that state the activations of hidden layers; without any it is
    that of `stated`."""
    last: AffineMap = network.maps[-1]  # type: ignore[assignment]
    head = type(last) in (Dense, OneLogit)
    if type(last) is OneLogit:
        stated = {**stated, "logits": 1}
    maps: list[AffineMap] = list(network.maps)[: -1 if head else None]  # type: ignore[assignment]
    between = network.between[: len(maps)]
    if maps and type(maps[0]) is Standardization:
        stated, maps, between = {**stated, "normalize": True}, maps[1:], between[1:]
    listed = _listed(maps, between, names, tuple(shape))
    if listed is None:
        return None
    for form in (*_short_form(listed, head=head), {"layers": listed, "head": head}):
        try:
            spec = ModelSpec(**form, **stated)
        except ValidationError:  # More or wider layers than this form may state.
            continue
        if list(spec.hidden_layers) == listed:
            return spec
    return None


def _listed(
    maps: Sequence[AffineMap],
    between: Sequence[Nonlinearity | None],
    names: Sequence[dict[str, Any]],
    shape: tuple[int, ...],
) -> list[LayerSpec] | None:
    """The layers of the `maps` for inputs of `shape`, with what is `between` them, `names` being
    the keys that state its activations; None where there are others."""
    found: list[LayerSpec] = []
    left = iter(names)
    for layer, acts in zip_longest(maps, between):
        keys = {"activation": LINEAR} if acts is None else next(left, {"activation": None})
        own = _layer_spec(layer, shape)
        if own is None or (acts is not None and acts.active != _acted(layer)):
            return None
        reshaped, spec, shape = own
        found += [*reshaped, spec.model_copy(update=keys)]
    return found


def _acted(layer: AffineMap) -> int:
    """The features of the result that an activation after the layer acts on."""
    first = layer.maps[0] if isinstance(layer, Stack | DirectSum) else layer
    return first.out_features


def _part(layer: AffineMap, shape: tuple[int, ...]) -> tuple[PartSpec, ...] | None:
    """The layers of one of several maps side by side, of inputs of `shape`."""
    found: list[PartSpec] = []
    for link in layer.links if isinstance(layer, Chain) else [layer]:
        own = _layer_spec(link, shape)
        if own is None:
            return None
        reshaped, spec, shape = own
        found += [*reshaped, spec.model_copy(update={"activation": LINEAR})]
    return tuple(found)


def _side_by_side(layer: Parts, shape: tuple[int, ...]) -> SideBySide | None:
    """The maps side by side of inputs of `shape`."""
    sizes = tuple(part.in_features for part in layer.maps)
    shapes = [shape if isinstance(layer, Stack) else (size,) for size in sizes]
    parts = [_part(*given) for given in zip(layer.maps, shapes, strict=True)]
    known = tuple(part for part in parts if part is not None)
    if len(known) < len(parts):
        return None
    if isinstance(layer, Stack):
        return StackLayer(kind="stack", parts=known)
    if isinstance(layer, Sum):
        return SumLayer(kind="sum", parts=known, sizes=sizes)
    return DirectSumLayer(kind="direct_sum", parts=known, sizes=sizes)


def _short_form(listed: Sequence[LayerSpec], *, head: bool) -> list[dict[str, Any]]:
    """The short form that may state these layers."""
    front = [layer for layer in listed if isinstance(layer, ConvolutionLayer)]
    if not head:
        return []
    short: dict[str, Any] = {"depth": len(listed) + 1 - len(front)}
    if front:
        short |= {"kernel": front[0].kernel, "stride": front[0].stride}
        short |= {"channels": [layer.channels for layer in front]}
    if len(listed) > len(front) and isinstance(listed[-1], DenseLayer):
        short |= {"width": listed[-1].width}
    return [short]


def _layer_spec(
    layer: AffineMap, shape: tuple[int, ...]
) -> tuple[list[UnflattenLayer], AffineLayer | SideBySide, tuple[int, ...]] | None:
    """What reshapes an input of `shape` for the layer, the layer, and the shape of its result; None
    where no spec states such a layer."""
    if isinstance(layer, Parts):
        parts = _side_by_side(layer, shape)
        return None if parts is None else ([], parts, (layer.out_features,))
    if type(layer) is Selection:
        chosen = SelectionLayer(kind="selection", sizes=layer.sizes, kept=layer.kept)
        return [], chosen, (layer.out_features,)
    if type(layer) is Identity:
        return [], IdentityLayer(kind="identity"), shape
    if type(layer) is Dense:
        return [], DenseLayer(kind="dense", width=layer.out_features), (layer.out_features,)
    if type(layer) is Scaling:
        return [], ScalingLayer(kind="scaling"), shape
    if type(layer) is Permutation:
        return [], PermutationLayer(kind="permutation"), shape
    if type(layer) is Normalization:
        return _normalization(layer, shape)
    if not isinstance(layer, Convolution | AveragePool):
        return None
    stride, padding = _sides(layer.stride), _sides(layer.padding)
    found: AffineLayer
    if isinstance(layer, Convolution):
        found = ConvolutionLayer(
            kind="convolution",
            channels=layer.out_shape[0],
            kernel=_sides(layer.window),
            stride=stride,
            padding=padding,
            dilation=_sides(layer.dilation),
            groups=layer.groups,
        )
    else:
        found = PoolLayer(
            kind="average_pool",
            window=_sides(layer.window),
            stride=None if layer.stride == layer.window else stride,
            padding=padding,
            divisor=None if layer.divisor == math.prod(layer.window) else layer.divisor,
        )
    return _reshaped(shape, layer.in_shape), found, layer.out_shape


def _normalization(
    layer: Normalization, shape: tuple[int, ...]
) -> tuple[list[UnflattenLayer], AffineLayer, tuple[int, ...]]:
    many = len(layer.mean)
    per_channel = (shape[0], math.prod(shape[1:])) == (many, layer.positions)
    if layer.positions > 1 and not per_channel:
        wanted = (many, layer.positions, 1)
        return _reshaped(shape, wanted), _batch_normalization(layer, "channel"), wanted
    return [], _batch_normalization(layer, "channel" if per_channel else "feature"), shape


def _batch_normalization(
    layer: Normalization, per: Literal["channel", "feature"]
) -> BatchNormalizationLayer:
    return BatchNormalizationLayer(kind="batch_normalization", eps=layer.eps, per=per)


def _reshaped(shape: tuple[int, ...], wanted: tuple[int, int, int]) -> list[UnflattenLayer]:
    return [] if shape == wanted else [UnflattenLayer(kind="unflatten", shape=wanted)]


def _sides(pair: Pair) -> int | Pair:
    """A height and a width as specs state them."""
    return pair[0] if pair[0] == pair[1] else pair
