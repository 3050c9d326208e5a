"""What a certificates directory states: its manifest, and the counts over the rows written so
far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raycrt import data
from raycrt.certification.table import storage
from raycrt.errors import require
from raycrt.evaluation.accuracy import Summary
from raycrt.evaluation.tally import Counts
from raycrt.specs import Spec, validate
from raycrt.specs.provenance import Training
from raycrt.system.places.storage import Place


@dataclass(frozen=True, kw_only=True)
class Certified:
    """The rows in `directory`, counted at the radii `spec.certify.at`; radii are those that the
    rows state, which `raycrt verify` proves again."""

    directory: Place
    manifest: dict[str, Any]
    spec: Spec
    counts: Counts

    @staticmethod
    def of(directory: Place) -> Certified:
        """One pass over the rows; `InvalidInput` where none are written."""
        manifest = storage.read_manifest(directory)
        spec = validate({key: part for key, part in manifest["spec"].items() if part is not None})
        counts = Counts.of(directory, spec.certify.at, manifest["rows"])
        written = counts.whole.rows
        require(written > 0, "a report is about rows that are written", directory=str(directory))
        return Certified(directory=directory, manifest=manifest, spec=spec, counts=counts)

    @cached_property
    def summary(self) -> Summary:
        return self.counts.whole.summary()

    @property
    def complete(self) -> bool:
        """Whether every row of the test set is there."""
        rows = self.counts.whole.rows
        return rows == self.manifest["rows"] and self.manifest.get("complete") is True

    @property
    def remarks(self) -> list[str]:
        """What is missing, and the numbers of rows with a status other than `certified`."""
        others = storage.remarks(self.counts.statuses)
        if self.complete:
            return others
        rows = self.counts.whole.rows
        return [f"{rows} of {self.manifest['rows']} rows are certified so far.", *others]

    @property
    def training(self) -> Training | None:
        """The training of the weights; None where they come from elsewhere."""
        stated = self.manifest.get("training")
        return None if stated is None else Training.model_validate(stated)

    @property
    def pictures(self) -> bool:
        """Whether the inputs are images, with channels, height and width."""
        return len(data.shape(self.spec.data)) == 3

    @property
    def headline(self) -> str:
        """One line: clean accuracy, certified accuracy at the stated radii, mean radius, and the
        speed where it is known."""
        found, seconds = self.summary, self.manifest.get("seconds")
        infinite = f" (and {found.infinite} infinite)" if found.infinite else ""
        radii = ", ".join(f"{100 * share:.2f} % at {r:g}" for r, share in found.certified.items())
        inputs = "images" if self.pictures else "rows"
        speed = f"{found.rows / seconds:.0f} {inputs}/s with start-up; " if seconds else ""
        return (
            f"clean {100 * found.clean:.2f} %; certified (all classes) {radii}; "
            f"mean radius {found.mean_radius:.4f}{infinite}; {speed}{found.rows} test {inputs}"
        )

    @property
    def model(self) -> str:
        """The architecture in a few words."""
        if self.manifest["spec"]["model"] is None:
            return "not one that a spec can describe"
        model = self.spec.model
        if model.factory is not None:
            return model.factory
        if model.layers:
            return f"{len(model.layers)} layers, {model.activation}"
        front = f"channels {', '.join(map(str, model.channels))}, " if model.channels else ""
        return f"{front}depth {model.depth}, width {model.width}, {model.activation}"

    @property
    def weights(self) -> list[tuple[str, object]]:
        """What is known of the model and of the training of its weights, as keys and values."""
        model, made = self.manifest["spec"]["model"], self.training
        facts: list[tuple[str, object]] = [(f"model.{k}", v) for k, v in (model or {}).items()]
        if model is None:
            facts.append(("model", "not one that a spec can describe"))
        if made is None:
            return [*facts, ("training", "unknown: the weights come from elsewhere")]
        facts += [(f"train.{k}", v) for k, v in made.train.model_dump(mode="json").items()]
        facts += [(f"data.{k}", v) for k, v in _trained_on(made).items()]
        facts.append(("trained on", made.sentence or "training and validation rows"))
        if made.run.least < made.run.most:
            facts.append(("workers", f"{made.run.workers}; weights do not repeat bit for bit"))
        return [*facts, ("seed", made.run.seed)]


def _trained_on(made: Training) -> dict[str, object]:
    """The keys of the data of a training that its data set uses, without its facts."""
    used = data.uses(made.data) - {"directory", "download", "shape", "class_names"}
    own = made.data.model_dump(mode="json")
    return {
        key: own[key] for key in own if (key in used and own[key] is not None) or key == "limit"
    }
