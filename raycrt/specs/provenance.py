"""Provenance of weights: the model that they belong to, and their training.

It is kept in the header of `model.safetensors`, so that no other spec beside the file can describe
its weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, ModelSpec, Record, RunSpec, Spec, TrainSpec, identity
from raycrt.system.places.storage import Place, local

_KEY = "raycrt"
# Rows trained on: fit, training and validation rows together; train, training rows alone.
Rows = Literal["fit", "train"]


class Training(Record):
    """The training of weights. Resources in `run`, such as `workers`, are not compared.

    `run.workers` is a range where the number of workers may have changed while it ran, or did
    between two parts of it.
    """

    train: TrainSpec
    data: DataSpec = Field(description="without `directory` and `download`")
    run: RunSpec
    rows: Rows
    epoch: int = Field(ge=1, description="epochs that ran, of train.epochs")

    @staticmethod
    def of(spec: Spec, rows: Rows = "fit", epoch: int | None = None) -> Training:
        """A training of `spec` on `rows`, at its end unless `epoch` is given."""
        data = spec.data.model_copy(update={"directory": None, "download": False})
        return Training(
            train=spec.train,
            data=data,
            run=spec.run,
            rows=rows,
            epoch=epoch or spec.train.epochs,
        )

    @property
    def sentence(self) -> str:
        """The differences from a finished training on all rows, in words; empty if none."""
        differences = []
        if self.rows == "train":
            differences.append("the validation rows were kept out of the training")
        if self.epoch < self.train.epochs:
            differences.append(f"the weights are of epoch {self.epoch} of {self.train.epochs}")
        return "; ".join(differences)


class Provenance(Record):
    """The model of the weights, and their training; None where they come from elsewhere."""

    model: ModelSpec
    training: Training | None = None

    def header(self) -> dict[str, str]:
        """Metadata for a safetensors file; one key, so that equal files have equal bytes."""
        return {_KEY: self.model_dump_json()}

    def within(self, spec: Spec) -> Spec:
        """`spec` with everything known about the weights in place of its own statements."""
        known: dict[str, object] = {"model": self.model}
        if self.training is not None:
            made = self.training
            known |= {"train": made.train, "data": made.data, "run": made.run}
        return spec.model_copy(update=known)

    def check(self, spec: Spec, directory: Place) -> None:
        """Raise `InvalidInput` unless the `spec` in `directory` describes the weights there."""
        found = identity.difference(self.within(spec), spec, identity.TRAINING)
        if found is not None:
            key, true, stated = found
            raise InvalidInput(
                f"spec.yaml must describe the weights beside it, but in {directory} it states "
                f"{key}={stated}, and they are of {key}={true}"
            )


def read(file: Place) -> Provenance | None:
    """The provenance in the header of a safetensors `file`; None where there is none."""
    try:
        with local(file) as here, safe_open(here, "np") as opened:
            text = (opened.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{file} is damaged: {error}") from None
    try:
        return None if text is None else Provenance.model_validate_json(text)
    except ValidationError as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"the header of {file} must state its training: {said}") from None
