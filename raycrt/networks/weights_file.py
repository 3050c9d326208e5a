"""Files of weights: read without running code, numbers taken exactly.

Half-precision numbers (float16, bfloat16) are float32 numbers too. They are widened here, where
they are read, so that everything after computes with, hashes and stores float32 or float64.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from raycrt.errors import InvalidInput
from raycrt.system.places.storage import Place, local

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Classes that torch does not read by default, but users store beside weights; creating them runs no
# code. A path of either system becomes a pure path, which accesses no files.
_NUMBERS = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, f"{name}DType") for name in _NUMBERS),
    *(
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.empty(0)))
    ),
    *(
        (getattr(pathlib, f"Pure{system}Path"), f"{module}.{pure}{system}Path")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
]


def read(path: Place) -> Any:
    """The content of a `.safetensors` file, or else of one by `torch.save`; tensors are on the CPU.

    Beside tensors and containers of them, numbers and text, plain types are read: numpy's numbers
    and arrays, `argparse.Namespace` and paths. Raises `InvalidInput` naming the file and the cause.
    """
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    if empty:
        raise InvalidInput(f"{path} is empty")
    try:
        with local(path) as file, safe_globals(_PLAIN), warnings.catch_warnings():
            if file.name.lower().endswith(".safetensors"):
                return load_file(file)
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # A damaged file may break its reader anywhere.
        raise InvalidInput(_sentence(path, error)) from None


def _sentence(path: Place, error: Exception) -> str:
    """The reason why `path` was not read, with only the cause from the reader's own message."""
    if isinstance(error, pickle.UnpicklingError):
        # Torch wraps the unpickler's own error in its advice.
        error = error.__context__ if isinstance(error.__context__, Exception) else error
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+) |classes allowlisted .* but got (.*)", text):
        name = refused[1] or refused[2]
        return (
            f"{path} must hold tensors and plain values only, as torch.save(model.state_dict(), "
            f"...) writes them, but holds a {name}, which could run code when it is read"
        )
    if "TorchScript" in text:
        return (
            f"{path} must hold tensors by name, as torch.save(model.state_dict(), ...) writes "
            "them, but is a TorchScript archive"
        )
    if "Unsupported operand 149" in text:  # A frame, which pickles have from protocol 4 on.
        return f"{path} is damaged, or written in another pickle protocol than torch.save's own, 2"
    kind = "safetensors" if path.name.lower().endswith(".safetensors") else "torch.save"
    ours = isinstance(error, RuntimeError | pickle.UnpicklingError | SafetensorError)
    cause = re.sub(r"^\[enforce fail at .*?\] \. ", "", text) if ours else ""
    cause = re.split(r"\.?\n|\.\s", cause)[0].strip().rstrip(".")
    return f"{path} is damaged, or not a file of {kind}" + (f" ({cause})" if cause else "")


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise `InvalidInput` naming the first tensor that is not of plain real floating numbers."""
    for name, tensor in tensors.items():
        found = str(tensor.dtype)
        if tensor.is_meta:
            found = "on the meta device, without numbers"
        elif tensor.is_quantized:
            found = f"quantised ({found})"
        elif tensor.layout is not torch.strided:
            found = str(tensor.layout)
        elif tensor.dtype in FLOATS:
            continue
        raise InvalidInput(
            "weights must be stored as float16, bfloat16, float32 or float64 numbers, "
            f"but {name} is {found}"
        )


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers, exactly, all of one type: float64 if any tensor is, else float32.

    Raises `InvalidInput` naming a tensor of another kind.
    """
    check_numbers(tensors)
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if double else torch.float32
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
