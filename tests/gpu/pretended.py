"""A GPU that is not there: tensors in main memory that say they are on another device.

What is computed from them says so too, and an operation on tensors of both devices is refused where
CUDA refuses it. So code that forgets a device fails here as it would on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

# One for which torch has a name and, as built, nothing else.
DEVICE = "lazy"

_aten = torch.ops.aten
# Take tensors of both devices.
_BETWEEN = {_aten._to_copy.default, _aten.copy_.default}
# Take row numbers in main memory beside tensors on a GPU.
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class Elsewhere(Tensor):
    """Says that `held` is on `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        made.held = held
        return made

    # What torch does in C++, where no dispatch reaches.

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        return self.held.numpy(force=True) if force else super().numpy()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return Elsewhere(self.held.new_tensor(data, **options))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Within the block `DEVICE` is a place for tensors and modules."""

    def __enter__(self) -> Pretended:
        future = torch.__future__
        self._overwrites = future.get_overwrite_module_params_on_conversion()
        future.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = any(isinstance(each, Elsewhere) for each in given)
    here = any(not isinstance(each, Elsewhere) and each.dim() > 0 for each in given)
    by_rows = func in _INDEXED and isinstance(args[0], Elsewhere)
    if there and here and func not in _BETWEEN and not by_rows:
        raise RuntimeError(f"tensors of {func} are on two devices, {DEVICE} and cpu")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda each: each.held, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    if func is _aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    if not there:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, Elsewhere, found))
