"""Weights that are stored as the parts from which torch computes them.

Supported are weight and spectral normalisation in torch's old form (`weight_g`, `weight_v`;
`weight_orig`, `weight_u`, `weight_v`) and its new one (`parametrizations.weight.original0`, ...),
and pruning (`weight_orig`, `weight_mask`). The weight is the one that the module itself computes in
evaluation mode on the CPU, to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raycrt.errors import InvalidInput


def fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with each weight in the place of the first of its parts.

    Raises `InvalidInput` where parts do not fit together, or where they do not determine the weight
    without the module, as with orthogonal parametrisations.
    """
    weight_of: dict[str, str] = {}
    folded: dict[str, Tensor] = {}
    for weight, parts in _groups(tensors).items():
        compute = _KINDS.get(frozenset(parts))
        if compute is None:
            raise InvalidInput(
                f"{weight} must be stored as itself where its parts do not give it "
                "(torch.nn.utils.parametrize.remove_parametrizations), but there are "
                f"{', '.join(parts.values())}"
            )
        if weight in tensors:
            raise InvalidInput(f"{weight} must not be stored beside its parts")
        of = {part: tensors[name] for part, name in parts.items()}
        try:
            folded[weight] = compute(of)
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in parts.values())
            raise InvalidInput(f"the parts of {weight} must fit together, got {shapes}") from None
        weight_of |= dict.fromkeys(parts.values(), weight)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        weight = weight_of.get(name, name)
        result.setdefault(weight, folded.get(weight, tensor))
    return result


_NEW = re.compile(r"(?P<head>.*\.)?parametrizations\.(?P<weight>\w+)\.(?P<part>.+)")
_OLD = re.compile(r"(?P<weight>.+)_(?P<part>g|v|u|orig|mask)")


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """The names of the parts of each weight that is stored in parts."""
    groups: dict[str, dict[str, str]] = {}
    for name in tensors:
        if new := _NEW.fullmatch(name):
            groups.setdefault((new["head"] or "") + new["weight"], {})[new["part"]] = name
        elif old := _OLD.fullmatch(name):
            groups.setdefault(old["weight"], {})["_" + old["part"]] = name
    # A name may have such an ending without being that of a part.
    return {w: parts for w, parts in groups.items() if len(parts) > 1 or "original" in parts}


def _normalised(direction: Tensor, length: Tensor) -> Tensor:
    """Weight normalisation, along the dimension that the shape of `length` shows."""
    if length.dim() == 0:
        return torch._weight_norm(direction, length, -1)
    for dim, size in enumerate(direction.shape):
        if length.shape == tuple(size if d == dim else 1 for d in range(direction.dim())):
            return torch._weight_norm(direction, length, dim)
    raise RuntimeError("shapes differ")


def _spectrally_normalised(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return weight / torch.dot(left, torch.mv(weight.flatten(1), right))


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    if weight.shape != mask.shape:
        raise RuntimeError("shapes differ")
    return mask.to(weight.dtype) * weight


_KINDS: dict[frozenset[str], Callable[[dict[str, Tensor]], Tensor]] = {
    frozenset({"_g", "_v"}): lambda of: _normalised(of["_v"], of["_g"]),
    frozenset({"original0", "original1"}): lambda of: _normalised(of["original1"], of["original0"]),
    frozenset({"_orig", "_u", "_v"}): lambda of: _spectrally_normalised(
        of["_orig"], of["_u"], of["_v"]
    ),
    frozenset({"original", "0._u", "0._v"}): lambda of: _spectrally_normalised(
        of["original"], of["0._u"], of["0._v"]
    ),
    frozenset({"_orig", "_mask"}): lambda of: _masked(of["_orig"], of["_mask"]),
}
