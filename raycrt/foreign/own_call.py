"""Calls of a user's model as a function, in evaluation mode, with its state restored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from raycrt.errors import InvalidInput


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context with every part of `model` in evaluation mode, without gradients and autocast.

    The modes and the states of torch's random generators are restored at the end. Raises
    `InvalidInput` if a part is in training mode and a `train` or `eval` of the model's own may do
    more than set the mode.
    """
    modes = [(part, part.training) for part in model.modules()]
    training = [(name, part) for name, part in model.named_modules() if part.training]
    if training and any(_has_own_mode(part) for part, _ in modes):
        name, part = training[0]
        raise InvalidInput(
            "a model with a train() or eval() of its own must be in evaluation mode (call "
            f"model.eval() first), but layer {name or '(whole model)'} ({type(part).__name__}) "
            "is in training mode"
        )
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        for part, _ in modes:
            part.training = False
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            _nothing_compiled(),
        ):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Context in which compiled code runs eagerly; the compiler, slow to import, is not loaded."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _has_own_mode(part: nn.Module) -> bool:
    own = vars(part)
    if isinstance(part, fx.GraphModule):  # Its graph is what it computes in every mode.
        return False
    kept = type(part).train is nn.Module.train and type(part).eval is nn.Module.eval
    return not kept or "train" in own or "eval" in own


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type that holds all floating-point numbers of `model`, float32 where it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return reduce(torch.promote_types, types) if types else torch.float32


def device_of(model: nn.Module) -> torch.device:
    """The device of the tensors of `model`; `InvalidInput` where they are on several."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise InvalidInput(f"a model must be on one device, but is on {sorted(map(str, devices))}")
    return devices.pop() if devices else torch.device("cpu")


def in_float64(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """`model`'s own call with all of its numbers in float64; each call restores the original."""

    def called(x: Tensor) -> Tensor:
        # Not torch.func.functional_call, which leaves its tensors in a layer that is used twice.
        places: list[tuple[dict[str, Any], str, Tensor]] = [
            (tensors, name, tensor)
            for part in model.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        exact = {
            id(tensor): tensor.detach().double() if tensor.is_floating_point() else tensor.clone()
            for _, _, tensor in places
        }
        try:
            for tensors, name, tensor in places:
                tensors[name] = exact[id(tensor)]
            return model(x)
        finally:
            for tensors, name, tensor in places:
                tensors[name] = tensor

    return called


def runs(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `function` accepts inputs like `x`, and returns a tensor of their type."""
    try:
        got = function(x)
    except Exception:
        return False
    return isinstance(got, Tensor) and got.dtype == x.dtype
