"""Reader of torch modules whose call is a graph of layers and sums.

The theorem then holds for the function that the layers state in evaluation mode, in exact
arithmetic with the stored weights. The network is compared with the model's own call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raycrt.data.values.images import batch_of_images
from raycrt.errors import require
from raycrt.foreign.assembly import network_of
from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.modules.exported import one_by_one, require_one_or_any, stated_batch
from raycrt.foreign.modules.graph import steps_of
from raycrt.foreign.modules.layers import Step
from raycrt.foreign.modules.operations import Squeeze
from raycrt.foreign.modules.rescaling import Rescaling
from raycrt.foreign.modules.wrappers import unwrapped
from raycrt.foreign.own_call import device_of, dtype_of, evaluation_mode, in_float64, runs
from raycrt.networks.hooks import require_no_global_hooks, require_plain
from raycrt.networks.network import Network


def as_network(
    model: nn.Module, input_shape: Sequence[int] | None = None, images: Tensor | None = None
) -> Network:
    """A `Network` that computes what `model` does in evaluation mode; the weights are copied.

    `model` is any `torch.nn.Module` whose call consists of layers named in
    `raycrt.foreign.modules.layers.supported()` and of sums of their results. Layers after the last
    affine one that change no decision are left out: softmax, log-softmax and positive factors.
    A model with one output z becomes the network with logits (0, z): class 1 means z > 0.

    `input_shape` is the shape of one input; it may be left out where a linear layer comes first.
    The network is compared with what the model's call returns at random inputs, and at some of
    `images` (n, *input_shape). Raises `InvalidInput` naming the first layer that does not fit, or
    the largest difference.
    """
    if isinstance(model, Network):
        return require_plain(model)
    require(isinstance(model, nn.Module), "model is a torch.nn.Module", model=type(model).__name__)
    require(
        input_shape is None
        or (
            isinstance(input_shape, Sequence)
            and all(isinstance(size, int) and size > 0 for size in input_shape)
        ),
        "input_shape is the sizes > 0 of one input, without the batch",
        input_shape=input_shape,
    )
    require_no_global_hooks()
    images = None if images is None else batch_of_images(images)
    model = unwrapped(model)
    require_one_or_any(model)
    with evaluation_mode(model):
        steps, computed = steps_of(model)
        steps, tail = _without_tail(steps)
        network, binary = network_of(steps, None if input_shape is None else tuple(input_shape))
        network = network.to(device_of(model))
        _check_tail(tail, binary=binary)
        shape = tuple(input_shape or (network.features,))
        _compare(model, network, shape, images, _Tail(tail, binary=binary), computed=computed)
    return network


def _without_tail(steps: list[Step]) -> tuple[list[Step], list[nn.Module]]:
    """The layers up to the last one that may change decisions, and those after it."""
    ends = len(steps)
    while ends > 0 and len(steps[ends - 1].given) == 1 and _keeps_decisions(steps[ends - 1].layer):
        ends -= 1
    return steps[:ends], [step.layer for step in steps[ends:]]


def _keeps_decisions(layer: nn.Module) -> bool:
    """Whether decisions are the same after `layer`, at the end of a model."""
    if isinstance(layer, nn.Sigmoid | Squeeze):
        return True
    if isinstance(layer, nn.Softmax | nn.LogSoftmax):
        return layer.dim in (None, 1, -1)
    if isinstance(layer, nn.Flatten):
        return layer.start_dim == 0
    return isinstance(layer, Rescaling) and layer.is_positive


def _check_tail(tail: Sequence[nn.Module], *, binary: bool) -> None:
    """Check that a sigmoid at the end has one output, and a softmax several."""
    for layer in tail:
        require(
            not isinstance(layer, nn.Softmax | nn.LogSoftmax)
            if binary
            else not isinstance(layer, nn.Sigmoid),
            "a sigmoid at the end of a model has one output, a softmax several",
            last=type(layer).__name__,
            outputs="one" if binary else "several",
        )


class _Tail:
    """The map from the logits of a network to the output of its model."""

    def __init__(self, layers: Sequence[nn.Module], *, binary: bool) -> None:
        self.layers, self.binary = layers, binary

    def __call__(self, logits: Tensor) -> Tensor:
        outputs = logits[:, 1:] if self.binary else logits
        for layer in self.layers:
            outputs = layer(outputs)
        return outputs


def _compare(
    model: nn.Module,
    network: Network,
    shape: tuple[int, ...],
    images: Tensor | None,
    tail: Callable[[Tensor], Tensor],
    *,
    computed: bool,
) -> None:
    """Compare in the model's own type and, where it runs with the stored weights, in float64.

    A model that mixes types may run only in float64, and a program may take one input at a time.
    """
    own, exact = dtype_of(model), in_float64(model)
    call: Callable[[Tensor], Tensor] = model
    if stated_batch(model) is not None:
        call, exact = one_by_one(model), one_by_one(exact)
    x = torch.zeros(2, *shape, device=network.device)
    sharp = own != torch.float64 and not computed and runs(exact, x.double())
    if not sharp or runs(call, x.to(own)):
        require_same_function(call, network, shape, given=images, dtype=own, tail=tail)
    if sharp:
        require_same_function(exact, network, shape, given=images, dtype=torch.float64, tail=tail)
