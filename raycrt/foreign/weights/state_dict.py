"""The one state dict in the content of a file, without tensors that are not of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from raycrt.errors import InvalidInput

# Depth to which state dicts are searched for: {"a": {"b": {"weight": ...}}} is two deep.
_DEPTH = 3
_WEIGHT = re.compile(
    r"(.*[._])?(weights?|original[01]?|w)([._]?\d+|_orig|_v)?", re.IGNORECASE | re.DOTALL
)
# Added to names by torch.compile and by wrappers that shard or recompute a layer.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_COUNTERS = re.compile(r"(.*\.)?(num_batches_tracked|n_averaged|total_ops|total_params)")
_CRITERION = re.compile(
    r"(.*\.)?(criterion|loss|loss_fn|metrics?|((train|val|valid|test)_)?(acc|accuracy|loss|metrics?"
    r"))\..+"
)


def choose(content: Any, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in `content`: itself, or a mapping in it, up to three deep.

    `key` is its dotted path where there are several. It may continue into the names of one:
    `model.ema` also selects the names that begin with `ema.` in `content["model"]`. Raises
    `InvalidInput` naming the paths found.
    """
    found = dict(_state_dicts(content))
    if not found:
        held = _listing(content) if isinstance(content, Mapping) else type(content).__name__
        raise InvalidInput(f"a file of weights must hold a state dict, but holds {held}")
    chosen = found if key is None else _under(found, key)
    paths_found = ", ".join(path or "the whole file" for path in found)
    if not chosen:
        alone = "; leave the key out" if list(found) == [""] else ""
        raise InvalidInput(
            f"key must lead to a state dict, but {key!r} does not; there are {paths_found}{alone}"
        )
    if len(chosen) > 1:
        raise InvalidInput(
            f"key must say which state dict is meant, there are several: {paths_found}"
        )
    (state,) = chosen.values()
    others = {
        name: value
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    }
    if others:
        raise InvalidInput(
            f"a state dict must hold tensors by name only, but there is {_listing(others)}"
        )
    return dict(state)


def of_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without those that cannot change the network's function, by their plain names.

    Left out are counters (`num_batches_tracked`, `n_averaged`, a profiler's `total_ops` and
    `total_params`) and the tensors of a criterion or metric: class weights, sums, counts. A weight
    matrix among these is refused. The parts of names that `torch.compile` and FSDP add are removed.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _WRAPPERS.sub("", name).lstrip(".")
        if plain in result:
            raise InvalidInput(f"{plain} must be stored once, but is stored as {name} too")
        result[plain] = tensor
    return {name: t for name, t in result.items() if not _without_effect(name, t)}


def _without_effect(name: str, tensor: Tensor) -> bool:
    if _COUNTERS.fullmatch(name):
        return True
    if not _CRITERION.fullmatch(name):
        return False
    if tensor.dim() > 1 and tensor.is_floating_point():
        raise InvalidInput(
            f"a criterion or metric must have no matrices, but there is {name} "
            f"{tuple(tensor.shape)}"
        )
    return True


def _state_dicts(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mappings of `content` that hold a matrix called a weight, by their dotted paths."""
    level, seen = [("", content)], set()
    for _ in range(_DEPTH + 1):
        below = []
        for path, value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            named = {name: v for name, v in value.items() if isinstance(name, str)}
            if any(_is_weight(name, v) for name, v in named.items()):
                yield path, value
            for name, v in named.items():
                # An optimizer's state may have matrices with the names of weights too.
                if "optim" not in name.lower():
                    below.append((f"{path}.{name}" if path else name, v))
        level = below


def _is_weight(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and bool(_WEIGHT.fullmatch(name))


def _under(found: dict[str, Mapping[str, Any]], key: str) -> dict[str, Mapping[str, Any]]:
    """The state dict at `key`; else those below it, or the part of one that is below it."""
    if key in found:
        return {key: found[key]}
    inside = {}
    for path, state in found.items():
        before = f"{path}." if path else ""
        if path.startswith(f"{key}."):
            inside[path] = state
        elif key.startswith(before):
            start = key.removeprefix(before) + "."
            part = {n: v for n, v in state.items() if isinstance(n, str) and n.startswith(start)}
            if part:
                inside[path] = part
    return inside


def _listing(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{name} ({type(v).__name__})" for name, v in values.items()) or "nothing"
