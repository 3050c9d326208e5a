"""The spec that describes a network read from a file, so that a second program can read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycrt.activations import ACTIVATIONS, FAMILIES, Activation, activation
from raycrt.networks.layers.affine import AffineMap, Dense
from raycrt.networks.layers.convolution import Convolution
from raycrt.networks.layers.diagonal import Identity
from raycrt.networks.layers.residual import DirectSum, Parts, Stack, Sum
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec, Spec
from raycrt.specs.layers import (
    LINEAR,
    BlockLayer,
    ConvolutionLayer,
    DenseLayer,
    LayerSpec,
    ResidualLayer,
)


def described(path: Path, network: Network, spec: ModelSpec, classes: int) -> ModelSpec | None:
    """The spec of the `network` that `files.load(path, spec)` returned, for data of `classes`
    classes.

    None where no spec describes it.
    """
    if path.is_dir():
        return Spec.load(path).model
    if network.classes != classes:  # A model's spec does not state their number.
        return None
    if path.name.lower().endswith(".onnx"):
        return spec_of(network)
    return _of_layers(network, {"activation": spec.activation, "beta": spec.beta})


def spec_of(network: Network) -> ModelSpec | None:
    """The spec of a network of dense layers, convolutions and residual blocks with activations that
    ship; None of any other network."""
    found = [_known(each.activation) for each in network.nonlinearities]
    acting = [name for name, each in zip(found, network.nonlinearities, strict=True) if each.active]
    # The model's activation may be any of them, but all softplus have its sharpness.
    stated = next((name for name in acting if name is not None and name[1] != 1.0), acting[0])
    if stated is None or None in found:
        return None
    if any(name[0] in FAMILIES and name[1] != stated[1] for name in acting if name):
        return None
    names = [None if name == stated else name[0] for name in found if name]
    return _of_layers(network, {"activation": stated[0], "beta": stated[1]}, names)


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
    network: Network, stated: dict[str, Any], names: Sequence[str | None] = ()
) -> ModelSpec | None:
    """`stated` with the layers of a network, in the short form where that is possible. `names` are
    the activations of hidden layers, or None where it is the one that is stated."""
    *hidden_maps, last = network.layers
    hidden = _listed(hidden_maps, network.nonlinearities, names or [None] * len(hidden_maps))
    if type(last) is not Dense or hidden is None:
        return None
    front = [layer for layer in hidden if isinstance(layer, ConvolutionLayer)]
    short: dict[str, Any] = {"depth": len(network.layers) - len(front)}
    if front:
        short |= {"kernel": front[0].kernel, "stride": front[0].stride}
        short |= {"channels": [layer.channels for layer in front]}
    if len(hidden) > len(front) and isinstance(hidden[-1], DenseLayer):
        short |= {"width": hidden[-1].width}
    for form in (short, {"layers": hidden}):
        try:
            spec = ModelSpec(**form, **stated)
        except ValidationError:  # More or wider layers than this form may state.
            continue
        if list(spec.hidden_layers) == hidden:
            return spec
    return None


def _listed(
    maps: Sequence[AffineMap], between: Sequence[Nonlinearity], names: Sequence[str | None]
) -> list[LayerSpec] | None:
    """The layers of the `maps`, with the nonlinearities `between` after them and the `names` of
    their activations; None where there are others."""
    found: list[LayerSpec] = []
    branch: list[DenseLayer | ConvolutionLayer] = []
    for layer, acts, name in zip(maps, between, names, strict=True):
        name = name if acts.active else LINEAR
        own = _layer_spec(layer.maps[0] if isinstance(layer, Parts) else layer, name)
        if own is None:
            return None
        if not isinstance(layer, Parts):
            if acts.passes and acts.active:
                return None
            found.append(own)
        elif type(layer) is (DirectSum if branch else Stack):
            skips = len(layer.maps) == 2 and type(layer.maps[1]) is Identity
            if not skips or acts.active not in (0, layer.maps[0].out_features):
                return None
            branch.append(own)
        else:
            block = _block_spec(layer, branch, own, name, acts) if branch else None
            if block is None:
                return None
            found.append(block)
            branch = []
    return None if branch else found


def _block_spec(
    layer: Parts,
    branch: Sequence[DenseLayer | ConvolutionLayer],
    last: DenseLayer | ConvolutionLayer,
    name: str | None,
    acts: Nonlinearity,
) -> LayerSpec | None:
    """The block that `layer` ends, after the layers of its branch but the `last`."""
    if type(layer) is not Sum or len(layer.maps) != 2 or acts.active not in (0, acts.width):
        return None
    inner, outer = branch[0], layer.maps[0]
    skip, shortcut = layer.maps[1], None
    if type(skip) is not Identity:
        shortcut = _layer_spec(skip, LINEAR)
        if shortcut is None or bool(skip.offset().any()):
            return None
    elif len(branch) == 1 and name == LINEAR and inner.activation != LINEAR:
        same: dict[str, Any] = {"kind": "residual", "activation": inner.activation}
        if isinstance(inner, DenseLayer) and isinstance(last, DenseLayer):
            return ResidualLayer(width=inner.width, **same)
        if isinstance(inner, ConvolutionLayer) and isinstance(outer, Convolution):
            kernel = inner.kernel
            keeps = {"kernel": kernel, "stride": 1, "padding": kernel // 2, "groups": 1}
            whole = keeps | {"kind": "convolution", "activation": LINEAR}
            if kernel % 2 and all(
                each.model_copy(update={"activation": LINEAR})
                == ConvolutionLayer(channels=each.channels, **whole)
                for each in (inner, last)
                if isinstance(each, ConvolutionLayer)
            ):
                return ResidualLayer(width=inner.channels, kernel=kernel, **same)
    ends = last.model_copy(update={"activation": LINEAR})
    return BlockLayer(kind="block", branch=(*branch, ends), shortcut=shortcut, activation=name)


def _layer_spec(layer: AffineMap, name: str | None) -> DenseLayer | ConvolutionLayer | None:
    """A dense or convolutional layer with the activation `name`."""
    if type(layer) is Dense:
        return DenseLayer(kind="dense", width=layer.out_features, activation=name)
    if type(layer) is not Convolution:
        return None
    same = (layer.window, layer.stride, layer.padding)
    if layer.dilation != (1, 1) or any(tall != wide for tall, wide in same):
        return None
    kernel, stride, padding = (side[0] for side in same)
    return ConvolutionLayer(
        kind="convolution",
        channels=layer.out_shape[0],
        kernel=kernel,
        stride=stride,
        padding=padding,
        groups=layer.groups,
        activation=name,
    )
