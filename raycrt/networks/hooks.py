"""Hooks and replaced methods, which may change the result of a torch module's call."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as modules

from raycrt.errors import InvalidInput
from raycrt.networks.network import Network


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def require_plain(network: Network) -> Network:
    """`network`; `InvalidInput` where its call may return other results than its layers.

    Certificates are proved for the layers, and would be wrong for a call that does something else.
    """
    require_no_global_hooks()
    if type(network).forward is not Network.forward:
        raise InvalidInput(
            f"a Network must have no forward of its own, but {type(network).__name__} has one"
        )
    for name, part in network.named_modules():
        if has_hooks(part) or "forward" in vars(part):
            raise InvalidInput(
                "a Network must have no forward hooks and no replaced forward, but "
                f"{name or 'it'} ({type(part).__name__}) has"
            )
    return network


def require_no_global_hooks() -> None:
    """Raise `InvalidInput` if torch has global forward hooks, which run in every module's call."""
    count = len(modules._global_forward_hooks) + len(modules._global_forward_pre_hooks)
    if count > 0:
        raise InvalidInput(
            "global forward hooks must be removed before anything is certified, but torch.nn has "
            f"{count} (register_module_forward_hook, register_module_forward_pre_hook)"
        )
