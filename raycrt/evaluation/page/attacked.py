"""Attacks on some rows of a run, with the data and the model that it names.

What an attack finds is an image of another class: an upper bound of the distance to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from raycrt import data
from raycrt.certification.table import storage
from raycrt.errors import InvalidInput
from raycrt.evaluation.attacks import attack
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page.scan import Row
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.specs import Spec
from raycrt.system.extras import lacking
from raycrt.system.places.storage import Place

# Steps of the attack, and the classes that it tries, as during training.
STEPS, CLASSES = 20, 3
# Numbers of the Jacobians that are held at a time.
_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A row, its input, and the nearest input of another class found, `perturbation` away.

    `distance` is infinite and `found` the prediction itself where there is none.
    """

    row: Row
    image: np.ndarray
    perturbation: np.ndarray
    distance: float
    found: int

    @property
    def contradicts(self) -> bool:
        """Whether an input of another class lies within the certified radius."""
        return self.distance < self.row.radius


def attacked(
    found: Certified,
    trained: Place,
    rows: Iterable[Row],
    *,
    data_directory: Place | None,
    trusted: bool,
) -> dict[int, Attacked]:
    """The `rows` by their index, each attacked with the model in `trained`.

    `data_directory` and `trusted` are as for `raycrt.verify`. `InvalidInput` says why rows cannot
    be attacked: the model or the data is not in reach, or is not that of the certificates.
    """
    chosen = sorted({row.index: row for row in rows}.items())
    if found.manifest["spec"]["model"] is None:
        raise InvalidInput("the model is not one that a spec can describe, so it is not in the run")
    network, _ = checkpoint.load_model(trained)
    if checkpoint.weights_hash(network) != found.manifest["weights_sha256"]:
        raise InvalidInput(f"the model in {trained} is not the one that was certified")
    images = _inputs(found.spec, [row for _, row in chosen], data_directory, trusted)
    result: dict[int, Attacked] = {}
    step = max(1, min(64, _AT_ONCE // (network.features * network.classes)))
    for start in range(0, len(chosen), step):
        part = [row for _, row in chosen[start : start + step]]
        result |= _attack(network, part, images[start : start + step])
    return result


def _attack(network: Network, rows: list[Row], images: np.ndarray) -> dict[int, Attacked]:
    inputs = torch.from_numpy(images)
    found = attack(network, inputs, steps=STEPS, classes=CLASSES)
    beyond = inputs.flatten(1).double() + found.perturbation
    with torch.no_grad():
        other = network.in_float64()(beyond).argmax(1)
    perturbations = found.perturbation.reshape(inputs.shape).numpy()
    each = zip(rows, images, perturbations, found.distance.tolist(), other.tolist(), strict=True)
    return {
        row.index: Attacked(row=row, image=image, perturbation=u, distance=d, found=o)
        for row, image, u, d, o in each
    }


def _inputs(spec: Spec, rows: list[Row], directory: Place | None, trusted: bool) -> np.ndarray:
    """The inputs of `rows`, in their order, compared with the hashes that the rows state."""
    if data.runs_code(spec.data) and not trusted:
        raise InvalidInput(
            f"the data is read by running {spec.data.source}, which is allowed only with --run-code"
        )
    try:
        reader = data.test_rows(data.placed(spec, directory).data)
        images = [_one(reader, row) for row in rows]
    except OSError as error:
        raise InvalidInput(f"the data cannot be read: {error}") from None
    except ModuleNotFoundError as error:
        raise InvalidInput(lacking(error) or f"the data needs {error.name}") from None
    return np.stack(images) if images else np.empty((0, *reader.shape), np.float32)


def _one(reader: data.Reader, row: Row) -> np.ndarray:
    if row.index >= len(reader):
        raise InvalidInput(
            f"the data has {len(reader)} test rows, and none with number {row.index}"
        )
    image: np.ndarray = next(reader.between(row.index, row.index + 1, 1)).images[0]
    if row.input_sha256 and storage.input_sha256(image) != row.input_sha256:
        raise InvalidInput(f"test row {row.index} of the data is not the one that was certified")
    return image
