"""Programs of `torch.export`: archives of them, and calls with the batch that they take."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from raycrt.errors import InvalidInput

_LOG = "torch.export"


def load(path: Path) -> nn.Module:
    """The module of the program in an archive of `torch.export.save`.

    torch reads pickles and evaluates expressions in it: only a trusted archive may be loaded.
    `InvalidInput` for a file that is none.
    """
    log = logging.getLogger(_LOG)
    before = log.level
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive")
        log.setLevel(logging.CRITICAL)  # A traceback of what is raised here anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path).module()
    except Exception as error:  # Whatever torch meets in a damaged archive.
        said = " ".join(str(error).split())
        raise InvalidInput(
            f"{path} must be an archive that torch.export.save of this torch, "
            f"{torch.__version__}, can have written: {said:.200}"
        ) from None
    finally:
        log.setLevel(before)


def stated_batch(model: nn.Module) -> int | None:
    """The number of inputs that an exported program takes at once; None where any number is, or
    `model` is no such program."""
    if not isinstance(model, fx.GraphModule):
        return None
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    example = inputs[0].meta.get("val") if inputs else None
    if not isinstance(example, Tensor) or example.dim() == 0:
        return None
    size = example.shape[0]
    return size if isinstance(size, int) else None


def require_one_or_any(model: nn.Module) -> None:
    """`InvalidInput` for a program that takes several inputs at once: its output for one of them
    may depend on the others."""
    batch = stated_batch(model)
    if batch not in (None, 1):
        raise InvalidInput(
            f"a program of torch.export must take one input at a time or any number of them "
            f"(dynamic_shapes=({{0: torch.export.Dim('batch')}},)), but this one takes {batch}"
        )


def one_by_one(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`call`, which takes a batch of one, for a batch of any size."""
    return lambda x: torch.cat([call(row[None]) for row in x])
