"""The one record that specifies a run: model, training, data, certification, search, resources.

Every command, trial, worker, job and notebook reads the same validated `Spec`, and the full record
is stored beside every artefact made from it. Unknown keys and impossible values are refused before
any work starts.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from raycrt.errors import InvalidInput, nearest
from raycrt.specs import mistakes, strict_yaml
from raycrt.specs.data import DataSpec
from raycrt.specs.record import Record
from raycrt.specs.search import SearchSpec
from raycrt.specs.sections import CertifySpec, ModelSpec, RunSpec, TrainSpec
from raycrt.system.places.outputs import write_atomically
from raycrt.system.places.storage import Place, exists, is_directory


class Spec(Record):
    """A whole run. Stored as `spec.yaml` beside every artefact.

    Rules between sections belong to the commands: `rules` has those of training and certification,
    `raycrt.tuning.trials.space` those of a search.
    """

    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    data: DataSpec = DataSpec()
    certify: CertifySpec = CertifySpec()
    search: SearchSpec = SearchSpec()
    run: RunSpec = RunSpec()

    def override(self, values: dict[str, Any]) -> Spec:
        """A new spec with the dotted paths in `values` replaced, validated as a whole.

        A new `data.name` or `data.source` takes the place of the other one, and of all that was
        stated about that data set.
        """
        tree = self.model_dump(mode="python")
        of_data = {k.removeprefix("data."): v for k, v in values.items() if k.startswith("data.")}
        tree["data"] |= self.data.replaced(of_data)
        for path, value in values.items():
            _assign(tree, path, value)
        return validate(tree)

    def value(self, path: str) -> Any:
        """The value at a dotted path."""
        found: Any = self
        for name in path.split("."):
            found = getattr(found, name)
        return found

    def to_yaml(self) -> str:
        return strict_yaml.write(self.model_dump(mode="json"))

    def save(self, directory: Place, *, without: tuple[str, ...] = ()) -> None:
        """Write `spec.yaml` into `directory`, leaving out the sections `without`."""
        tree = self.model_dump(mode="json", exclude=set(without))
        write_atomically(directory / "spec.yaml", strict_yaml.write(tree).encode())

    @staticmethod
    def load(path: Place) -> Spec:
        """Read and validate a YAML file; a directory means the `spec.yaml` in it."""
        file = path / "spec.yaml" if is_directory(path) else path
        if not exists(file):
            raise InvalidInput(f"a spec file must exist, but there is none at {file}")
        return validate(strict_yaml.read(file))


def validate(tree: Any) -> Spec:
    """The spec that `tree` states; `InvalidInput` with one line naming field, value and rule."""
    if not isinstance(tree, dict):
        raise InvalidInput(
            f"a spec must be a mapping of sections, but got {mistakes.refused(tree)}"
        )
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        known = [*paths(), *Spec.model_fields]
        raise InvalidInput(mistakes.sentence(error, tree, known)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`train.gamma=0.01` as a (path, value) pair; the value is read as YAML."""
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise InvalidInput(f"an override must have the form section.key=value, but got {text!r}")
    return path.strip(), strict_yaml.parse(value, f"the value of {path!r}")


def paths(record: type[BaseModel] = Spec, prefix: str = "") -> list[str]:
    """The dotted path of every key of a spec."""
    found: list[str] = []
    for name, field in record.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += paths(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for depth, section in enumerate(sections):
        child = tree.get(section)
        if not isinstance(child, dict):
            where = ".".join(sections[: depth + 1])
            raise InvalidInput(
                f"{path}: {where!r} is not a section of a spec{nearest(path, paths())}"
            )
        tree = child
    tree[key] = value
