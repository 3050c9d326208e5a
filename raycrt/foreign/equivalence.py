"""Comparison of a network with the model that it was read from, at points.

A reader sees only a model's parts; hooks, wrappers and overridden methods may change what its call
returns. So the model is called, as its users call it, at given inputs and at random ones in their
range and beyond, and refused where its outputs differ from the network's. This proves nothing about
other points: a model that differs only elsewhere is not detected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from raycrt.activations import Activation
from raycrt.errors import InvalidInput, require
from raycrt.networks.network import Network

Function = Callable[[Tensor], Tensor]

_GIVEN, _RANDOM, _SEED = 64, 16, 0
# The model may sum in another order than the network does: its rounding may be this many times the
# rounding observed in the network, plus some units in the last place in case none is observed.
_TIMES, _UNITS = 16, 8
# torch's softplus is linear above a threshold that is at least this, in units of 1 / beta.
_SOFTPLUS_THRESHOLD = 20.0


@torch.no_grad()
def require_same_function(
    original: Function,
    network: Network,
    shape: Sequence[int],
    *,
    given: Tensor | None = None,
    dtype: torch.dtype | None = None,
    tail: Function | None = None,
) -> None:
    """Raise `InvalidInput` unless `original` and `network` agree, up to rounding, where compared.

    `original` takes inputs (n, *shape) of `dtype` (the network's own, by default) and returns
    `tail` of the network's logits (n, classes), by default the logits themselves. Both are
    evaluated without gradients and in no precision but `dtype`, at up to 64 of the `given` inputs
    (n, *shape) and at random ones, always the same: in the range of the given ones (0 to 1 if there
    are none) and in ranges 4, 16 and 64 times as wide around its middle. Half of these are uniform
    in the range, half are uniform between two random ends of their own, and one has a single color.

    Rounding is estimated, not bounded: by the largest difference, for each output and range, of the
    network's evaluations in `dtype` (for float64: in float32, scaled down) and in float64. For
    softplus, the difference that torch's threshold makes is added. Allowed are 16 times that and 8
    units in the last place of the largest output. Entries must be infinite or NaN in both.
    """
    dtype = dtype or network.dtype
    exact = network.in_float64()
    device = exact.device
    rough = exact.copied(torch.float32 if dtype == torch.float64 else dtype)
    finish: Function = tail or (lambda logits: logits)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
    ):
        for name, points in _groups(given, shape):
            x = points.to(device).to(dtype)
            got = _called(original, x)
            wanted = finish(exact(x.double()))
            require(
                got.shape == wanted.shape,
                "the model's output has the shape that its layers give it",
                output=tuple(got.shape),
                layers=tuple(wanted.shape),
            )
            seen = finish(rough(x.to(rough.dtype)))
            scale = torch.finfo(dtype).eps / torch.finfo(rough.dtype).eps
            rounding = _largest((seen.double() - wanted) * scale)
            if any(each.activation.name == "softplus" for each in network.nonlinearities):
                rounding = rounding + _largest(finish(_linear_early(exact)(x.double())) - wanted)
            units = _UNITS * torch.finfo(dtype).eps * _largest(wanted)
            overflows = ~seen.isfinite() if rough.dtype == dtype else ~wanted.isfinite()
            _compare(name, got.double(), wanted, overflows, _TIMES * rounding + units)


def _groups(given: Tensor | None, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Inputs (n, *shape) with a name for messages; random ones are float64."""
    low, high = 0.0, 1.0
    if given is not None and len(given) > 0:
        chosen = torch.linspace(0, len(given) - 1, min(len(given), _GIVEN)).round().long()
        yield "given input,", given.detach()[chosen.to(given.device)].reshape(-1, *shape)
        finite = given.detach()[given.isfinite()].double()
        if len(finite) > 0:
            low, high = float(finite.min()), float(finite.max())
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    half = half or max(1.0, abs(middle))
    generator = torch.Generator().manual_seed(_SEED)
    for times in (1, 4, 16, 64):
        unit = torch.rand(_RANDOM, *shape, generator=generator, dtype=torch.float64)
        # Every other row between two ends of its own: dark and bright, flat and full of contrast.
        ends = torch.rand(2, _RANDOM, *[1] * len(shape), generator=generator, dtype=torch.float64)
        ends[:, ::2] = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, *[1] * unit.dim())
        ends[:, 1] = times % 2  # One color: the largest in the range itself, else the least.
        low, high = middle - times * half, middle + times * half
        name = f"random input (between {low:g} and {high:g}),"
        yield name, low + (high - low) * (ends[0] + (ends[1] - ends[0]) * unit)


def _called(original: Function, x: Tensor) -> Tensor:
    try:
        got = original(x.clone())
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"the model must take inputs {tuple(x.shape)} of {x.dtype}, but its call raised "
            f"{type(error).__name__}: {first}"
        ) from None
    if not isinstance(got, Tensor):
        raise InvalidInput(f"the model must return one tensor, but got {type(got).__name__}")
    return got.detach()


def _linear_early(network: Network) -> Network:
    """The network with torch's softplus at the lowest threshold."""
    hidden = [
        replace(each, activation=_early(each.activation))
        if each.activation.name == "softplus"
        else each
        for each in network.nonlinearities
    ]
    return Network(network.layers, hidden)


def _early(soft: Activation) -> Activation:
    # The curvature of softplus at 0 is a quarter of its sharpness.
    above = _SOFTPLUS_THRESHOLD / (4 * soft.curvature_range[1])
    return replace(soft, value=lambda z, xp: xp.where(z > above, z, soft.value(z, xp)))


def _largest(numbers: Tensor) -> Tensor:
    """The largest finite absolute value of each output (n, ...), separately: a class that is masked
    by a large number must not affect the others."""
    return numbers.double().abs().nan_to_num(0.0, 0.0, 0.0).amax(0)


def _compare(name: str, got: Tensor, wanted: Tensor, overflows: Tensor, allowed: Tensor) -> None:
    """Raise `InvalidInput` unless `got` and `wanted` differ by at most `allowed`, per output.

    `overflows` marks where the network's own evaluation in the model's type is infinite or NaN.
    """
    apart = (got - wanted).abs()
    apart[overflows & ~got.isfinite()] = 0
    apart = apart.nan_to_num(torch.inf, torch.inf)
    if bool((apart <= allowed).all()):
        return
    row, entry = divmod(int((apart - allowed).argmax()), apart[0].numel())
    given, made = float(got.flatten(1)[row, entry]), float(wanted.flatten(1)[row, entry])
    raise InvalidInput(
        f"the network must compute what the model's call does, but at {name} number {row}, the "
        f"model's output {entry} is {given:.9g} and that of its layers {made:.9g}: they are "
        f"{float(apart.flatten(1)[row, entry]):.3g} apart where rounding explains "
        f"{float(allowed.flatten()[entry]):.2g} (a hook, a wrapper "
        "or an overridden method may change what is returned)"
    )
