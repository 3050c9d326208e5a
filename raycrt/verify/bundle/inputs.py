"""The test rows of a bundle: the reader's own, else those that the bundle holds."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from raycrt import data
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput, require
from raycrt.specs import Place, Spec
from raycrt.verify.bundle.names import INPUTS, LABELS
from raycrt.verify.inputs import InArrays, Inputs, of_run

# Most rows of a bundle without data, of which nothing else limits the number.
_ROWS = 10**7
_OWN = "that the inputs and labels in the bundle are those of {}"


def of_bundle(
    spec: Spec,
    *,
    place: Path,
    rows: object,
    file: Path | None,
    directory: Place | None,
    trusted: bool,
) -> Inputs:
    """The test rows that the unpacked bundle in `place` is about; `rows` is their number there.

    They are the arrays in `file`, the data of `spec` in `directory`, the bundle's own, or the data
    of `spec` where this machine has it, in this order. Without any, only the shape is known.
    """
    if file is not None:
        return _of_file(file, spec)
    # Paths in the spec are those of another machine.
    elsewhere = spec.override({"data.directory": None})
    if directory is not None:
        return of_run(elsewhere, directory, trusted)
    if (place / INPUTS).is_file():
        return _of_place(place, spec)
    try:
        if spec.data.path is not None:
            raise InvalidInput(
                f"the data is {spec.data.title}, which --data-dir or --data must give"
            )
        return of_run(elsewhere, None, trusted)
    except InvalidInput as error:
        return _none(spec, rows, str(error))


def _none(spec: Spec, rows: object, reason: str) -> Inputs:
    require(
        type(rows) is int and 0 < rows <= _ROWS,
        f"0 < rows <= {_ROWS} in the manifest",
        rows=str(rows)[:50],
    )
    assert isinstance(rows, int)
    return Inputs(
        title=spec.data.title,
        shape=data.shape(spec.data),
        rows=rows,
        unchecked=(f"radii, predictions, labels and hashes of inputs ({reason})",),
    )


def _of_place(place: Path, spec: Spec) -> Inputs:
    inputs, labels = _array(place / INPUTS), _array(place / LABELS)
    shape = data.shape(spec.data)
    require(
        inputs.dtype == np.dtype("<f4") and inputs.shape[1:] == shape,
        f"{INPUTS} is little-endian float32 (rows, *{shape})",
        type=inputs.dtype.str,
        shape=inputs.shape,
    )
    _check_labels(labels, len(inputs), LABELS)
    said = (_OWN.format(spec.data.title),)
    return InArrays.of(spec.data.title, inputs, labels.astype(np.int64), said)


def _of_split(*names: str) -> tuple[str, ...]:
    return tuple(each for name in names for each in (name, f"test_{name}", f"{name}_test"))


_INPUTS_OF_FILES = _of_split("inputs", "images", "x")
_LABELS_OF_FILES = _of_split("labels", "y")


def _of_file(file: Path, spec: Spec) -> Inputs:
    """The arrays `inputs` (or `images`, `x`) and `labels` (or `y`) of an .npz file, perhaps with
    `test_` before or `_test` behind, or the inputs alone in an .npy file, in the order and number
    of the rows."""
    loaded = _loaded(file)
    arrays = {"inputs": loaded} if isinstance(loaded, np.ndarray) else loaded
    inputs, labels = (
        next((arrays[name] for name in names if name in arrays), None)
        for names in (_INPUTS_OF_FILES, _LABELS_OF_FILES)
    )
    if inputs is None:
        raise InvalidInput(
            f"{file} must hold an array inputs, images or x, but has {sorted(arrays)[:9]}"
        )
    shape = data.shape(spec.data)
    numbers = pixels.of_arrays(inputs, str(file), None, shape)
    require(
        numbers.shape[1:] == shape,
        "inputs have the shape that was certified",
        file=str(file),
        shape=numbers.shape[1:],
        certified=shape,
    )
    if labels is None:
        said = (f"labels, which {file.name} does not hold",)
        return InArrays.of(file.name, numbers, None, said)
    _check_labels(labels, len(numbers), str(file))
    return InArrays.of(file.name, numbers, labels.astype(np.int64))


def _check_labels(labels: np.ndarray, rows: int, where: str) -> None:
    require(
        labels.shape == (rows,) and labels.dtype.kind in "iu",
        "labels are whole numbers, one for each input",
        file=where,
        shape=labels.shape,
        type=labels.dtype.str,
        inputs=rows,
    )


def _array(file: Path) -> np.ndarray:
    """The array in a file of the bundle, of which only what is accessed is read."""
    if not file.is_file():
        raise InvalidInput(f"a bundle with inputs must hold {LABELS}, but this one does not")
    try:
        with warnings.catch_warnings():
            # Headers of Python 2 are accepted with a warning, and no bundle has one.
            warnings.simplefilter("error")
            return np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, EOFError, TypeError, OverflowError, UserWarning) as error:
        raise _unreadable(file.name, error) from None


def _loaded(file: Path) -> Any:
    """The array, or the arrays by name, in a file of the reader's own."""
    if file.suffix.lower() not in (".npy", ".npz"):
        raise InvalidInput(f"--data must be an .npy or .npz file, but got {file}")
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(str(file), error) from None


def _unreadable(file: str, error: Exception) -> InvalidInput:
    said = " ".join(str(error).split())[:200]
    return InvalidInput(f"{file} must be a file of numpy arrays: {said}")
