"""Modules that only pass their input to another one."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from raycrt.networks.hooks import has_hooks

# Wrappers that compute the same as their `module`.
_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that compute the same as it does."""
    while not has_hooks(model):
        if type(model) in _WRAPPERS and "forward" not in vars(model):
            model = model.get_submodule("module")
        elif _is_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            break
    return model


def _is_compiled(model: nn.Module) -> bool:
    """Whether `model` is a result of torch.compile, whose class takes long to import."""
    kind = type(model)
    return (kind.__module__, kind.__name__) == ("torch._dynamo.eval_frame", "OptimizedModule")
